"""Whether the times this proxy records are true, found out on the machine it runs on.

Streams with known delays go through a proxy to a simulated API, one at a time: first with nothing
else to do, then beside as many others as keep the proxy's event loop busy. Each time that the
proxy's log tells is compared with what really happened: the simulator's word for when a request
reached its socket and tokens left it, and the client's for what it saw. All that once with the
kernel's stamps, and once without.

A process that was set aside in the middle of a write cannot say when that took effect. Streams of
which the simulator or the client know less than the comparison needs are played again.
"""

import math
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    certificates,
    pin,
    play,
    running,
)

__all__ = ("PHASES", "PhaseResult", "Phase", "checked", "selfcheck", "table", "within")

_BUSY = 0.9  # of a core
_LOAD = "ttft=0.02, rate=1600, tokens=8000, tokens_per_chunk=8"  # 200 events a second, for 5 s
_FEW_STREAMS = 4
_SETTLE_SECONDS, _LOOK_SECONDS = 0.3, 1.0
_CERTAIN = 0.00005  # seconds, either way
_LEFT_OUT_AT_MOST = 10  # for each stream that is wanted
_PROXY_CORE, _OTHER_CORE = 0, 1
_CELL = "{:>18}"
_COMPARED = ("upstream_ttft", "ttfb", "last_token", "ttft", "total_time")


class Phase(NamedTuple):
    """What is the same for all streams of a comparison."""

    busy: bool
    stamps: bool


PHASES = tuple(Phase(busy, stamps) for busy in (False, True) for stamps in (True, False))


class PhaseResult(NamedTuple):
    """Of one phase: how many streams were to be compared; errors by time and TTFTs added, in
    seconds; how many streams were too uncertain for that; the share of a core that the proxy used.
    """

    wanted: int
    errors: dict[str, list[float]]
    added: list[float]
    left_out: int
    used: float


def _errors(line: dict[str, Any], truth: dict[str, Any], seen: ClientTimings) -> dict[str, float]:
    """How far what the proxy's line tells is from what happened, by time."""
    last_token = line["upstream_ttft_seconds"] + line["generation_seconds"]
    return {
        "upstream_ttft": line["upstream_ttft_seconds"] - truth["ttft_seconds"],
        "ttfb": line["ttfb_seconds"] - truth["ttfb_seconds"],
        "last_token": last_token - truth["last_token_seconds"],
        "ttft": line["ttft_seconds"] - seen.ttft,
        "total_time": line["total_time_seconds"] - seen.total,
    }


def _simulation(chance: random.Random) -> str:
    """Of every second stream the head and the role event come before the first token: a proxy that
    took one of these for it would be found out."""
    ttft, rate = chance.uniform(0.005, 0.04), chance.uniform(800, 2000)
    lead = chance.choice((0.0, chance.uniform(0.001, 0.004)))
    times = f"ttft={ttft:.6f}, head_lead={lead:.6f}, rate={rate:.3f}"
    return f"{times}, tokens=48, tokens_per_chunk=8"


async def _find(
    proxy: ServerProcess,
    simulator: ServerProcess,
    streams: int,
    *,
    busy: bool,
    tick: Callable[[], object],
) -> PhaseResult:
    """Play streams until ``streams`` of them could be compared, or too many could not; ``tick`` is
    called for each of ``streams``, in the end also for those that were given up."""
    async with anyio.create_task_group() as tasks:
        if busy:
            await _keep_busy(LoadGenerator(tasks, proxy.port, _LOAD), proxy)
        began_at, used = anyio.current_time(), proxy.cpu_seconds()
        findings = await _compare(proxy, simulator, streams, tick)
        share = (proxy.cpu_seconds() - used) / (anyio.current_time() - began_at)
        tasks.cancel_scope.cancel()
    return findings._replace(used=share)


async def _compare(
    proxy: ServerProcess, simulator: ServerProcess, streams: int, tick: Callable[[], object]
) -> PhaseResult:
    findings = PhaseResult(streams, {name: [] for name in _COMPARED}, [], 0, 0.0)
    left_out = 0
    chance = random.Random(0)  # noqa: S311 - the same delays for everybody
    async with await connect_tcp("127.0.0.1", proxy.port) as stream:
        while len(findings.added) < streams and left_out < _LEFT_OUT_AT_MOST * streams:
            trace_id = token_hex(16)
            seen = await play(stream, _simulation(chance), trace_id)
            line, truth = await proxy.line(trace_id), await simulator.line(trace_id)
            if max(truth["uncertain_seconds"], seen.uncertain) > _CERTAIN:
                left_out += 1
                continue
            for name, error in _errors(line, truth, seen).items():
                findings.errors[name].append(error)
            findings.added.append(seen.ttft - truth["ttft_seconds"])
            tick()
    for _ in range(streams - len(findings.added)):
        tick()
    return findings._replace(left_out=left_out)


async def _keep_busy(load: LoadGenerator, proxy: ServerProcess) -> None:
    """Add streams until the proxy uses as much of a core as it should, or gets no more of one."""
    streams, share, before = _FEW_STREAMS, 0.0, -1.0
    while share < _BUSY - 0.02 and share > before:
        load.set(streams)
        await anyio.sleep(_SETTLE_SECONDS)
        used = proxy.cpu_seconds()
        await anyio.sleep(_LOOK_SECONDS)
        before, share = share, (proxy.cpu_seconds() - used) / _LOOK_SECONDS
        # A little less than would do if each cost the same: together they cost less.
        streams += max(1, round(0.8 * streams * (_BUSY / max(share, 0.01) - 1)))


async def selfcheck(backend: str, streams: int, *, tls: bool) -> dict[Phase, PhaseResult]:
    """Compare ``streams`` streams in each phase. Raises ImportError where ``tls`` needs a package
    that is not there."""
    pin(0, _OTHER_CORE)
    found = {}
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(streams * len(PHASES)))
        folder = stack.enter_context(TemporaryDirectory())
        files = certificates(folder) if tls else None
        flags = ("--certificate", files.chain, "--private-key", files.key) if files else ()
        async with running(
            "simulate", *flags, "--port", "0", "--backend", backend, core=_OTHER_CORE
        ) as simulator:
            for phase in PHASES:
                settings = {
                    "CEREBRAS_API_KEY": "none",
                    "CEREBRAS_BASE_URL": simulator.address,
                    "HOST": "127.0.0.1",
                    "PORT": "0",
                    "BACKEND": backend,
                    "KERNEL_STAMPS": "on" if phase.stamps else "off",
                    **({"SSL_CERT_FILE": files.authority} if files else {}),
                }
                async with running("serve", core=_PROXY_CORE, **settings) as proxy:
                    found[phase] = await _find(
                        proxy, simulator, streams, busy=phase.busy, tick=progress
                    )
    return found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """A bar where there is a terminal and what draws it; else a line for every tenth."""
    if sys.stderr.isatty() and find_spec("tqdm") is not None:
        from tqdm import tqdm

        with tqdm(total=total, unit="stream", leave=False) as bar:
            yield bar.update
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"{done} of {total} streams", file=sys.stderr, flush=True)

    yield tick


def _percentile(values: list[float], share: float) -> float:
    """The smallest value that at least that share of them does not exceed; nan of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def checked(found: dict[Phase, PhaseResult]) -> bool:
    """Whether in each phase at least half of the streams that were to be compared could be."""
    return all(2 * len(each.added) >= each.wanted for each in found.values())


def within(found: dict[Phase, PhaseResult], limit: float) -> bool:
    """Whether, with the kernel's stamps, 99 of 100 errors of ``upstream_ttft`` are at most
    ``limit`` seconds, idle and busy; not where that was not checked."""
    worst = [
        _percentile([abs(error) for error in each.errors["upstream_ttft"]], 0.99)
        for phase, each in found.items()
        if phase.stamps
    ]
    return checked(found) and all(error <= limit for error in worst)


def table(found: dict[Phase, PhaseResult]) -> str:
    """What was found, for people: medians and 99th percentiles in milliseconds."""
    rows = [
        ("event loop", ["busy" if phase.busy else "idle" for phase in found]),
        ("stamp", ["kernel" if phase.stamps else "read" for phase in found]),
        ("milliseconds", ["p50     p99"] * len(found)),
    ]
    for name in _COMPARED:
        errors = [[abs(error) for error in each.errors[name]] for each in found.values()]
        rows.append((f"error of {name}", [_pair(each) for each in errors]))
    rows.append(("TTFT added", [_pair(each.added) for each in found.values()]))
    rows.append(("share of a core", [f"{each.used:.2f}" for each in found.values()]))
    rows.append(("left out, too uncertain", [str(each.left_out) for each in found.values()]))
    return "\n".join(f"{name:24}" + "".join(map(_CELL.format, cells)) for name, cells in rows)


def _pair(values: list[float]) -> str:
    return f"{_percentile(values, 0.5) * 1000:.3f} {_percentile(values, 0.99) * 1000:7.3f}"
