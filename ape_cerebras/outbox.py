"""What is on its way to a stream, held until it is worth a write."""

from anyio.abc import ByteStream

__all__ = ("Outbox",)


class Outbox:
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

    def clear(self) -> None:
        self._held.clear()
        self.size = 0

    async def flush(self) -> None:
        """Write what is held; raises what the stream's ``send`` raises."""
        if not self._held:
            return
        data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self.clear()
        self.busy = self.torn = True
        try:
            await self._stream.send(data)
            self.torn = False
        finally:
            self.busy = False
