"""A check that the times this proxy records are true, on the machine it runs on.

Streams with known delays go through a proxy to the simulator, one at a time: first alone, then
beside as many others as keep the proxy's event loop busy; once with kernel timestamps, once
without; and, where that is wanted, while other processes spin on every core. Each time in the
proxy's log is compared with the ground truth: the simulator reports when a request reached its
socket and tokens left it, and the client when bytes reached its own.

A process that was preempted in the middle of a write does not know when the write took effect.
Streams for which simulator or client are less certain than the comparison needs are played again.
The proxy says in its line how uncertain it is. On an overloaded machine an error counts by what it
exceeds that, everywhere else in full.
"""

import math
import random
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import anyio

from ..upstream.connect import connect_tcp
from .selfcheck_rig import (
    ClientTimings,
    LoadGenerator,
    ServerProcess,
    issue_certificates,
    overloaded,
    pin,
    play,
    running,
)

__all__ = (
    "OVERLOAD_PHASES",
    "PHASES",
    "Phase",
    "PhaseResult",
    "compared_enough",
    "is_within",
    "render_table",
    "selfcheck",
)

_BUSY = 0.9  # of a core
_LOAD = "ttft=0.02, rate=1600, tokens=8000, tokens_per_chunk=8"  # 200 events a second, for 5 s
_FIRST_LOAD, _MAX_LOAD = 4, 500  # streams; on a busy machine the proxy never gets its share
_SETTLE_SECONDS, _MEASURE_SECONDS = 0.3, 1.0
_MAX_UNCERTAIN = 0.00005  # seconds, either way
_MAX_DISCARDED = 10  # for each stream that is to be compared
_PROXY_CORE, _OTHER_CORE = 0, 1
_SPINNING = 5  # processes on each core
_BESIDE_OVERLOAD = 4  # streams that are in flight beside: a proxy with little to do is hardly hit
_CELL = "{:>18}"
_COMPARED = ("upstream_ttft", "ttfb", "last_token", "ttft", "total_time")


class Phase(NamedTuple):
    """The conditions that all streams of a comparison share."""

    busy: bool
    timestamps: bool
    overloaded: bool = False


PHASES = tuple(Phase(busy, timestamps) for busy in (False, True) for timestamps in (True, False))
OVERLOAD_PHASES = tuple(Phase(busy, timestamps=True, overloaded=True) for busy in (False, True))


class PhaseResult(NamedTuple):
    """The result of one phase: streams to be compared; errors by time, and TTFTs added, in seconds;
    streams discarded as too uncertain; the share of a core that the proxy used. ``uncertain``: the
    uncertainty that each line tells, 0 for none."""

    wanted: int
    errors: dict[str, list[float]]
    added: list[float]
    discarded: int
    cpu_share: float
    uncertain: list[float]


class _Progress:
    """A progress bar if there is a terminal and tqdm, else a line for each tenth."""

    def __init__(self, total: int, stack: ExitStack) -> None:
        self._total, self._done, self._bar = total, 0, None
        if sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = stack.enter_context(tqdm(total=total, unit="stream", leave=False))

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.update()
            return
        self._done += 1
        if self._done * 10 // self._total > (self._done - 1) * 10 // self._total:
            print(f"{self._done} of {self._total} streams", file=sys.stderr, flush=True)


async def selfcheck(
    backend: str, streams: int, *, tls: bool, overload: bool
) -> dict[Phase, PhaseResult]:
    """Compare ``streams`` streams in each phase, with ``overload`` in two more. Raises ImportError
    if ``tls`` needs a package that is not installed, ProcessEnded, TimeoutError."""
    pin(0, _OTHER_CORE)
    results = {}
    phases = (*PHASES, *(OVERLOAD_PHASES if overload else ()))
    with ExitStack() as stack:
        progress = _Progress(streams * len(phases), stack)
        folder = stack.enter_context(TemporaryDirectory())
        files = issue_certificates(folder) if tls else None
        flags = ("--certificate", files.chain, "--private-key", files.key) if files else ()
        async with running(
            "simulate", *flags, "--port", "0", "--backend", backend, core=_OTHER_CORE
        ) as simulator:
            for phase in phases:
                settings = {
                    "CEREBRAS_API_KEY": "csk-of-no-account",
                    "CEREBRAS_BASE_URL": simulator.address,
                    "HOST": "127.0.0.1",
                    "PORT": "0",
                    "BACKEND": backend,
                    "KERNEL_STAMPS": "on" if phase.timestamps else "off",
                    **({"SSL_CERT_FILE": files.authority} if files else {}),
                }
                async with running("serve", core=_PROXY_CORE, **settings) as proxy:
                    with overloaded(_SPINNING if phase.overloaded else 0):
                        results[phase] = await _run_phase(
                            proxy, simulator, streams, progress, phase
                        )
    return results


async def _run_phase(
    proxy: ServerProcess,
    simulator: ServerProcess,
    streams: int,
    progress: _Progress,
    phase: Phase,
) -> PhaseResult:
    """Play streams until ``streams`` of them could be compared, or too many were discarded."""
    errors: dict[str, list[float]] = {name: [] for name in _COMPARED}
    added: list[float] = []
    uncertain: list[float] = []
    discarded = 0
    chance = random.Random(0)  # noqa: S311 - the same delays in every run
    async with anyio.create_task_group() as tasks:
        load = LoadGenerator(tasks, proxy.port, _LOAD)
        if phase.busy and phase.overloaded:
            load.set_streams(_BESIDE_OVERLOAD)
        elif phase.busy:
            await _keep_busy(load, proxy)
        began_at, used = anyio.current_time(), proxy.cpu_seconds()
        async with await connect_tcp("127.0.0.1", proxy.port) as stream:
            while len(added) < streams and discarded < _MAX_DISCARDED * streams:
                trace_id = token_hex(16)
                seen = await play(stream, _random_options(chance), trace_id)
                line, truth = await proxy.line(trace_id), await simulator.line(trace_id)
                if max(truth["uncertain_seconds"], seen.uncertain) > _MAX_UNCERTAIN:
                    discarded += 1
                    continue
                for name, error in _errors(line, truth, seen).items():
                    errors[name].append(error)
                added.append(seen.ttft - truth["ttft_seconds"])
                uncertain.append(line.get("uncertainty_seconds", 0.0))
                progress.advance()
        share = (proxy.cpu_seconds() - used) / (anyio.current_time() - began_at)
        tasks.cancel_scope.cancel()
    for _ in range(streams - len(added)):
        progress.advance()
    return PhaseResult(streams, errors, added, discarded, share, uncertain)


async def _keep_busy(load: LoadGenerator, proxy: ServerProcess) -> None:
    """Add streams until the proxy uses the wanted share of a core, or its share stops growing."""
    streams, share, before = _FIRST_LOAD, 0.0, -1.0
    while share < _BUSY - 0.02 and share > before and streams <= _MAX_LOAD:
        load.set_streams(streams)
        await anyio.sleep(_SETTLE_SECONDS)
        used = proxy.cpu_seconds()
        await anyio.sleep(_MEASURE_SECONDS)
        before, share = share, (proxy.cpu_seconds() - used) / _MEASURE_SECONDS
        # A little less than if all streams cost the same: together they cost less.
        streams += max(1, min(3 * streams, round(0.8 * streams * (_BUSY / max(share, 0.01) - 1))))


def _random_options(chance: random.Random) -> str:
    """Options of a stream. In every second one, head and role event precede the first token, so
    that a proxy that took one of them for the token would be found out."""
    ttft, rate = chance.uniform(0.005, 0.04), chance.uniform(800, 2000)
    lead = chance.choice((0.0, chance.uniform(0.001, 0.004)))
    times = f"ttft={ttft:.6f}, head_lead={lead:.6f}, rate={rate:.3f}"
    return f"{times}, tokens=48, tokens_per_chunk=8"


def _errors(line: dict[str, Any], truth: dict[str, Any], seen: ClientTimings) -> dict[str, float]:
    """The error of each time in the proxy's log line, in seconds."""
    last_token = line["upstream_ttft_seconds"] + line["generation_seconds"]
    return {
        "upstream_ttft": line["upstream_ttft_seconds"] - truth["ttft_seconds"],
        "ttfb": line["ttfb_seconds"] - truth["ttfb_seconds"],
        "last_token": last_token - truth["last_token_seconds"],
        "ttft": line["ttft_seconds"] - seen.ttft,
        "total_time": line["total_time_seconds"] - seen.total,
    }


def _percentile(values: list[float], share: float) -> float:
    """The smallest value that at least that share of them does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def compared_enough(results: dict[Phase, PhaseResult]) -> bool:
    """Whether at least half of the wanted streams were compared in each phase."""
    return all(2 * len(each.added) >= each.wanted for each in results.values())


def is_within(results: dict[Phase, PhaseResult], limit: float) -> bool:
    """Whether 99 of 100 errors of ``upstream_ttft`` with kernel timestamps are at most ``limit``
    seconds, idle and busy; on an overloaded machine beyond what the lines tell. False if too few
    streams were compared."""
    worst = [
        _percentile(_beyond(phase, each), 0.99)
        for phase, each in results.items()
        if phase.timestamps
    ]
    return compared_enough(results) and all(error <= limit for error in worst)


def _beyond(phase: Phase, result: PhaseResult) -> list[float]:
    """The errors of ``upstream_ttft``; of an overloaded machine without what the lines tell."""
    errors = [abs(error) for error in result.errors["upstream_ttft"]]
    if not phase.overloaded:
        return errors
    told = zip(errors, result.uncertain, strict=True)
    return [max(0.0, error - uncertain) for error, uncertain in told]


def render_table(results: dict[Phase, PhaseResult]) -> str:
    """A table for people: medians and 99th percentiles in milliseconds."""
    rows = [
        ("machine", ["overloaded" if phase.overloaded else "free" for phase in results]),
        ("event loop", ["busy" if phase.busy else "idle" for phase in results]),
        ("timestamp", ["kernel" if phase.timestamps else "read" for phase in results]),
        ("milliseconds", ["p50     p99"] * len(results)),
    ]
    for name in _COMPARED:
        errors = [[abs(error) for error in each.errors[name]] for each in results.values()]
        rows.append((f"error of {name}", [_pair(each) for each in errors]))
        if name == "upstream_ttft":
            rows.append(
                (" beyond what lines tell", [_pair(_beyond(*each)) for each in results.items()])
            )
    rows.append(("lines that tell it", [_count(each.uncertain) for each in results.values()]))
    rows.append(("TTFT added", [_pair(each.added) for each in results.values()]))
    rows.append(("share of a core", [f"{each.cpu_share:.2f}" for each in results.values()]))
    rows.append(("discarded, uncertain", [str(each.discarded) for each in results.values()]))
    return "\n".join(f"{name:24}" + "".join(map(_CELL.format, cells)) for name, cells in rows)


def _count(uncertain: list[float]) -> str:
    return str(sum(map(bool, uncertain)))


def _pair(values: list[float]) -> str:
    return f"{_percentile(values, 0.5) * 1000:.3f} {_percentile(values, 0.99) * 1000:7.3f}"
