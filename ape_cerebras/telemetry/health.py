"""How the service is: what /health says of it, whether it is degraded, and whether it wastes."""

from collections.abc import Callable

from ..config.config import Config
from ..net.event_loop import loop_clock
from ..upstream.circuit_breaker import CircuitBreaker
from ..version import VERSION
from .degradation import Degradation
from .exchange import Exchange
from .logs import Logs
from .metrics import Metrics
from .multiprocess import WorkerSlot
from .timings import Timings
from .waste import Waste

__all__ = ("Health",)


class Health:
    """Of one proxy. ``is_draining`` says whether that ends; ``slot`` is a worker's."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        logs: Logs,
        slot: WorkerSlot | None,
        is_draining: Callable[[], bool],
        circuit: CircuitBreaker | None,
    ) -> None:
        self._metrics = metrics
        self._logs = logs
        self._slot = slot
        self._is_draining = is_draining
        self._circuit = circuit
        if circuit is not None:
            metrics.watch_circuit(circuit)
        target = None if config.ttft_target_ms is None else config.ttft_target_ms / 1000
        self._degradation = Degradation(target)
        self._degraded: tuple[str, ...] = ()
        self._clock = loop_clock()
        self._started_at = self._clock()
        self._waste = Waste(self._started_at)

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Take an exchange that has ended into account."""
        if exchange.is_chat:
            self._degradation.observe(exchange, timings)
            self._waste.observe(exchange)

    def report(self) -> tuple[int, dict[str, object]]:
        """The status and the body of an answer to who asks for it."""
        draining = self._is_draining()
        report: dict[str, object] = {
            "status": "draining" if draining else "healthy",
            "service": "cerebras-proxy",
            "version": VERSION,
            "uptime_seconds": round(self._clock() - self._started_at, 3),
        }
        if self._degraded:
            report["degraded"] = self._degraded
        if self._circuit is not None:
            report["upstream_circuit"] = self._circuit.state
        if self._slot is not None:
            scoreboard = self._slot.scoreboard
            report["workers"] = {"up": scoreboard.up, "configured": scoreboard.workers}
        return (503 if draining else 200), report

    def look(self) -> None:
        """Tell log and metrics what has changed since the last look."""
        now = self._degradation.reasons(self._clock())
        for reason in sorted(set(now) - set(self._degraded)):
            self._logs.event("warning", "Service degraded", reason=reason)
        for reason in sorted(set(self._degraded) - set(now)):
            self._logs.event("info", "Service recovered", reason=reason)
        self._degraded = now
        self._metrics.set_degraded(now)
        wasted = self._waste.look(self._clock())
        if wasted is not None:
            text = "Most of the tokens reserved are not used: a setting would have fewer reserved"
            self._logs.event("warning", text, **wasted._asdict())
