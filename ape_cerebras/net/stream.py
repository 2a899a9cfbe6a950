"""Byte streams that know when their bytes arrived.

``TimestampedStream`` is what all of them have in common; ``timestamped`` gives it to any anyio
stream, for hosts that bring their own. ``RecordReader`` reads TLS over one of them. ``WriteBuffer``
holds what leaves by one of them until it is worth a write.

A stream notes the time of every arrival, counts the seconds that it waits for its peer, and calls
the hook ``before_wait`` before a read has to wait: the time to flush what was held back. Times are
readings of the event loop's clock.
"""

import math
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute

from .event_loop import loop_clock
from .timestamps import moment_within

__all__ = (
    "READ_BYTES",
    "PeerStalled",
    "RecordReader",
    "TimestampedStream",
    "WrappedStream",
    "WriteBuffer",
    "timestamped",
)

READ_BYTES = 64 * 1024
# Bytes that a stream gets at once: a larger write, encrypted perhaps, would hold the event loop.
_WRITE_BYTES = 128 * 1024
_RECORDS_AT_ONCE = 32  # of TLS that are decrypted before other streams


class PeerStalled(Exception):
    """A read or a write has waited for as long as it may. Not an OSError, as TimeoutError is,
    because anyio's TLS stream takes every OSError for a broken connection."""


class TimestampedStream(ByteStream):
    """A byte stream with the times of its arrivals.

    Raises anyio's EndOfStream, BrokenResourceError and ClosedResourceError, and PeerStalled.

    ``now``: the clock of all these times, a function.
    ``arrived_at``: when the bytes of the latest ``receive`` arrived; never decreases.
    ``kernel_timestamps``: set to False to take the time of every read for the arrival.
    ``arrival_seconds``: by how much they may have arrived earlier than that, while
    ``peek_arrivals`` is on.
    ``peeks``: whether it is on, be that possible here or not.
    ``has_timestamp``: whether that time is the kernel's; else it is the time of the read.
    ``reads_without_timestamp``: the reads of which the latter is true; a counter.
    ``left_at``: just before the last bytes of the latest ``send`` were handed to the kernel.
    ``written_at``: just after that. They left in between: ``sent_at``, give or take
    ``send_seconds``.
    ``read_wait_seconds``, ``write_wait_seconds``: time spent waiting for the peer, timeouts
    included; counters. The event loop's own delay in noticing an arrival is not part of it.
    ``most_at_once``: the most bytes read in a row without a wait, since somebody set it to 0.
    ``deadline``: when every wait ends at the latest that begins from now on; infinity for never.
    ``read_timeout``, ``write_timeout``: the longest wait in seconds. With a ``read_timeout`` of 0
    a read neither waits nor calls ``before_wait``: PeerStalled at once. Nor does a write
    wait, which a read through TLS may need: BrokenResourceError.
    ``peer``: the address of the other side, where whoever made the stream knows it.
    """

    def __init__(self) -> None:
        self.now = loop_clock()
        self.arrived_at = self.left_at = self.written_at = self.now()
        self.kernel_timestamps = True
        self.arrival_seconds = 0.0
        self.peeks = False
        self.has_timestamp = False
        self.reads_without_timestamp = 0
        self.most_at_once = 0
        self.read_wait_seconds = self.write_wait_seconds = 0.0
        self.read_timeout = self.write_timeout = math.inf
        self.before_wait: Callable[[], Awaitable[None]] | None = None
        self.deadline = math.inf
        self.peer: str | None = None
        self._broken = False

    @property
    def sent_at(self) -> float:
        """When the last bytes of the latest ``send`` left."""
        return moment_within(self.left_at, self.written_at)

    @property
    def send_seconds(self) -> float:
        """The time that the kernel took to take them; more where this process was preempted. 0
        where it took none."""
        return max(0.0, self.written_at - self.left_at)

    @property
    def may_have_arrived(self) -> bool:
        """Whether something may have arrived that has not been received."""
        return True

    def receive_nowait(self) -> bytes:
        """Receive what has arrived. Raises what ``receive`` raises, and WouldBlock where nothing
        has arrived, or where this stream cannot know."""
        raise WouldBlock

    def handle_arrivals(self, handler: Callable[[], bool] | None) -> bool:
        """Call ``handler`` at an arrival while a ``receive`` waits, instead of ending its wait. It
        takes what has arrived with ``receive_nowait`` and returns whether the wait goes on.
        Whatever it raises ``receive`` raises; None ends that. Returns False where this stream
        cannot do that.

        That saves the event-loop iteration in which a task is woken, and all its coroutines.
        """
        return False

    def watch(self, hook: Callable[[], None] | None, *, end_only: bool = False) -> bool:
        """Call ``hook``, which must not raise, at every arrival while nobody receives, the end of
        the connection included, and at once if something may have arrived; None ends that. With
        ``end_only``, instead: only when the peer has ended its sending or the connection is broken,
        also while somebody receives, at no cost before. Returns False where this stream cannot do
        that."""
        return False

    def send_now(self, item: bytes) -> int:
        """Send as much of ``item`` as is taken at once; return how many bytes, 0 where this stream
        cannot know. Never raises: what is wrong the next ``send`` finds."""
        return 0

    def set_deadline(self, seconds: float | None) -> None:
        """Set ``deadline`` to so many seconds from now, for a read that waits already, too. None
        removes it."""
        self.deadline = math.inf if seconds is None else self.now() + seconds

    def peek_arrivals(self, on: bool) -> None:
        """Whether to distinguish, where possible, arrivals that are coalesced before they are read.
        Worth its cost while a first token is awaited."""
        self.peeks = on

    def peer_is_gone(self) -> bool:
        """Whether it is certain that the peer takes no more bytes."""
        return self._broken

    def close(self) -> None:
        """Close at once, without awaiting: safe in any ``finally``."""

    async def aclose(self) -> None:
        self.close()


class RecordReader:
    """Reads ``stream``, TLS over ``raw``: all records of one read of ``raw`` at once, while that
    does not peek at arrivals; a record at a time while it does.

    anyio's TLS stream gives a record at a time, and a server makes one of each event that it
    writes: each would pass through all layers by itself, and be a write to the client. Each of four
    tokens that arrive together takes 20 calls of Python functions instead of 48.

    ``has_more``: whether there may be more to receive before ``raw`` has to be read.
    """

    def __init__(self, raw: TimestampedStream, stream: ByteStream) -> None:
        self._raw = raw
        self._stream = stream
        self._tls: ssl.SSLObject = stream.extra(TLSAttribute.ssl_object)  # noqa: S610 - not Django
        self._failure: ssl.SSLError | None = None  # found behind what was received
        self.has_more = False

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        """Raises what ``stream.receive`` raises."""
        if self._failure is not None:
            raise self._take_failure()  # no variable keeps it: a cycle, too
        return self._with_rest(await self._stream.receive(max_bytes), max_bytes)

    def receive_nowait(self) -> bytes:
        """Receive what has arrived, outside of any task: TLS streams of anyio can receive in a task
        only, but one that need not wait is over at the first step of its coroutine. Raises what
        ``stream.receive`` raises, and WouldBlock."""
        if self._failure is not None:
            raise self._take_failure()
        timeout, self._raw.read_timeout = self._raw.read_timeout, 0
        step = self._stream.receive(READ_BYTES)
        try:
            step.send(None)
        except StopIteration as received:
            return self._with_rest(received.value, READ_BYTES)
        except PeerStalled:  # perhaps a part of a record has arrived
            raise WouldBlock from None
        finally:
            self._raw.read_timeout = timeout
            step.close()
        raise BrokenResourceError  # it waits to send what TLS needs to, which has no room

    def _with_rest(self, record: bytes, max_bytes: int) -> bytes:
        """Add the records that were read together with this one, but for a part of one."""
        self.has_more = True
        if self._raw.peeks:
            return record
        records, room = [record], max_bytes - len(record)
        while room > 0 and len(records) < _RECORDS_AT_ONCE:
            try:
                record = self._tls.read(room)
            except ssl.SSLWantReadError:
                self.has_more = False
                break
            except ssl.SSLError as failure:
                self._failure = failure.with_traceback(None)  # else a reference cycle
                break
            if not record:  # the end, which is found again
                break
            records.append(record)
            room -= len(record)
        return records[0] if len(records) == 1 else b"".join(records)

    def _take_failure(self) -> ssl.SSLError:
        """TLS reports a failure as what it is only once."""
        failure, self._failure = self._failure, None
        assert failure is not None  # noqa: S101 - the callers look
        return failure


class WriteBuffer:
    """Bytes on their way to a stream, held until ``flush`` so that they leave in one write.

    ``size``: the bytes held. ``busy``: whether a write is under way. ``torn``: whether a write was
    cut short, so that nothing fits behind what has left.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._held: list[bytes] = []
        self.size = 0
        self.busy = self.torn = False

    def hold(self, data: bytes | None) -> None:
        if data:
            self._held.append(data)
            self.size += len(data)

    def send_now(self, data: bytes, stream: TimestampedStream) -> bool:
        """Write what ``stream`` takes at once of what is held and of ``data``, and hold the rest.
        Return whether that was all of it."""
        if self._held:
            data = b"".join((*self._held, data))
        rest = data[stream.send_now(data) :]
        self._held = [rest] if rest else []
        self.size = len(rest)
        return not rest

    async def flush(self) -> None:
        """Write what is held. Raises what the stream's ``send`` raises."""
        if not self._held:
            return
        held, self._held = self._held, []
        size, self.size = self.size, 0
        self.busy = self.torn = True
        try:
            if size <= _WRITE_BYTES:
                await self._stream.send(held[0] if len(held) == 1 else b"".join(held))
            else:
                part = b""
                for data in held:
                    for at in range(0, len(data), _WRITE_BYTES):
                        part += data[at : at + _WRITE_BYTES]
                        if len(part) >= _WRITE_BYTES:
                            await self._stream.send(part)
                            part = b""
                if part:
                    await self._stream.send(part)
            self.torn = False
        finally:
            self.busy = False


class WrappedStream(TimestampedStream):
    """Any other stream of anyio: the time of a read is its arrival, and every await is a wait."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__()
        self._stream = stream
        self._reading = anyio.CancelScope()

    def set_deadline(self, seconds: float | None) -> None:
        super().set_deadline(seconds)
        self._reading.deadline = self.deadline

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        if self.read_timeout == 0:
            raise PeerStalled
        if self.before_wait is not None:
            await self.before_wait()
        began_at = self.now()
        try:
            end = min(began_at + self.read_timeout, self.deadline)
            with anyio.CancelScope(deadline=end) as self._reading:
                data = await self._stream.receive(max_bytes)
        except OSError:  # of TLS, among others
            raise BrokenResourceError from None
        finally:
            self.reads_without_timestamp += 1
            self.arrived_at = self.now()
            self.read_wait_seconds += self.arrived_at - began_at
        if self._reading.cancelled_caught:
            raise PeerStalled
        return data

    async def send(self, item: bytes) -> None:
        began_at = self.left_at = self.now()
        try:
            end = min(began_at + self.write_timeout, self.deadline)
            with anyio.CancelScope(deadline=end) as scope:
                await self._stream.send(item)
        # anyio's TLS stream raises EndOfStream for a cut that it takes for an end.
        except (BrokenResourceError, ClosedResourceError, EndOfStream, OSError):
            self._broken = True
            raise BrokenResourceError from None
        finally:
            self.write_wait_seconds += self.now() - began_at
        if scope.cancelled_caught:
            raise PeerStalled
        self.written_at = self.now()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close, which takes an await here: ``close`` does nothing."""
        with suppress(OSError, BrokenResourceError):
            await anyio.aclose_forcefully(self._stream)


def timestamped(stream: ByteStream) -> TimestampedStream:
    """``stream`` itself if it notes the times of its arrivals, else a wrapper that does."""
    return stream if isinstance(stream, TimestampedStream) else WrappedStream(stream)
