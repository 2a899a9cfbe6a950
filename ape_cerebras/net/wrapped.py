"""Any anyio byte stream, with its arrivals stamped: for hosts that bring their own streams."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream

from .socket_stream import READ_BYTES, PeerStalled, TimestampedStream

__all__ = ("WrappedStream", "timestamped")


class WrappedStream(TimestampedStream):
    """Every await counts as a wait here, and the moment of a read as the arrival."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__()
        self._stream = stream
        self._broken = False
        self._reading: anyio.CancelScope | None = None

    def set_deadline(self, seconds: float | None) -> None:
        super().set_deadline(seconds)
        if self._reading is not None:
            self._reading.deadline = self._deadline

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        if self.read_timeout == 0:
            raise PeerStalled
        if self.before_wait is not None:
            await self.before_wait()
        began_at = self._clock()
        try:
            end = self._end_of_wait(began_at, self.read_timeout)
            with anyio.CancelScope(deadline=end) as self._reading:
                data = await self._stream.receive(max_bytes)
        except OSError:  # of TLS, among others
            raise BrokenResourceError from None
        finally:
            self.reads_without_timestamp += 1
            self.arrived_at = self._clock()
            self.read_wait_seconds += self.arrived_at - began_at
        if self._reading.cancelled_caught:
            raise PeerStalled
        return data

    async def send(self, item: bytes) -> None:
        began_at = self.left_at = self._clock()
        try:
            end = self._end_of_wait(began_at, self.write_timeout)
            with anyio.CancelScope(deadline=end) as scope:
                await self._stream.send(item)
        # anyio's TLS stream says so of one that was cut, where that is no error to it.
        except (BrokenResourceError, ClosedResourceError, EndOfStream, OSError):
            self._broken = True
            raise BrokenResourceError from None
        finally:
            self.write_wait_seconds += self._clock() - began_at
        if scope.cancelled_caught:
            raise PeerStalled
        self.written_at = self._clock()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def close(self) -> None:
        """Nothing can be closed here without awaiting: ``aclose`` does it, forcefully."""

    async def aclose(self) -> None:
        with suppress(OSError, BrokenResourceError):
            await anyio.aclose_forcefully(self._stream)

    def peer_is_gone(self) -> bool:
        return self._broken

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes


def timestamped(stream: ByteStream) -> TimestampedStream:
    """``stream`` itself where it stamps its arrivals already, else a wrapper that does."""
    return stream if isinstance(stream, TimestampedStream) else WrappedStream(stream)
