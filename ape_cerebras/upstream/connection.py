"""One connection to upstream: a request at a time, and its answer, piece by piece."""

import math
from functools import lru_cache

import anyio
import h11
import httpcore

from ..errors import ProxyError
from ..http1.body import BodyReader
from ..http1.messages import Headers, with_fields
from ..http1.response_head import ResponseHead
from ..net.socket_stream import READ_BYTES
from .connect import UpstreamStream

__all__ = ("Connection",)

_END = h11.EndOfMessage()


@lru_cache(maxsize=16)
def _request(method: str, target: bytes, host: bytes) -> h11.Request:
    """What h11 has to know of a request's head; nearly always the same."""
    return h11.Request(method=method, target=target, headers=[(b"host", host)])


class Connection(httpcore.AsyncHTTP11Connection):
    """httpcore's HTTP/1.1 connection, one request at a time and read piece by piece.

    A pool that lends a connection to one exchange only needs no lock around its state, and nobody
    listens to httpcore's traces: they took a tenth of the time of a plain request. Its async
    generators are finished by the garbage collector where they are left early, of which trio warns.
    h11 keeps account of where messages and connections end; bodies are read by ``bodies`` in its
    place. The protected members used here are what pins httpcore's version.
    """

    def __init__(self, origin: httpcore.Origin, transport: UpstreamStream) -> None:
        super().__init__(origin, transport)
        self.transport = transport
        self.idle_since = 0.0
        self.end_at = math.inf
        self.used = False
        """Whether a request has gone over it."""
        self.closed_by_upstream = False
        """As far as that is known."""
        self.watched = False
        """Whether that becomes known at once."""
        self._reader: BodyReader | None = None  # of an answer that says where its body ends
        self._arrived = bytearray()  # of such a body, and not read yet
        self._untaken = False  # whether some of that has come since it was read last
        self._nothing_left_over = False

    async def ask(
        self, method: str, target: bytes, host: bytes, headers: Headers = (), body: bytes = b""
    ) -> ResponseHead:
        """Send a request; the head of its answer.

        ``headers`` are those beside Host and Content-Length; they must have been checked. Raises
        httpcore's ReadError, WriteError, timeouts and RemoteProtocolError, and InvalidResponse.
        """
        self._nothing_left_over = False
        say, hold = self._h11_state.send, self.transport.hold
        length = [(b"content-length", str(len(body)).encode())] if method == "POST" else []
        hold(with_fields(say(_request(method, target, host)) or b"", (*length, *headers)))
        hold(body)
        say(_END)
        head = await self.transport.read_head()
        self._reader = head.body_reader()
        if self._reader is None:
            self._tell_of(head)
        self._take_in(self.transport.take_behind_head())
        return head

    def _tell_of(self, head: ResponseHead) -> None:
        """Have h11 know of the answer: at its end, where its body is read in h11's place, for until
        then nothing hangs on it, and a first token waits for nothing."""
        self._h11_state.receive_data(head.for_h11)
        self._next_event()

    def _take_in(self, data: bytes) -> None:
        if self._reader is not None:
            self._arrived += data
            self._untaken = bool(data)
        elif data:
            self._h11_state.receive_data(data)

    async def next_chunk(self) -> bytes | None:
        """The next piece of the answer's body, as it came, without its framing; None at its end.

        Raises httpcore's ReadError, ReadTimeout and RemoteProtocolError.
        """
        if self._reader is not None:
            return await self._next_piece(self._reader)
        while (event := self._next_event()) is h11.NEED_DATA:
            self._h11_state.receive_data(await self.transport.read(READ_BYTES))
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._end()
        return None

    def _next_event(self) -> object:
        try:
            return self._h11_state.next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = error.__context__ = None  # its frames hold this connection
            raise httpcore.RemoteProtocolError("The answer is cut off.") from None

    async def _next_piece(self, reader: BodyReader) -> bytes | None:
        if reader.paused:
            await anyio.lowlevel.checkpoint()
        while not reader.ended:
            if not (self._untaken or reader.paused):
                arrived = await self.transport.read(READ_BYTES)
                if not arrived:
                    raise httpcore.RemoteProtocolError("The body ended before its end.")
                self._arrived += arrived
            if data := self._take(reader):
                return data
        self._tell_of(self.transport.head)
        self._next_event()  # the end of the message
        self._end()
        return None

    def _take(self, reader: BodyReader) -> bytes:
        self._untaken = False
        try:
            return reader.take(self._arrived)
        except ProxyError:
            raise httpcore.RemoteProtocolError("The body's framing is malformed.") from None

    def _end(self) -> None:
        state = self._h11_state
        left_over = self._arrived or state.trailing_data[0]
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
            self._nothing_left_over = not left_over

    @property
    def reusable(self) -> bool:
        """Whether the last answer ended cleanly, with nothing read beyond its end, and its request
        has all gone out."""
        fit = self._nothing_left_over and not self.transport.torn
        return fit and not self.closed_by_upstream
