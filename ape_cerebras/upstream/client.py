"""One request to the API and its response: the account's key added, timeouts kept, failures named.

``UpstreamClient.send`` returns when the head of the response has arrived, and the body too where
it is an error's. ``UpstreamResponse`` then gives the body chunk by chunk, as it arrives.
"""

import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpcore

from ..config.config import Config
from ..errors import InvalidResponse, KeyRefused, ResponseWithheld
from ..http1.body import ContentDecoder, decoder_for
from ..http1.messages import Headers
from ..net.event_loop import loop_clock
from ..telemetry.exchange import NO_QUOTA, Exchange, Quota
from .connect import RECEIVE_BUFFER, Connect, connect_tcp, ssl_context_for
from .connection import HandedOver
from .pool import Pool, PooledConnection

__all__ = (
    "KeyLeakDetector",
    "UpstreamClient",
    "UpstreamRequest",
    "UpstreamResponse",
    "forget_attempt",
    "read_error_code",
    "read_quota",
    "waiting_for_upstream",
)

_REDIRECTS = frozenset((301, 302, 303, 307, 308))  # not followed: only the settings name the API
_ERROR_AT_MOST = 64 * 1024  # bytes of an error's body; the API's have a few hundred
_DEFAULT_PORTS = {"http": 80, "https": 443}

_QUOTA_FIELD = re.compile(rb"x-ratelimit-(limit|remaining)-(requests|tokens)-(minute|hour|day)")
_RESET_FIELD = re.compile(rb"x-ratelimit-reset-(?:requests|tokens)-(?:minute|hour|day)")
_NUMBER = re.compile(rb"[0-9]{1,18}(?:\.[0-9]{1,18})?")
_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}")


class UpstreamRequest(NamedTuple):
    """``path`` is one of our own, never the client's; ``headers`` have been checked.

    ``awaits_token``: time the first chunk apart from those that follow it closely, for it may carry
    the first token. ``with_key``: authenticate with the account's key.
    """

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""
    awaits_token: bool = False
    with_key: bool = True


class UpstreamClient:
    """The API. ``connect`` opens a stream to a host and port; over TCP by default."""

    def __init__(self, config: Config, connect: Connect = connect_tcp) -> None:
        self._config = config
        self._clock = loop_clock()
        url = config.cerebras_base_url
        host = f"[{url.host}]" if ":" in url.host else url.host
        default_port = url.port == _DEFAULT_PORTS[url.scheme]
        self._host = (b"host", (host if default_port else f"{host}:{url.port}").encode())
        # Identity: a body that is relayed byte for byte is looked into on its way. Not every server
        # obeys.
        self._without_key: Headers = ((b"accept-encoding", b"identity"),)
        authorization = b"Bearer " + config.cerebras_api_key.encode()
        self._with_key: Headers = ((b"authorization", authorization), *self._without_key)
        self._urls: dict[str, httpcore.URL] = {}
        self.pool = Pool(config, connect, ssl_context_for(config))

    async def send(
        self, exchange: Exchange, request: UpstreamRequest, *, on_new: bool = False
    ) -> "UpstreamResponse":
        """Send a request, ``on_new`` over a new connection; return its response when the head has
        arrived.

        Raises what ``Pool.lease`` and ``Connection.request`` raise, InvalidResponse, KeyRefused,
        and for an error's body what ``UpstreamResponse.next_chunk`` raises.
        """
        began_at = self._clock()
        try:
            lease = await self.pool.lease(new=on_new)
        finally:
            exchange.upstream_wait_seconds += self._clock() - began_at
        exchange.connection = lease.use
        exchange.upstream_address = lease.connection.stream.raw.peer
        exchange.pool_wait_seconds = lease.waited
        exchange.connect_seconds, exchange.tls_seconds = lease.connect, lease.tls
        response = UpstreamResponse(
            exchange, self.pool, lease.connection, self._config, request.awaits_token
        )
        try:
            url = self._url_of(request.path)
            await response.begin(request.method, url, self._headers_of(request), request.body)
        except BaseException:
            response.close()
            raise
        return response

    def _url_of(self, path: str) -> httpcore.URL:
        """The URL of one of our own few paths, made once."""
        url = self._urls.get(path)
        if url is None:
            scheme, host, port, prefix = self._config.cerebras_base_url
            url = httpcore.URL(scheme=scheme, host=host, port=port, target=prefix + path)
            self._urls[path] = url
        return url

    def _headers_of(self, request: UpstreamRequest) -> Headers:
        own = self._with_key if request.with_key else self._without_key
        if request.method != "POST":
            return (self._host, *own, *request.headers)
        length = (b"content-length", b"%d" % len(request.body))
        return (self._host, length, *own, *request.headers)


class UpstreamResponse:
    """A response whose head has arrived: a context manager that holds its connection.

    ``headers`` have lower-case names. ``arrived_at``: when the latest chunk arrived. ``decoder``:
    has what a compressed body's latest chunk holds; None where chunks can be read as they are.
    """

    def __init__(
        self,
        exchange: Exchange,
        pool: Pool,
        connection: PooledConnection,
        config: Config,
        awaits_token: bool,
    ) -> None:
        self._exchange = exchange
        self._pool = pool
        self._connection = connection
        self._config = config
        self._awaits_token = awaits_token
        self._ahead: list[bytes | None] = []
        self._relay: Callable[[bytes, float], bool] | None = None
        self.status = 0
        self.headers: Headers = ()
        self._first: dict[bytes, bytes] = {}  # the first value of each name
        self.decoder: ContentDecoder | None = None
        raw = self._raw = connection.stream.raw
        raw.most_at_once = 0
        self._counting = True
        self._waited_before = raw.read_wait_seconds + raw.write_wait_seconds
        self._untimed_before = raw.reads_without_timestamp
        if awaits_token:
            raw.peek_arrivals(True)

    def __enter__(self) -> "UpstreamResponse":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back as it was. A response not read to its end closes it."""
        self._stop_counting()
        self._end_relaying()
        self._raw.read_timeout = math.inf
        self._end_peeking()
        self._pool.give_back(self._connection)

    def _note_arrival_seconds(self) -> None:
        exchange = self._exchange
        exchange.arrival_seconds = max(exchange.arrival_seconds, self._raw.arrival_seconds)

    def _end_peeking(self) -> None:
        """Note the first token, which is in what was read last."""
        if self._awaits_token:
            self._awaits_token = False
            self._note_arrival_seconds()
            self._raw.peek_arrivals(False)

    def _stop_counting(self) -> None:
        """Record the time waited on the connection, and how the bytes arrived; once."""
        if self._counting:
            self._counting = False
            raw, exchange = self._raw, self._exchange
            waited = raw.read_wait_seconds + raw.write_wait_seconds - self._waited_before
            exchange.upstream_wait_seconds += waited
            exchange.response_timestamped = raw.reads_without_timestamp == self._untimed_before
            exchange.response_backlogged = raw.most_at_once >= RECEIVE_BUFFER

    async def begin(self, method: str, url: httpcore.URL, headers: Headers, body: bytes) -> None:
        """Send the request and read the head; for ``UpstreamClient`` only."""
        exchange, config, connection = self._exchange, self._config, self._connection
        self._raw.deadline = self._raw.now() + config.upstream_first_byte_timeout
        try:
            status, headers, first = await connection.request(method, url, headers, body)
        finally:
            if connection.stream.may_have_been_taken_on:
                exchange.sent_at = connection.stream.sent_at
                exchange.send_seconds = connection.stream.send_seconds
            self._raw.deadline = math.inf
        self.status = exchange.upstream_status = status
        if status in _REDIRECTS:
            raise InvalidResponse("redirect")
        self._raw.read_timeout = config.upstream_idle_timeout
        self.headers, self._first = headers, first
        exchange.head_at = connection.arrived_at
        self._note_arrival_seconds()
        exchange.quota = read_quota(headers)
        self._leaks = KeyLeakDetector(config.cerebras_api_key.encode(), status)
        if self._leaks.found_in(b"\n".join([value for _, value in headers]) + b"\n"):
            raise ResponseWithheld
        exchange.upstream_headers = headers
        if status == 401:
            raise KeyRefused
        if b"content-encoding" in first:
            self.decoder = decoder_for(headers)
        if status >= 400:  # the beginning of an error is read before any of it is passed on
            ahead: list[bytes | None] = []
            size, text = 0, b""
            while size < _ERROR_AT_MOST and (not ahead or ahead[-1] is not None):
                ahead.append(chunk := await self.next_chunk())
                size += len(chunk or b"")
                if chunk is not None and len(text) < _ERROR_AT_MOST:
                    text += self._readable(chunk)
            exchange.upstream_code = read_error_code(text)
            self._ahead = ahead

    def header(self, name: bytes) -> bytes:
        """The first value of ``name`` (lower case); empty where there is none."""
        return self._first.get(name, b"")

    @property
    def is_framed(self) -> bool:
        """Whether the body's end is announced. Else it ends with the connection, also where that is
        cut (RFC 9112 section 8)."""
        return bool(self.header(b"content-length") or self.header(b"transfer-encoding"))

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body; None at its end. Raises Truncated, IdleTimeout and
        ResponseWithheld."""
        if self._ahead:
            return self._ahead.pop(0)
        if self._awaits_token and self._exchange.first_token_at is not None:
            self._end_peeking()
        try:
            chunk = await self._connection.next_chunk()
        except HandedOver as left:
            return left.chunk
        if chunk is not None:
            decoder = self.decoder
            leaks = self._leaks.found_in(chunk if decoder is None else decoder.decode(chunk))
            if leaks:
                raise ResponseWithheld
            if decoder is not None and decoder.blind and self._leaks.must_read:
                raise ResponseWithheld("unreadable")
        return chunk

    def _readable(self, chunk: bytes) -> bytes:
        """What is to be looked into of the latest chunk."""
        return chunk if self.decoder is None else self.decoder.latest

    async def read_all(self, at_most: int) -> bytes:
        """The body, decoded. Raises InvalidResponse where it has more bytes than ``at_most``, and
        what ``next_chunk`` raises."""
        body = bytearray()
        while (chunk := await self.next_chunk()) is not None:
            body += self._readable(chunk)
            if len(body) > at_most:
                raise InvalidResponse("too_large")
        return bytes(body)

    @property
    def arrived_at(self) -> float:
        return self._connection.arrived_at

    def before_wait(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Have ``hook`` awaited whenever a read has to wait, until the content has ended."""
        self._raw.before_wait = hook

    def relay_arrivals(self, relay: Callable[[bytes, float], bool]) -> None:
        """Have ``relay`` take the chunks that arrive, at those moments, while ``next_chunk`` waits,
        until the content has ended, where the stream can do that and the body is not compressed. It
        raises HandedOver with one that it leaves to ``next_chunk``, and returns whether to wait
        on."""
        if self.decoder is None:
            self._relay = relay
            self._connection.handle_chunks(self._handle_chunk)

    def _handle_chunk(self, chunk: bytes) -> bool:
        if self._leaks.found_in(chunk):
            raise ResponseWithheld
        assert self._relay is not None  # noqa: S101 - relay_arrivals
        goes_on = self._relay(chunk, self._connection.arrived_at)
        if self._awaits_token and self._exchange.first_token_at is not None:
            self._end_peeking()
        return goes_on

    def _end_relaying(self) -> None:
        self._raw.before_wait = None
        if self._relay is not None:
            self._relay = None
            self._connection.handle_chunks(None)

    def wind_down(self, seconds: float) -> None:
        """Wait no longer than that for the rest: the content has ended, but not the body's framing.
        With 0 no read waits at all. Nothing is flushed before these waits, and none is counted."""
        self._stop_counting()
        self._end_relaying()
        self._raw.read_timeout = seconds


class KeyLeakDetector:
    """Searches a response for the account's key, however it is cut into chunks.

    It searches for the key's beginning, because APIs quote a key as that and stars: 8 characters,
    which no model writes by chance, or 6 in an error, which no model wrote. A key of fewer than 16
    characters is searched for as a whole; one of fewer than 8 may be a word, and is not.

    ``must_read``: whether what cannot be searched must not pass. Errors quote keys; models have
    never seen one.
    """

    def __init__(self, key: bytes, status: int) -> None:
        part = key[: 6 if status >= 400 else 8] if len(key) >= 16 else key
        self._wanted = part if len(key) >= 8 else b""
        self.must_read = bool(self._wanted) and status >= 400
        self._tail = b""

    def found_in(self, chunk: bytes) -> bool:
        """Whether the key ends in ``chunk``, the next of the response."""
        wanted = self._wanted
        if not wanted:
            return False
        text = self._tail + chunk
        self._tail = text[1 - len(wanted) :]
        return text.find(wanted) >= 0  # for ``in`` CPython 3.11 makes and drops a TypeError


def read_quota(headers: Headers) -> Quota:
    """The account's quota as the ``x-ratelimit-*`` headers report it. The API reports a quota that
    is overdrawn as less than none: nothing is left then."""
    fields = [field for field in headers if field[0].startswith(b"x-ratelimit-")]
    if not fields:
        return NO_QUOTA
    values: dict[bytes, dict[tuple[str, str], float]] = {b"limit": {}, b"remaining": {}}
    malformed = unknown = 0
    for name, value in fields:
        field = _QUOTA_FIELD.fullmatch(name)
        if field is None:
            unknown += not _RESET_FIELD.fullmatch(name)
            continue
        which, kind, window = field.groups()
        overdrawn = which == b"remaining" and value.startswith(b"-")
        if _NUMBER.fullmatch(value[1:] if overdrawn else value):
            values[which][kind.decode(), window.decode()] = 0.0 if overdrawn else float(value)
        else:
            malformed += 1
    return Quota(values[b"limit"], values[b"remaining"], malformed, unknown)


def read_error_code(body: bytes) -> str | None:
    """The ``code`` in an error's body; None where there is none that looks like one. The API's 4xx
    are flat objects, its 5xx are wrapped in ``error``."""
    try:
        content = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    error = content.get("error", content) if isinstance(content, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else None


@contextmanager
def waiting_for_upstream(exchange: Exchange, clock: Callable[[], float]) -> Iterator[None]:
    """Count the time that the block takes, however it ends, as waited for upstream."""
    began_at = clock()
    try:
        yield
    finally:
        exchange.upstream_wait_seconds += clock() - began_at


def forget_attempt(exchange: Exchange) -> None:
    """Clear the fields of an attempt that is retried. The time it waited stays."""
    exchange.connection = exchange.pool_wait_seconds = None
    exchange.connect_seconds = exchange.tls_seconds = None
    exchange.sent_at = exchange.head_at = None
    exchange.send_seconds = exchange.arrival_seconds = 0.0
    exchange.upstream_status = exchange.upstream_code = exchange.upstream_address = None
    exchange.quota, exchange.upstream_headers = NO_QUOTA, ()
    exchange.response_timestamped, exchange.response_backlogged = None, False
