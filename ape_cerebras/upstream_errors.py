"""The failures of the API, and of the way to it; see the tree in ``errors``."""

from .errors import ProxyError

__all__ = (
    "AnswerWithheld",
    "ConnectFailed",
    "ConnectTimeout",
    "FirstByteTimeout",
    "IdleTimeout",
    "InvalidAnswer",
    "KeyRefused",
    "TlsFailed",
    "Truncated",
    "UpstreamFailed",
    "UpstreamUnavailable",
)


class UpstreamFailed(ProxyError, status=502, type="upstream_error", outcome="upstream_failed"):
    """The request may have been carried out, so that a client must not repeat it blindly.

    ``x-should-retry`` is what the OpenAI and Cerebras SDKs obey before their own rules.
    """

    headers: tuple[tuple[bytes, bytes], ...] = ((b"x-should-retry", b"false"),)


class ConnectFailed(UpstreamFailed, code="connect_error", outcome="upstream_connect_failed"):
    message = "Could not connect to the upstream API."
    headers = ()


class TlsFailed(UpstreamFailed, code="tls_error", outcome="upstream_tls_failed"):
    message = "Could not establish a trusted TLS connection to the upstream API."
    headers = ()


class InvalidAnswer(UpstreamFailed, code="invalid_response", outcome="upstream_invalid"):
    message = "The upstream API gave no valid answer."


class AnswerWithheld(UpstreamFailed, code="answer_withheld", outcome="upstream_invalid"):
    message = "The upstream API's answer holds what this proxy does not pass on."


class KeyRefused(UpstreamFailed, code="upstream_key_refused", outcome="upstream_rejected"):
    # Passed on, the 401 would blame the client, and its text often quotes the key in part.
    message = "The upstream API did not accept this proxy's own API key."


class Truncated(UpstreamFailed, code="stream_truncated", outcome="upstream_truncated"):
    message = "The upstream API's answer ended before it was complete."


class ConnectTimeout(
    UpstreamFailed, status=504, code="connect_timeout", outcome="upstream_connect_timeout"
):
    message = "Connecting to the upstream API took too long."
    headers = ()


class FirstByteTimeout(
    UpstreamFailed, status=504, code="first_byte_timeout", outcome="upstream_timeout"
):
    message = "The upstream API did not answer in time."


class IdleTimeout(UpstreamFailed, status=504, code="stream_timeout", outcome="upstream_stalled"):
    message = "The upstream API stopped in the middle of its answer."


class UpstreamUnavailable(
    ProxyError,
    status=503,
    type="upstream_error",
    code="upstream_unavailable",
    outcome="upstream_unavailable",
):
    """Nothing was sent. ``retry_after``: seconds."""

    message = "The upstream API has failed several times in a row, and is left alone for a moment."

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__()
        self.headers = ((b"retry-after", b"%d" % retry_after),)
