"""The client's connection: requests in, responses out, through h11.

A request head is checked on its raw bytes (``head``) before h11 parses it. Each exchange gets an
h11 connection of its own, fed with nothing but that exchange's bytes: what the client sent beyond
waits here for its turn. What is sent is held until ``flush``, so that the pieces of a response
that belong together leave in one segment.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http import HTTPStatus

import anyio
import h11
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from .config import Config
from .errors import BadRequest, BodyTooLarge, ClientGone, ClientStalled, RequestTimeout
from .exchange import Exchange, Headers, Request
from .head import HEAD_END, check_part, check_whole
from .network import Outbox, PeerStalled, SocketStream, StampedStream

__all__ = ("Downstream",)

_HOLD_AT_MOST = 64 * 1024  # bytes
_READ_AHEAD_AT_MOST = 64 * 1024  # bytes of later requests, while one is being answered
_LINGER_SECONDS = 2.0  # nginx's lingering_close waits up to 30, for all the networks there are
_LINGER_BYTES = 1024 * 1024
_PROBE_EVERY = 0.1  # seconds
_LAST_CHANCE = 0.1  # seconds that a drained connection waits for a request on its way

_CLOSE = (b"connection", b"close")
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise RequestTimeout


class Downstream:
    """One client's connection. Reading raises ClientGone where the client leaves in the middle,
    writing that and ClientStalled."""

    def __init__(self, stream: StampedStream, config: Config) -> None:
        stream.write_timeout = config.client_write_timeout
        self.stream = stream
        """With its stamps and its account of waiting."""
        self._config = config
        self._limits = config.head_limits
        self._requests_left = config.max_requests_per_connection
        self._inbox = bytearray()  # arrived, and not yet given to h11
        self._input_ended = False
        self._outbox = Outbox(stream)
        self._chunked = False
        self._idle: anyio.CancelScope | None = None
        self._begin_exchange()
        self.closing = False
        """Set to make the response under way, or the next, the connection's last."""

    def _begin_exchange(self) -> None:
        # The head's size is checked before h11 sees it; what is left is a line of chunked framing.
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)
        self.common_headers: Headers = ()
        """Sent with whatever response the exchange under way gets."""

    # Requests

    async def wait_for_request(self) -> float | None:
        """When the next request began: its first byte arrived, or its turn came; None where no more
        is to come."""
        self._begin_exchange()
        if self._inbox:
            return anyio.current_time()
        may_skip_line = True  # an empty line before a request is ignored (RFC 9112 section 2.2)
        self.stream.read_timeout = self._config.keep_alive_timeout
        try:
            with anyio.CancelScope() as self._idle:
                if self.closing:
                    self.drain()
                while not self._inbox and not self._input_ended:
                    await self._read_more()
                    if may_skip_line and self._inbox.startswith(b"\r\n"):
                        may_skip_line = False
                        del self._inbox[:2]
        except (ClientGone, PeerStalled):
            return None
        finally:
            self._idle = None
            self.stream.read_timeout = None
        return self.stream.arrived_at if self._inbox else None

    async def read_head(self) -> Request:
        """The request whose first byte has arrived.

        Raises what ``head`` raises, RequestTimeout, ClientGone.
        """
        checked = 0
        with _deadline(self._config.client_head_timeout):
            while (end := self._inbox.find(HEAD_END, max(0, checked - 3))) < 0:
                check_part(bytes(self._inbox), checked, self._limits)
                checked = len(self._inbox)
                await self._read_more_of_request()
        self._requests_left -= 1
        end += len(HEAD_END)
        head = bytes(self._inbox[:end])
        del self._inbox[:end]
        check_part(head, checked, self._limits)
        target = check_whole(head, self._limits)
        self._http.receive_data(head)
        event = self._next_event()
        if not isinstance(event, h11.Request):
            raise BadRequest("The request head is malformed.", keeps=False)
        if not any(name in (b"content-length", b"transfer-encoding") for name, _ in event.headers):
            self._http.next_event()  # the end of a message that has no body
        return Request(event.method.decode(), target, event.http_version, tuple(event.headers))

    @property
    def awaits_100_continue(self) -> bool:
        """Whether the client holds its body back until asked for it (RFC 9110 section 10.1.1)."""
        return self._http.they_are_waiting_for_100_continue

    async def read_body(self) -> bytes:
        """The request's whole body, or what has not been read of it.

        Raises BadRequest, BodyTooLarge, RequestTimeout, ClientGone.
        """
        if self._http.their_state is not h11.SEND_BODY:
            return b""
        if self.awaits_100_continue and not self.response_started:
            self._outbox.hold(self._interim(100))
            await self.flush()
        body = bytearray()
        with _deadline(self._config.client_body_timeout):
            while not isinstance(event := self._next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > self._config.max_body_bytes:
                        raise BodyTooLarge
                else:
                    await self._read_more_of_request()
        self._inbox[:0], _ = self._http.trailing_data
        return bytes(body)

    def _next_event(self) -> object:
        if self._inbox and self._http.their_state is h11.SEND_BODY:
            self._http.receive_data(bytes(self._inbox))
            self._inbox.clear()
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            raise BadRequest("The request's framing is malformed.", keeps=False) from None

    async def _read_more_of_request(self) -> None:
        await self._read_more()
        if self._input_ended:
            raise ClientGone

    async def _read_more(self) -> None:
        try:
            self._inbox += await self.stream.receive()
        except EndOfStream:
            self._input_ended = True
        except (BrokenResourceError, ClosedResourceError):
            self._input_ended = True
            raise ClientGone from None

    # Responses

    @property
    def response_started(self) -> bool:
        """Whether a status has been said."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def response_complete(self) -> bool:
        return self._http.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def send_head(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Hold a response's head. Framing, Date and Connection are seen to here."""
        exchange.status = status
        self.closing = self.closing or self._requests_left <= 0
        names = {name for name, _ in headers}
        own = [*self.common_headers, *((_CLOSE,) if self.closing else ())]
        if b"date" not in names:
            own.append((b"date", formatdate(time.time(), usegmt=True).encode()))
        self._chunked = b"content-length" not in names and self._http.their_http_version == b"1.1"
        response = h11.Response(
            status_code=status, headers=[*headers, *own], reason=_PHRASES.get(status, b"")
        )
        self._outbox.hold(self._http.send(response))

    def _interim(self, status: int) -> bytes:
        interim = h11.InformationalResponse(status_code=status, headers=[], reason=_PHRASES[status])
        return self._http.send(interim) or b""

    async def send_chunk(self, chunk: bytes, *, hold: bool = False) -> None:
        """Send a piece of the body; with ``hold`` not before ``flush``, or before there is as much
        as is worth a write."""
        self._outbox.hold(self._http.send(h11.Data(data=chunk)))
        if not hold or self._outbox.size >= _HOLD_AT_MOST:
            await self.flush()

    async def send_end(self) -> None:
        """End the response as complete; once is enough."""
        if self.response_complete:
            return
        self._outbox.hold(self._http.send(h11.EndOfMessage()))
        await self.flush()

    async def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """A whole response; to HEAD without its body (RFC 9110 section 9.3.2)."""
        length = (b"content-length", str(len(body)).encode())
        self.send_head(exchange, status, (*headers, length))
        if exchange.request is None or exchange.request.method != "HEAD":
            self._outbox.hold(self._http.send(h11.Data(data=body)))
        await self.send_end()

    async def flush(self) -> None:
        """Write what is held."""
        try:
            await self._outbox.flush()
        except PeerStalled:
            raise ClientStalled from None
        except (BrokenResourceError, ClosedResourceError):
            raise ClientGone from None

    # The end

    async def hang_up(self) -> None:
        """Return when the client has left; what it sends meanwhile waits for its turn."""
        with suppress(ClientGone):
            while not self._input_ended:
                if len(self._inbox) >= _READ_AHEAD_AT_MOST:
                    await anyio.sleep_forever()
                await self._read_more()
            await self._probe()

    async def _probe(self) -> None:
        """Return when a client that has ended its sending turns out to be gone altogether.

        Shutting one direction and closing look alike: a FIN. Only something sent can tell, for a
        closed socket answers it with a reset. So bytes are sent that mean nothing: an interim
        response before the head (RFC 9110 section 15.2), a leading zero of the next chunk's size
        after it (RFC 9112 section 7.1). Where that can't be, a FIN is taken for leaving.
        """
        stream = self.stream
        if not isinstance(stream, SocketStream) or self._http.their_http_version != b"1.1":
            return
        if not self.response_started:
            stream.send_nowait(self._interim(102))
        elif self._chunked and not self._outbox.busy and not self._outbox.size:
            stream.send_nowait(b"0")
        while not stream.peer_is_gone():  # noqa: ASYNC110 - the loop has no event for it
            await anyio.sleep(_PROBE_EVERY)

    def drain(self) -> None:
        """End the connection after the exchange under way. Where there is none, a request that is
        on its way already is still answered, because nobody could know if it was carried out."""
        self.closing = True
        if self._idle is not None:
            self._idle.deadline = anyio.current_time() + _LAST_CHANCE

    @property
    def reusable(self) -> bool:
        """Whether the exchange has left the connection fit for another."""
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return done and not self.closing

    async def abort(self) -> None:
        """Cut the response short, so that nobody can take what has been sent for complete."""
        with suppress(ClientGone, ClientStalled):
            await self.flush()
        # Where the connection's end is the body's end, only a reset is a cut.
        if isinstance(self.stream, SocketStream) and not self._chunked:
            self.stream.reset()
        await self.stream.aclose()

    async def aclose(self) -> None:
        """Close. Where the client may still be sending, read on a little first: closing with
        unread input resets the connection, and the response can get lost (RFC 9112 section 9.6).
        """
        clean = self._http.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) and not self._inbox
        if self.response_complete and not clean and not self._input_ended:
            with suppress(Exception), anyio.move_on_after(_LINGER_SECONDS):
                await self.stream.send_eof()
                unread = _LINGER_BYTES
                while unread > 0:
                    unread -= len(await self.stream.receive())
        await self.close_at_once()

    async def close_at_once(self) -> None:
        await self.stream.aclose()
