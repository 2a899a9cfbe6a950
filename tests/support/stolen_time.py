"""What a hypervisor takes from a thread that is awake: steal time, which no clock of the thread's
counts, so that the proxy cannot tell it."""

from ape_cerebras.net.event_loop import loop_clock
from ape_cerebras.net.timestamps import AwakeClock

__all__ = ("StolenTime",)


class StolenTime:
    """Seconds taken since it was made, by a thread that has not slept since."""

    def __init__(self) -> None:
        self._now, self._awake = loop_clock(), AwakeClock()
        self._since, self._awake_since = self._now(), self._awake()

    def __call__(self) -> float:
        awake = self._awake() - self._awake_since
        return max(0.0, self._now() - self._since - awake)
