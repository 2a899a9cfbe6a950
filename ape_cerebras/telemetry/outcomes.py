"""The ways in which an exchange can end, whose side each is on, and why one failed upstream.

``OUTCOMES`` is the table of outcomes: log lines, metrics, /health and alerts go by its rows, and
``CAUSES`` has the words that name a failure's reason.
"""

from typing import NamedTuple

__all__ = (
    "ALERTED",
    "CAUSES",
    "OUTCOMES",
    "OUTCOME_OF_STATUS",
    "SIDES",
    "UPSTREAM_CODES",
    "Outcome",
)


class Outcome(NamedTuple):
    """One way in which an exchange can end."""

    side: str  # one of SIDES: who has to act
    level: str  # of the exchange's log line
    failed: bool  # counts in errors_total
    degrades: bool  # counts as a failure of the service, not of its client
    meaning: str  # for the documentation


SIDES = {
    "ok": "nothing failed",
    "client": "the client, or what it sent",
    "limit": "a limit set in this proxy",
    "upstream": "the API, or the network between",
    "account": "the account at Cerebras: its key, its payment, its quota",
    "service": "this proxy",
}
"""Whose side an outcome is on, the label ``class`` of ``outcomes_total``: an alert on ``service``,
``upstream`` and ``account`` does not page for a stranger with a wrong key."""

# Side, level, failed, degrades.
_FINE, _REFUSED = ("ok", "info", False, False), ("client", "warning", True, False)
_LIMITED, _DRAINED = ("limit", "warning", True, False), ("service", "warning", True, False)
_OVERLOAD, _DEFECT = ("service", "warning", True, True), ("service", "error", True, True)
_REJECTED, _BROKEN = ("client", "error", True, False), ("upstream", "error", True, True)
_ACCOUNT = ("account", "error", True, True)

OUTCOMES = {
    "completed": Outcome(*_FINE, "relayed completely"),
    "client_disconnected": Outcome(*_FINE, "the client disconnected before the end"),
    "client_stalled": Outcome(*_REFUSED, "the client took no bytes for `CLIENT_WRITE_TIMEOUT`"),
    "refused": Outcome(
        *_REFUSED,
        "a request that is not served: malformed, too large, not complete in time, or with an "
        "unknown path or method",
    ),
    "unauthorized": Outcome(*_REFUSED, "no API key, or a wrong one"),
    "rate_limited": Outcome(
        *_LIMITED, "more requests per minute than `RATE_LIMIT_PER_MINUTE`, or than the key allows"
    ),
    "budget_exceeded": Outcome(
        *_LIMITED,
        "the key's budget of US dollars for the day is spent, or has no room for what the request "
        "may cost",
    ),
    "overloaded": Outcome(*_OVERLOAD, "no slot or upstream connection became free in time"),
    "draining": Outcome(*_DRAINED, "refused because the proxy is shutting down"),
    "shut_down": Outcome(*_DRAINED, "cut short by the end of the shutdown"),
    "upstream_rejected": Outcome(
        *_REJECTED, "the API responded with a 4xx, but no 401, 402, 403 or 429"
    ),
    "upstream_key_refused": Outcome(
        *_ACCOUNT, "the API refuses the account's key (401), or what it asks for (403)"
    ),
    "upstream_payment_required": Outcome(*_ACCOUNT, "the API wants the account paid for (402)"),
    "upstream_rate_limited": Outcome(*_ACCOUNT, "the API responded with a 429"),
    "upstream_failed": Outcome(*_BROKEN, "the API responded with a 5xx"),
    "upstream_stream_error": Outcome(*_BROKEN, "the API sent an error event inside its stream"),
    "upstream_unavailable": Outcome(*_BROKEN, "not sent: the circuit is open"),
    "upstream_connect_failed": Outcome(*_BROKEN, "connection refused, or the API's name not found"),
    "upstream_connect_timeout": Outcome(*_BROKEN, "no connection to the API in time"),
    "upstream_tls_failed": Outcome(*_BROKEN, "the TLS handshake with the API failed"),
    "upstream_invalid": Outcome(
        *_BROKEN, "the API's response is not valid, or quotes the account's key"
    ),
    "upstream_timeout": Outcome(*_BROKEN, "no response head from the API in time"),
    "upstream_stalled": Outcome(*_BROKEN, "the response paused for longer than allowed"),
    "upstream_truncated": Outcome(*_BROKEN, "the connection to the API ended in mid-response"),
    "exchange_timeout": Outcome(*_BROKEN, "took longer than `REQUEST_TIMEOUT`"),
    "internal_error": Outcome(*_DEFECT, "a defect of this proxy"),
}
"""What the API refuses the account (its key, its payment, its quota) fails for all agents, so it
counts as a failure of the service; any other 4xx is the fault of the request itself and does
not."""

ALERTED = {
    "upstream_truncated": 200,
    "upstream_stalled": 200,
    "upstream_key_refused": 502,
    "upstream_payment_required": 402,
    "budget_exceeded": 429,
    "overloaded": 503,
}
"""Outcomes whose first occurrence an alert must not miss, with the status that the client gets."""


CAUSES = {
    # Names, as getaddrinfo's errors are called.
    "EAI_NONAME": "the resolver does not know the name",
    "EAI_AGAIN": "no resolver responded",
    "EAI_FAIL": "the resolver failed",
    "EAI_OTHER": "another failure of the look-up",
    "lookup_timeout": "the look-up of the name took too long",
    # TCP, as the system's errors are called.
    "ECONNREFUSED": "nothing listens at the address",
    "ECONNRESET": "the peer reset the connection",
    "ENETUNREACH": "no route to the network",
    "EHOSTUNREACH": "no route to the host",
    "ETIMEDOUT": "the host did not respond",
    "EPERM": "the system, or a firewall on it, forbids the connection",
    "EADDRNOTAVAIL": "no local address or port is left",
    "EMFILE": "out of file descriptors, memory or threads",
    "E_OTHER": "another error of the system",
    "tcp_timeout": "connecting took too long",
    # The proxy on the way, UPSTREAM_PROXY.
    "proxy_refused": "the proxy on the way does not connect there",
    "proxy_auth": "the proxy on the way wants another user or password (407)",
    "proxy_unreachable": "the proxy on the way cannot reach the API",
    "proxy_invalid": "what is at the address of the proxy on the way is none",
    # TLS, as OpenSSL calls reasons, and what verifying found.
    "hostname_mismatch": "the certificate is another name's",
    "expired": "the certificate has expired",
    "not_yet_valid": "the certificate is not yet valid, or this machine's clock is wrong",
    "self_signed": "the certificate, or one above it, is signed by nobody who is trusted",
    "unknown_issuer": "the certificate's issuer is not among the trusted ones",
    "CERTIFICATE_VERIFY_FAILED": "the certificate is invalid in another way",
    "WRONG_VERSION_NUMBER": "no TLS is spoken at that port",
    "tls_alert": "the peer ended the handshake with an alert",
    "tls_closed": "the peer closed the connection in the handshake",
    "tls_timeout": "the handshake took too long",
    "tls_other": "another failure of the handshake",
    # The response.
    "closed": "the connection was closed",
    "head_cut": "the connection ended in the head of the response",
    "malformed_head": "the head of the response breaks a rule of HTTP, or is too large",
    "malformed_body": "the framing of the body breaks a rule of HTTP",
    "redirect": "a redirect, which is not followed",
    "too_large": "the response is larger than it may be",
    "unusable": "the response is HTTP, and not what was requested",
    "key_quoted": "the response quotes the account's key",
    "unreadable": "an error's body is compressed so that nobody can look for the key in it",
    "key_refused": "the API refuses the account's key",
    "silent": "nothing came in time",
}
"""Why a request failed on its way to the API: the words of ``cause``, each with its meaning. They
are ours, of a closed list; no text of a foreign exception is among them."""

UPSTREAM_CODES = frozenset(
    (
        *("wrong_api_format", "context_length_exceeded", "wrong_api_key", "payment_required"),
        *("model_not_found", "request_quota_exceeded", "token_quota_exceeded", "queue_exceeded"),
        *("invalid_request_error", "validation_error", "server_error", "service_unavailable"),
    )
)
"""The codes in the API's errors that metrics tell apart; any other is ``other``."""

OUTCOME_OF_STATUS = {
    401: "upstream_key_refused",
    402: "upstream_payment_required",
    403: "upstream_key_refused",
    429: "upstream_rate_limited",
}
"""Outcomes of responses whose status says more than its class."""
