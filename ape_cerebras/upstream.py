"""One request to the API and its response: the key put in, deadlines kept, errors translated."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import httpcore

from .config import Config
from .errors import FirstByteTimeout, IdleTimeout, InvalidAnswer, Truncated
from .exchange import Exchange, Headers
from .pool import Connection, Pool, ssl_context_for
from .transport import Connect, connect_tcp

__all__ = ("Upstream", "UpstreamResponse")

_DEFAULT_PORTS = {"http": 80, "https": 443}


class UpstreamResponse:
    """A response whose head has arrived. ``headers`` have lower-case names."""

    def __init__(self, connection: Connection, response: httpcore.Response) -> None:
        self._connection = connection
        self._raw = connection.transport.raw
        self.status = response.status
        self.headers: Headers = tuple((name.lower(), value) for name, value in response.headers)

    def header(self, name: bytes) -> bytes:
        """The value of ``name`` (lower case); empty where there is none."""
        return next((value for each, value in self.headers if each == name), b"")

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body; None at its end. Raises Truncated, IdleTimeout."""
        try:
            return await self._connection.next_chunk()
        except httpcore.ReadTimeout:
            raise IdleTimeout from None
        except (httpcore.RemoteProtocolError, httpcore.ReadError):
            raise Truncated from None

    @property
    def arrived_at(self) -> float:
        """When the bytes of the latest chunk arrived."""
        return self._raw.arrived_at

    def before_wait(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Have ``hook`` awaited whenever there is nothing more to read for now."""
        self._raw.before_wait = hook

    def wait_at_most(self, seconds: float) -> None:
        """How long a read of the body may wait from here on."""
        self._raw.read_timeout = seconds


class Upstream:
    """The API. ``connect`` makes a stream to host and port; by default over TCP."""

    def __init__(self, config: Config, connect: Connect = connect_tcp) -> None:
        self._config = config
        where = config.cerebras_base_url
        default_port = where.port == _DEFAULT_PORTS[where.scheme]
        bracketed = f"[{where.host}]" if ":" in where.host else where.host
        host = bracketed if default_port else f"{bracketed}:{where.port}"
        self._own_headers: Headers = (
            (b"host", host.encode()),
            (b"authorization", b"Bearer " + config.cerebras_api_key.encode()),
            # What is relayed byte for byte has to be readable on its way.
            (b"accept-encoding", b"identity"),
        )
        self.pool = Pool(config, connect, ssl_context_for(config))

    @asynccontextmanager
    async def send(
        self, exchange: Exchange, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request; the response, once its head has arrived.

        ``path`` is one of our own, never the client's.

        Raises what ``Pool.lease`` raises, FirstByteTimeout, InvalidAnswer.
        """
        began_at = anyio.current_time()
        async with self.pool.lease() as connection:
            exchange.upstream_wait_seconds += anyio.current_time() - began_at
            raw = connection.transport.raw
            raw.read_timeout = None
            connection.transport.sent_at = None
            waited = raw.read_wait_seconds + raw.write_wait_seconds
            try:
                request = self._request(method, path, headers, body)
                response = await self._head(connection, request, exchange)
                raw.read_timeout = self._config.upstream_idle_timeout
                yield response
            finally:
                exchange.upstream_wait_seconds += (
                    raw.read_wait_seconds + raw.write_wait_seconds - waited
                )

    def _request(self, method: str, path: str, headers: Headers, body: bytes) -> httpcore.Request:
        where = self._config.cerebras_base_url
        length = ((b"content-length", str(len(body)).encode()),) if method == "POST" else ()
        return httpcore.Request(
            method,
            httpcore.URL(
                scheme=where.scheme,
                host=where.host,
                port=where.port,
                target=where.prefix + path,
            ),
            headers=[*self._own_headers, *headers, *length],
            content=body,
        )

    async def _head(
        self, connection: Connection, request: httpcore.Request, exchange: Exchange
    ) -> UpstreamResponse:
        try:
            with anyio.move_on_after(self._config.upstream_first_byte_timeout) as scope:
                response = await connection.handle_async_request(request)
        except (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError):
            raise InvalidAnswer from None
        finally:
            exchange.sent_at = connection.transport.sent_at
        if scope.cancelled_caught:
            raise FirstByteTimeout
        if response.status < 200:
            raise InvalidAnswer
        exchange.head_at = connection.transport.raw.arrived_at
        exchange.upstream_status = response.status
        answer = UpstreamResponse(connection, response)
        exchange.upstream_headers = tuple(
            field for field in answer.headers if field[0].startswith(b"x-ratelimit-")
        )
        return answer
