"""What is on its way to a stream, held until it is worth a write."""

from collections.abc import Iterator

from anyio.abc import ByteStream

__all__ = ("WriteBuffer",)

# Bytes that a stream gets at once: a write of more, encrypted perhaps, would hold the event loop.
_AT_ONCE = 128 * 1024


class WriteBuffer:
    """Bytes on their way to a stream, held until ``flush`` so that they leave in one write."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._held: list[bytes] = []
        self.size = 0
        """Bytes held."""
        self.busy = False
        """Whether a write is under way."""
        self.torn = False
        """Whether a write was cut short: nothing fits behind what has gone out of it."""

    def hold(self, data: bytes | None) -> None:
        if data:
            self._held.append(data)
            self.size += len(data)

    async def flush(self) -> None:
        """Write what is held; raises what the stream's ``send`` raises."""
        if not self._held:
            return
        parts = _parts(self._held) if self.size > _AT_ONCE else (b"".join(self._held),)
        self._held = []
        self.size = 0
        self.busy = self.torn = True
        try:
            for part in parts:
                await self._stream.send(part)
            self.torn = False
        finally:
            self.busy = False


def _parts(held: list[bytes]) -> Iterator[bytes]:
    """The same bytes, in parts of at most twice what is given at once."""
    part = b""
    for data in held:
        for at in range(0, len(data), _AT_ONCE):
            part += data[at : at + _AT_ONCE]
            if len(part) >= _AT_ONCE:
                yield part
                part = b""
    if part:
        yield part
