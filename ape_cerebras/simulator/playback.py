"""One response of the simulator: paced, cut or garbled, and the ground truth about it.

Every event has an absolute deadline, counted from the request, so that errors do not add up. Head,
role event and first token are sent in one write when that token is due, as recorded from the real
API (``head_lead`` parts them); a plain response is sent whole when its last token is due. Events
that are due at the same time, or overdue, are sent in one write too.
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
from .options import INSTEAD_OF_A_RESPONSE, Simulation
from .quota import Account
from .replies import ERRORS, ErrorReply, Rejected, error_named, reply_headers, stream_error
from .request import read_completion_request

__all__ = ("GroundTruth", "Playback")

_JSON = (b"content-type", b"application/json")
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_SLOW_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
_NOT_HTTP = b"\x16\x03\x01 this is no HTTP\r\n\r\n"
_AFTER_EVENT = frozenset(("cut", "end", "stall"))


@dataclass(slots=True, kw_only=True)
class GroundTruth:
    """The ground truth of one request; ``…_at`` are ``anyio.current_time()`` readings.

    ``…_write`` are the begin and the end of the call that gave the bytes to the kernel, which took
    them in between; durations count to the middle. ``id`` is the response's, as in its body and its
    ``inference-id``; ``status`` is 0 while there is no response; ``events_written`` counts whole
    events.
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
    client_disconnected: bool = False

    @property
    def ttfb_seconds(self) -> float | None:
        """From the arrival of the request to the write of the head."""
        return self._since_arrival(self.head_write)

    @property
    def ttft_seconds(self) -> float | None:
        """From the arrival of the request to the write of the first token."""
        return self._since_arrival(self.first_token_write)

    @property
    def last_token_seconds(self) -> float | None:
        """From the arrival of the request to the write of the last token."""
        return self._since_arrival(self.last_token_write)

    @property
    def uncertain_seconds(self) -> float | None:
        """The possible error of these durations, either way: a process that is preempted in the
        middle of a call does not know when the call took effect."""
        if self.last_token_write is None:
            return None
        writes = filter(None, (self.head_write, self.first_token_write, self.last_token_write))
        return round(max(end - begin for begin, end in writes) / 2, 6)

    def log_fields(self) -> dict[str, object]:
        """The fields of its log line, without those that have no value."""
        known = {
            "status_code": self.status,
            "id": self.id,
            "ttfb_seconds": self.ttfb_seconds,
            "ttft_seconds": self.ttft_seconds,
            "last_token_seconds": self.last_token_seconds,
            "uncertain_seconds": self.uncertain_seconds,
            "events_written": self.events_written,
            "left": self.client_disconnected,
        }
        return {name: value for name, value in known.items() if value is not None}

    def _since_arrival(self, write: tuple[float, float] | None) -> float | None:
        return None if write is None else round(sum(write) / 2 - self.request_arrived_at, 6)


class Playback:
    """Sends the response to one request."""

    def __init__(
        self, downstream: Downstream, exchange: Exchange, account: Account, truth: GroundTruth
    ) -> None:
        self._downstream = downstream
        self._exchange = exchange
        self._account = account
        self._truth = truth
        self._held: list[Event] = []
        self.cut = False
        """Whether the connection has to be cut now."""

    async def send_error(self, reply: ErrorReply) -> None:
        self._truth.status = reply.status
        headers = (*reply.headers, *self._common_headers())
        await self._downstream.respond(self._exchange, reply.status, headers, reply.body)

    async def send_now(self, simulation: Simulation, body: bytes) -> None:
        """Send a plain response that takes no time to generate; its faults hold too."""
        await self._play(replace(simulation, ttft=0.0), (_JSON,), [Event(body)])

    async def send_completion(self, simulation: Simulation, default_model: str) -> None:
        """Generate and send a chat completion. Raises Rejected."""
        request = self._truth.request
        chat = read_completion_request(
            self._truth.body,
            request.header(b"content-type") or b"",
            request.header(b"content-encoding") or b"",
            default_model,
        )
        completion = Completion(
            chat,
            tokens=simulation.tokens,
            reasoning_tokens=simulation.reasoning_tokens,
            tokens_per_event=simulation.tokens_per_chunk,
            cached_tokens=simulation.cached_tokens,
        )
        used = completion.usage()["total_tokens"]
        reserved = self._account.admit(chat, anyio.current_time())
        try:
            timing = simulation.timing(completion.token_count, time.time())
            self._truth.id = completion.id
            media_type = _EVENT_STREAM if chat.stream else _JSON
            events = completion.events(timing) if chat.stream else [completion.plain(timing)]
            headers = (media_type, (b"inference-id", completion.id.encode()))
            await self._play(simulation, headers, events, used)
        finally:
            used = used if self._truth.status == 200 else 0
            self._account.release(reserved, used, anyio.current_time())

    def _common_headers(self, used: int = 0) -> Headers:
        ray = token_hex(8).encode() + b"-SIM"
        return *reply_headers(ray), *self._account.headers(anyio.current_time(), used)

    async def _play(
        self, simulation: Simulation, headers: Headers, events: list[Event], used: int = 0
    ) -> None:
        """Send each event when it is due, as far as the fault lets it through. Raises Rejected."""
        fault = simulation.fault
        if fault in INSTEAD_OF_A_RESPONSE:
            await self._misbehave(simulation)
            return
        error = error_named(fault)
        if fault == "error_event" and _EVENT_STREAM not in headers:
            error = ERRORS["server_error"]  # a plain response has no place for an event
        if error is not None:
            raise Rejected(error)
        whole, part = _until_fault(simulation, events)
        arrived_at = self._truth.request_arrived_at
        await anyio.sleep_until(arrived_at + simulation.due(events[0].made))
        self._truth.status = 200
        head = *headers, *self._common_headers(used)
        self._downstream.send_head(self._exchange, 200, head)
        for event in whole:
            due_at = arrived_at + simulation.due(event.made)
            if due_at > anyio.current_time():
                await self._downstream.flush()
                self._record_write()
                await anyio.sleep_until(due_at)
            await self._downstream.send_chunk(event.data, hold=True)
            self._held.append(event)
        if part:
            await self._downstream.send_chunk(part, hold=True)
        await self._end_response(fault)

    async def _end_response(self, fault: str) -> None:
        if fault in ("cut", "cut_inside", "stall"):
            await self._downstream.flush()
        else:
            await self._downstream.send_end()
        self._record_write()
        if fault == "stall":
            await anyio.sleep_forever()
        self.cut = fault in ("cut", "cut_inside")

    def _record_write(self) -> None:
        """Record the latest write and the events that it took along."""
        truth, stream = self._truth, self._downstream.stream
        truth.events_written += len(self._held)
        write = (stream.left_at, stream.written_at)
        truth.head_write = truth.head_write or write
        if any(event.has_tokens for event in self._held):
            truth.last_token_write = write
            truth.first_token_write = truth.first_token_write or write
        self._held.clear()

    async def _misbehave(self, simulation: Simulation) -> None:
        """Play one of the faults that replace the response as a whole."""
        if simulation.fault == "silence":
            await anyio.sleep_forever()
        pieces: list[bytes] = []
        if simulation.fault == "garbage":
            pieces = [_NOT_HTTP]
        elif simulation.fault == "slow_head":
            pieces = [_SLOW_HEAD[number : number + 1] for number in range(len(_SLOW_HEAD))]
            pieces.append(b"{}")
        for number, piece in enumerate(pieces):
            due = number * simulation.byte_time
            await anyio.sleep_until(self._truth.request_arrived_at + due)
            try:
                await self._downstream.stream.send(piece)
            except (BrokenResourceError, ClosedResourceError, PeerStalled):
                raise ClientGone from None
        self.cut = True


def _until_fault(simulation: Simulation, events: list[Event]) -> tuple[list[Event], bytes]:
    """The events that are sent whole, and the bytes after them."""
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
