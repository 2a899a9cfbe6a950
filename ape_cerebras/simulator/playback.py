"""One answer of the simulator on its way: paced, cut, or garbled, and what came of it.

Every moment is an absolute deadline counted from the request, so that nothing adds up to a drift.
An answer's head, its role event and its first token leave in one write, when that token is due (as
recorded of the real API; ``head_lead`` parts them); a
plain answer leaves whole, when its last token is. Events that are due at the same time, or overdue,
leave in one write as well.
"""

import time
from dataclasses import dataclass, replace
from secrets import token_hex

import anyio
from anyio import BrokenResourceError, ClosedResourceError

from ..downstream.connection import Downstream
from ..errors import ClientGone
from ..http1.messages import Headers, Request
from ..net.stream import PeerStalled
from ..telemetry.exchange import Exchange
from .completion import Completion, Event
from .options import INSTEAD_OF_AN_ANSWER, Simulation
from .quota import Account
from .replies import ERRORS, ErrorReply, Rejected, error_named, reply_headers, stream_error
from .request import read_body

__all__ = ("Playback", "GroundTruth")

_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_SLOW_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
_NOT_HTTP = b"\x16\x03\x01 this is no HTTP\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class GroundTruth:
    """What the simulator did with one request; ``…_at`` are ``anyio.current_time()`` readings.

    ``…_write`` are the begin and the end of the call that gave the token to the kernel, which took
    it in between; what is derived from them counts from the middle. ``id`` is the answer's, as in
    its body and its ``inference-id``; ``status`` is 0 while nothing has been answered;
    ``events_written`` counts whole ones; ``left`` says that the peer hung up before the end.
    """

    request: Request
    body: bytes
    request_arrived_at: float
    id: str = ""
    status: int = 0
    head_write: tuple[float, float] | None = None
    first_token_write: tuple[float, float] | None = None
    last_token_write: tuple[float, float] | None = None
    events_written: int = 0
    left: bool = False

    @property
    def ttfb_seconds(self) -> float | None:
        """The request arrived → the head was given to the kernel."""
        return self._since_arrival(self.head_write)

    @property
    def ttft_seconds(self) -> float | None:
        """The request arrived → the first token was given to the kernel."""
        return self._since_arrival(self.first_token_write)

    @property
    def last_token_seconds(self) -> float | None:
        """The request arrived → the last token was given to the kernel."""
        return self._since_arrival(self.last_token_write)

    @property
    def uncertain_seconds(self) -> float | None:
        """By how much these may be wrong, either way: a process that is set aside in the
        middle of a call cannot know when it took effect."""
        if self.last_token_write is None:
            return None
        writes = filter(None, (self.head_write, self.first_token_write, self.last_token_write))
        return round(max(end - begin for begin, end in writes) / 2, 6)

    def log_fields(self) -> dict[str, object]:
        """What a log line says of it, without what has no value."""
        known = {
            "status_code": self.status,
            "id": self.id,
            "ttfb_seconds": self.ttfb_seconds,
            "ttft_seconds": self.ttft_seconds,
            "last_token_seconds": self.last_token_seconds,
            "uncertain_seconds": self.uncertain_seconds,
            "events_written": self.events_written,
            "left": self.left,
        }
        return {name: value for name, value in known.items() if value is not None}

    def _since_arrival(self, write: tuple[float, float] | None) -> float | None:
        return None if write is None else round(sum(write) / 2 - self.request_arrived_at, 6)


class Playback:
    """The answer to one request, on its way."""

    def __init__(
        self, downstream: Downstream, exchange: Exchange, account: Account, truth: GroundTruth
    ) -> None:
        self._downstream = downstream
        self._exchange = exchange
        self._account = account
        self.truth = truth
        self._held: list[Event] = []

    async def error(self, reply: ErrorReply) -> None:
        status, body, headers = reply
        self.truth.status = status
        await self._downstream.respond(
            self._exchange, status, (*headers, *self._common_headers()), body
        )

    def _common_headers(self, used: int = 0) -> Headers:
        return *reply_headers(_new_ray()), *self._account.headers(anyio.current_time(), used)

    async def chat(self, simulation: Simulation, default_model: str) -> None:
        request = self.truth.request
        asked = read_body(
            self.truth.body,
            request.header(b"content-type") or b"",
            request.header(b"content-encoding") or b"",
            default_model,
        )
        completion = Completion(
            asked,
            tokens=simulation.tokens,
            reasoning_tokens=simulation.reasoning_tokens,
            tokens_per_event=simulation.tokens_per_chunk,
            cached_tokens=simulation.cached_tokens,
        )
        used = completion.usage()["total_tokens"]
        reserved = self._account.admit(asked, anyio.current_time())
        try:
            await self._complete(simulation, completion, used)
        finally:
            used = used if self.truth.status == 200 else 0
            self._account.release(reserved, used, anyio.current_time())

    async def _complete(self, simulation: Simulation, completion: Completion, used: int) -> None:
        timing = simulation.timing(completion.token_count, time.time())
        self.truth.id = completion.id
        streams = completion.asked.stream
        headers = (
            _EVENT_STREAM if streams else _JSON,
            (b"inference-id", completion.id.encode()),
        )
        events = completion.events(timing) if streams else [completion.plain(timing)]
        await self._play(simulation, headers, events, used)

    async def at_once(self, simulation: Simulation, body: bytes) -> None:
        """A plain answer that takes no time to make; faults come to it as well."""
        await self._play(replace(simulation, ttft=0.0), (_JSON,), [Event(body)])

    async def _play(
        self, simulation: Simulation, headers: Headers, events: list[Event], used: int = 0
    ) -> None:
        """Send ``events``, each when it is due, as far as a fault lets them through."""
        if simulation.fault in INSTEAD_OF_AN_ANSWER:
            await self._misbehave(simulation)
            return
        if (error := _error_for(simulation.fault, headers)) is not None:
            raise Rejected(error)
        whole, part = _until_fault(simulation, events)
        arrived_at = self.truth.request_arrived_at
        await anyio.sleep_until(arrived_at + simulation.due(events[0].made))
        self.truth.status = 200
        head = *headers, *self._common_headers(used)
        self._downstream.send_head(self._exchange, 200, head)
        for event in whole:
            await self._wait_until(arrived_at + simulation.due(event.made))
            await self._downstream.send_chunk(event.data, hold=True)
            self._held.append(event)
        if part:
            await self._downstream.send_chunk(part, hold=True)
        await self._end(simulation.fault)

    async def _wait_until(self, due_at: float) -> None:
        if due_at > anyio.current_time():
            await self._downstream.flush()
            self._note_written()
            await anyio.sleep_until(due_at)

    async def _end(self, fault: str) -> None:
        if fault in ("cut", "cut_inside", "stall"):
            await self._downstream.flush()
        else:
            await self._downstream.send_end()
        self._note_written()
        if fault in ("cut", "cut_inside"):
            await self._downstream.abort()
        elif fault == "stall":
            await anyio.sleep_forever()

    def _note_written(self) -> None:
        """Write down what the latest flush took along."""
        truth, stream = self.truth, self._downstream.stream
        truth.events_written += len(self._held)
        write = (stream.left_at, stream.written_at)
        truth.head_write = truth.head_write or write
        if any(event.has_tokens for event in self._held):
            truth.last_token_write = write
            truth.first_token_write = truth.first_token_write or truth.last_token_write
        self._held.clear()

    async def _misbehave(self, simulation: Simulation) -> None:
        """One of the faults that replace the answer as a whole."""
        if simulation.fault == "silence":
            await anyio.sleep_forever()
        if simulation.fault == "garbage":
            await self._send_raw(_NOT_HTTP)
        elif simulation.fault == "slow_head":
            for number in range(len(_SLOW_HEAD)):
                due = number * simulation.byte_time
                await anyio.sleep_until(self.truth.request_arrived_at + due)
                await self._send_raw(_SLOW_HEAD[number : number + 1])
            await self._send_raw(b"{}")
        await self._downstream.close_at_once()

    async def _send_raw(self, data: bytes) -> None:
        try:
            await self._downstream.stream.send(data)
        except (BrokenResourceError, ClosedResourceError, PeerStalled):
            raise ClientGone from None


_AFTER_EVENT = frozenset(("cut", "end", "stall"))


def _until_fault(simulation: Simulation, events: list[Event]) -> tuple[list[Event], bytes]:
    """The events that are sent whole, and what is sent after them."""
    fault = simulation.fault
    if fault in _AFTER_EVENT:
        return events[: min(simulation.at, len(events) - 1)], b""
    if fault == "error_event":
        return events[: max(0, min(simulation.at, len(events)) - 1)], stream_error()
    if fault == "cut_inside":
        number = min(simulation.at, len(events))
        cut = events[number - 1].data if number else b""
        return events[: max(0, number - 1)], cut[: len(cut) // 2]
    return events, b""


def _error_for(fault: str, headers: Headers) -> ErrorReply | None:
    """The HTTP error that a fault means; for a plain answer an error event is one too."""
    if fault == "error_event" and _EVENT_STREAM not in headers:
        return ERRORS["server_error"]
    return error_named(fault)


def _new_ray() -> bytes:
    return token_hex(8).encode() + b"-SIM"
