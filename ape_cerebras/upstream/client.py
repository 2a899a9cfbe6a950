"""One request to the API and its response: the key put in, deadlines kept, errors translated."""

import json
import re
from collections import deque
from collections.abc import Awaitable, Callable

import httpcore

from ..config.config import Config
from ..errors import (
    FirstByteTimeout,
    IdleTimeout,
    InvalidResponse,
    KeyRefused,
    ResponseWithheld,
    Truncated,
)
from ..http1.messages import Headers
from ..net.socket_stream import TimestampedStream
from ..net.timestamps import loop_clock
from ..telemetry.exchange import NO_QUOTA, Exchange
from .connect import RECEIVE_BUFFER, Connect, connect_tcp
from .pool import Lease, Pool, ssl_context_for
from .quota import read_quota
from .quotes import KeyLeakDetector

__all__ = (
    "UpstreamClient",
    "UpstreamResponse",
    "WaitingForUpstream",
    "forget_try",
    "read_error_code",
)

# Followed nowhere: where requests go is configuration only.
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_ERROR_AT_MOST = 64 * 1024  # bytes of its body; those of the API have a few hundred
_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class WaitingForUpstream:
    """Counts the time that a block takes as waited for upstream."""

    def __init__(self, exchange: Exchange, clock: Callable[[], float]) -> None:
        self._exchange = exchange
        self._clock = clock
        self._began_at = clock()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._exchange.upstream_wait_seconds += self._clock() - self._began_at


class UpstreamResponse:
    """A response whose head has arrived. A context manager: its connection is held until the end.

    ``headers`` have lower-case names.
    """

    def __init__(
        self, exchange: Exchange, lease: Lease, config: Config, *, awaits_token: bool
    ) -> None:
        self._exchange = exchange
        self._config = config
        self._lease = lease
        self._connection = lease.connection
        self._raw = lease.connection.transport.raw
        self._awaits_token = awaits_token
        self._raw.peek_arrivals(awaits_token)
        self._waiting = _WaitAccount(exchange, self._raw)
        self._quotes = KeyLeakDetector(b"", 0)
        self._ahead: deque[bytes | None] = deque()
        self.status = 0
        self.headers: Headers = ()

    def __enter__(self) -> "UpstreamResponse":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._waiting.close()
        self._raw.before_wait = None
        self._lease.give_back(self._connection)

    async def begin(
        self, method: str, target: bytes, host: bytes, headers: Headers, body: bytes
    ) -> None:
        """Send the request; return when the head of its answer has arrived, and the body too if it
        is an error's.

        Raises FirstByteTimeout, InvalidResponse, KeyRefused, and what ``next_chunk`` raises.
        """
        transport = self._connection.transport
        transport.sent_at = None
        self._raw.read_timeout = None
        self._raw.set_deadline(self._config.upstream_first_byte_timeout)
        try:
            head = await self._connection.ask(method, target, host, headers, body)
        except (httpcore.ReadTimeout, httpcore.WriteTimeout):
            raise FirstByteTimeout from None
        except (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError):
            raise InvalidResponse from None
        finally:
            self._exchange.sent_at = transport.sent_at
            self._raw.set_deadline(None)
        self._raw.read_timeout = self._config.upstream_idle_timeout
        await self._look_into(head.status, head.headers)

    async def _look_into(self, status: int, headers: Headers) -> None:
        if status in _REDIRECTS:
            raise InvalidResponse
        self.status = self._exchange.upstream_status = status
        self.headers = headers
        self._exchange.head_at = self._connection.transport.arrived_at
        self._exchange.quota = read_quota(headers)
        self._quotes = KeyLeakDetector(self._config.cerebras_api_key.encode(), status)
        if self._quotes.are_in(b"\n".join([value for _, value in headers])):
            raise ResponseWithheld
        if status == 401:
            raise KeyRefused
        if status >= 400:
            await self._read_ahead()

    def header(self, name: bytes) -> bytes:
        """The value of ``name`` (lower case); empty where there is none."""
        return next((value for each, value in self.headers if each == name), b"")

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body; None at its end. Raises Truncated, IdleTimeout,
        ResponseWithheld."""
        return self._ahead.popleft() if self._ahead else await self._receive()

    async def whole(self, at_most: int) -> bytes:
        """The body, of no more bytes than that. Raises InvalidResponse, and what ``next_chunk``
        raises."""
        body = bytearray()
        while (chunk := await self.next_chunk()) is not None:
            body += chunk
            if len(body) > at_most:
                raise InvalidResponse
        return bytes(body)

    async def _read_ahead(self) -> None:
        """Take in the body, as far as it is that of an error, before any of it is passed on. Raises
        what ``next_chunk`` raises."""
        size = 0
        while size < _ERROR_AT_MOST and (not self._ahead or self._ahead[-1] is not None):
            self._ahead.append(chunk := await self._receive())
            size += len(chunk or b"")
        self._exchange.upstream_code = read_error_code(b"".join(filter(None, self._ahead)))

    async def _receive(self) -> bytes | None:
        if self._awaits_token and self._exchange.first_token_at is not None:
            self._awaits_token = False
            self._raw.peek_arrivals(False)
        try:
            chunk = await self._connection.next_chunk()
        except httpcore.ReadTimeout:
            raise IdleTimeout from None
        except (httpcore.RemoteProtocolError, httpcore.ReadError):
            raise Truncated from None
        if chunk is not None and self._quotes.end_in(chunk):
            raise ResponseWithheld
        return chunk

    @property
    def arrived_at(self) -> float:
        """When the bytes of the latest chunk arrived."""
        return self._connection.transport.arrived_at

    def before_wait(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Have ``hook`` awaited whenever a read has to wait, until the content has ended."""
        self._raw.before_wait = hook

    def wind_down(self, seconds: float) -> None:
        """Wait no longer than that for the rest: the content has ended, but not the body's framing.
        With 0 no read waits at all. Nothing is flushed before these waits, and none is counted."""
        self._waiting.close()
        self._raw.before_wait = None
        self._raw.read_timeout = seconds


class _WaitAccount:
    """Writes down for an exchange what is waited on a connection, from its making to ``close``, and
    how what came meanwhile came: stamped by the kernel, and piled up or not."""

    def __init__(self, exchange: Exchange, raw: TimestampedStream) -> None:
        self._exchange = exchange
        self._raw = raw
        self._before = raw.read_wait_seconds + raw.write_wait_seconds
        self._without_timestamp_before = raw.reads_without_timestamp
        self._open = True
        raw.most_at_once = 0

    def close(self) -> None:
        """Settle; once is enough."""
        if self._open:
            self._open = False
            waited = self._raw.read_wait_seconds + self._raw.write_wait_seconds - self._before
            self._exchange.upstream_wait_seconds += waited
            self._exchange.response_timestamped = (
                self._raw.reads_without_timestamp == self._without_timestamp_before
            )
            self._exchange.response_backlogged = self._raw.most_at_once >= RECEIVE_BUFFER


class UpstreamClient:
    """The API. ``connect`` makes a stream to host and port; by default over TCP."""

    def __init__(self, config: Config, connect: Connect = connect_tcp) -> None:
        self._config = config
        self._clock = loop_clock()
        where = config.cerebras_base_url
        default_port = where.port == _DEFAULT_PORTS[where.scheme]
        bracketed = f"[{where.host}]" if ":" in where.host else where.host
        self._host = (bracketed if default_port else f"{bracketed}:{where.port}").encode()
        self._own_headers: Headers = (
            (b"authorization", b"Bearer " + config.cerebras_api_key.encode()),
            # What is relayed byte for byte has to be readable on its way.
            (b"accept-encoding", b"identity"),
        )
        self._prefix = where.prefix.encode()
        self.pool = Pool(config, connect, ssl_context_for(config))

    async def send(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        headers: Headers,
        body: bytes = b"",
        *,
        awaits_token: bool = False,
        with_key: bool = True,
    ) -> UpstreamResponse:
        """Send a request; the response, once its head has arrived.

        ``path`` is one of our own, never the client's. ``awaits_token``: whether it matters when
        the first of what comes has come, though more may have joined it. ``with_key``: whether it
        is asked in the account's name.

        Raises what ``Pool.lease`` and ``UpstreamResponse.begin`` raise.
        """
        with WaitingForUpstream(exchange, self._clock):
            lease = await self.pool.lease()
        _note(lease, exchange)
        response = UpstreamResponse(exchange, lease, self._config, awaits_token=awaits_token)
        own = self._own_headers if with_key else self._own_headers[1:]
        target, fields = self._prefix + path.encode(), (*own, *headers)
        try:
            await response.begin(method, target, self._host, fields, body)
        except BaseException:
            response.close()
            raise
        return response


def read_error_code(body: bytes) -> str | None:
    """The ``code`` in an error of the API, whose 4xx are flat and whose 5xx are wrapped; None where
    there is none that looks like one."""
    try:
        response = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    error = response.get("error", response) if isinstance(response, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else None


def forget_try(exchange: Exchange) -> None:
    """Take back what is written down of a try that another follows. What was waited stays."""
    exchange.connection = exchange.pool_wait_seconds = None
    exchange.connect_seconds = exchange.tls_seconds = None
    exchange.sent_at = exchange.head_at = None
    exchange.upstream_status = exchange.upstream_code = None
    exchange.quota = NO_QUOTA
    exchange.response_timestamped, exchange.response_backlogged = None, False


def _note(lease: Lease, exchange: Exchange) -> None:
    exchange.connection = lease.use
    exchange.pool_wait_seconds = _rounded(lease.waited)
    exchange.connect_seconds = _rounded(lease.connect)
    exchange.tls_seconds = _rounded(lease.tls)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
