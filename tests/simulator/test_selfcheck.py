"""The self-check: its comparison, its conclusion, and whole runs."""

import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketListener
from server_process import run, start

from ape_cerebras.commands import run_command
from ape_cerebras.config.values import BACKENDS
from ape_cerebras.simulator import command, selfcheck_rig
from ape_cerebras.simulator.selfcheck import (
    OVERLOAD_PHASES,
    PHASES,
    Phase,
    PhaseResult,
    _errors,
    _random_options,
    compared_enough,
    is_within,
    render_table,
)
from ape_cerebras.simulator.selfcheck_rig import ClientTimings, LoadGenerator, ProcessEnded, running

NAMES = ("upstream_ttft", "ttfb", "last_token", "ttft", "total_time")
SLOW = 120.0  # seconds until a run is given up


def result(
    upstream_ttft: list[float], wanted: int = 0, uncertain: list[float] | None = None
) -> PhaseResult:
    errors = dict.fromkeys(NAMES, upstream_ttft)
    added = [abs(error) for error in upstream_ttft]
    told = uncertain or [0.0] * len(added)
    return PhaseResult(wanted or len(added), errors, added, 3, 0.5, told)


def test_each_time_is_compared_with_the_ground_truth() -> None:
    line = {
        "upstream_ttft_seconds": 0.5,
        "ttfb_seconds": 0.4,
        "generation_seconds": 2.0,
        "ttft_seconds": 0.75,
        "total_time_seconds": 3.0,
    }
    truth = {"ttfb_seconds": 0.125, "ttft_seconds": 0.25, "last_token_seconds": 2.0}
    assert _errors(line, truth, ClientTimings(0.5, 3.25, 0.0)) == {
        "upstream_ttft": 0.25,
        "ttfb": pytest.approx(0.275),
        "last_token": 0.5,
        "ttft": 0.25,
        "total_time": -0.25,
    }


def test_the_limit_applies_to_kernel_timestamps_idle_and_busy() -> None:
    good, early, late = result([0.0001] * 100), result([-0.01] * 100), result([0.01] * 100)
    for phase in PHASES:
        for wrong in (early, late):
            found = dict.fromkeys(PHASES, good) | {phase: wrong}
            assert is_within(found, 0.001) is not phase.timestamps
    assert is_within(dict.fromkeys(PHASES, good), 0.0001)


def test_on_an_overloaded_machine_an_error_counts_that_its_line_does_not_tell() -> None:
    late = [0.0] * 90 + [0.05] * 10
    told, too_little = result(late, uncertain=late), result(late, uncertain=[0.0] * 95 + [0.06] * 5)
    for phase in OVERLOAD_PHASES:
        assert phase.timestamps
        assert is_within({phase: told}, 0.0005)
        assert not is_within({phase: too_little}, 0.0005)
        assert not is_within({phase: result(late)}, 0.0005)
    assert not is_within({Phase(busy=True, timestamps=True): told}, 0.0005)


def test_one_percent_may_be_worse_and_an_empty_result_fails() -> None:
    phase = Phase(busy=False, timestamps=True)
    assert is_within({phase: result([0.0] * 99 + [1.0])}, 0.001)
    assert not is_within({phase: result([0.0] * 98 + [1.0] * 2)}, 0.001)
    assert not is_within({phase: result([])}, 0.001)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_with_too_few_compared_streams_fails(phase: Phase) -> None:
    good = dict.fromkeys(PHASES, result([0.0] * 100))
    half, fewer = (good | {phase: result([0.0] * count, 100)} for count in (50, 49))
    assert compared_enough(half)
    assert is_within(half, 0.001)
    assert not compared_enough(fewer)
    assert not is_within(fewer, 0.001)


def test_the_command_reports_too_few_compared_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def few(
        backend: str, streams: int, *, tls: bool, overload: bool
    ) -> dict[Phase, PhaseResult]:
        return dict.fromkeys(PHASES, result([0.0], streams))

    monkeypatch.setattr(command, "selfcheck", few)
    assert run_command(["selfcheck"]) == 1
    assert "0.5 ms: not checked, because too few streams could be" in capsys.readouterr().out


def test_taking_the_head_or_role_for_a_token_fails_the_check() -> None:
    chance = random.Random(0)
    leads = [
        float(_random_options(chance).partition("head_lead=")[2].split(",")[0]) for _ in range(20)
    ]
    assert 0.0 in leads
    assert not is_within(dict.fromkeys(PHASES, result(leads)), 0.0005)


def test_the_table_is_in_milliseconds() -> None:
    text = render_table({Phase(busy=True, timestamps=True): result([0.0001] * 98 + [-0.002] * 2)})
    rows = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert rows["event loop"] == ["busy"]
    assert rows["timestamp"] == ["kernel"]
    for name in ("error of upstream_ttft", "error of ttft", "TTFT added"):
        assert rows[name] == ["0.100", "2.000"]
    assert rows["machine"] == ["free"]
    assert rows["beyond what lines tell"] == ["0.100", "2.000"]
    assert rows["lines that tell it"] == ["0"]
    assert rows["share of a core"] == ["0.50"]
    assert rows["discarded, uncertain"] == ["3"]


# The command, with a less busy event loop and less time to find the number of streams for it, which
# on a machine without a free core would be the highest; each phase starts a proxy of its own, 0.8 s
# of CPU, so a run has two of the four. What spins beside is the next test's.
IN_A_HURRY = """
import sys
from ape_cerebras.simulator import selfcheck, selfcheck_rig
less = {"_BUSY": 0.3, "_MAX_LOAD": 16, "_SETTLE_SECONDS": 0.1, "_MEASURE_SECONDS": 0.2}
less |= {"_SPINNING": 1, "_BESIDE_OVERLOAD": 1}
for name, value in less.items():
    assert getattr(selfcheck, name) > value
    setattr(selfcheck, name, value)
selfcheck.PHASES = selfcheck.PHASES[1:3] if "--tls" in sys.argv else selfcheck.PHASES[::3]
pause = "__import__('time').sleep(0.01)"
selfcheck_rig._SPIN = selfcheck_rig._SPIN.replace("100_000", "1").replace("pass", pause)
assert selfcheck_rig._SPIN.count("range(1)") == selfcheck_rig._SPIN.count(pause) == 1
"""


@pytest.mark.parametrize(
    ("arguments", "status", "loops", "stamps", "machines"),
    [
        (
            ("--backend", "asyncio", "--limit", "1e9", "--overload"),
            *(0, "idle busy idle busy", "kernel read kernel kernel"),
            "free free overloaded overloaded",
        ),
        (
            ("--backend", "trio", "--tls", "--limit", "0"),
            *(1, "idle busy", "read kernel", "free free"),
        ),
    ],
)
def test_a_whole_run_prints_its_table(
    arguments: tuple[str, ...], status: int, loops: str, stamps: str, machines: str
) -> None:
    phases = len(loops.split())
    done = run("selfcheck", "--streams", "3", *arguments, timeout=SLOW, fault=IN_A_HURRY)
    assert done.returncode == status, done.stderr
    rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()}
    assert rows.get("event loop") == loops.split(), done.stderr
    assert rows["timestamp"] == stamps.split()
    assert rows["machine"] == machines.split()
    for name in NAMES:
        assert all(math.isfinite(float(cell)) for cell in rows[f"error of {name}"])
    assert all(float(cell) > 0 for cell in rows["share of a core"])
    assert ("does not hold" in done.stdout) == bool(status)
    assert f"{3 * phases} of {3 * phases} streams" in done.stderr


def test_an_overload_ends_with_its_block_and_with_its_process() -> None:
    program = """
import os, sys
from ape_cerebras.simulator import selfcheck_rig
with selfcheck_rig.overloaded(2):
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    print(len(selfcheck_rig._cores()), children, flush=True)
    sys.stdin.readline() or os._exit(1)
"""
    for line, status in (("go on", 0), ("", 1)):
        with subprocess.Popen(
            (sys.executable, "-c", program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            cores, *pids = map(int, process.stdout.readline().split())
            assert len(pids) == 2 * cores
            # The spinning processes have the other ends of these pipes too: this waits for them.
            assert process.communicate(line, timeout=SLOW) == ("", "")
            assert process.returncode == status
        for pid in pids if status == 0 else ():  # else it is not its parent who collects them
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@pytest.mark.anyio
async def test_the_load_has_the_requested_number_of_streams() -> None:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listening,
        anyio.create_task_group() as tasks,
    ):
        [listener] = listening.listeners
        assert isinstance(listener, SocketListener)
        load = LoadGenerator(tasks, listener.extra(SocketAttribute.local_port), "")
        load.set_streams(2)
        streams = [await listener.accept() for _ in range(2)]
        for stream in streams:
            assert (await stream.receive()).startswith(b"POST /v1/chat/completions ")
        load.set_streams(0)
        for stream in streams:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.aclose()


@pytest.mark.anyio
async def test_a_process_that_has_ended_is_not_waited_for() -> None:
    began_at = anyio.current_time()
    with pytest.RaisesGroup(
        pytest.RaisesExc(ProcessEnded, match="no such address"), flatten_subgroups=True
    ):
        async with running("simulate", "--host", "no-such-host.invalid", core=0):
            pytest.fail("it cannot listen")
    assert anyio.current_time() - began_at < SLOW / 4


@pytest.mark.anyio
async def test_a_process_that_cannot_be_pinned_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []

    def fail(pid: int, core: int) -> None:
        started.append(pid)
        raise PermissionError

    monkeypatch.setattr(selfcheck_rig, "pin", fail)
    with pytest.raises(PermissionError):
        async with running("simulate", "--port", "0", core=0):
            pytest.fail("it was not given its core")
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


# Both signals are received by the same call; SIGINT is the one that every loop has a way with.
@pytest.mark.parametrize(
    ("backend", "number"),
    [("asyncio", signal.SIGTERM), *((backend, signal.SIGINT) for backend in BACKENDS)],
)
def test_a_signal_ends_the_check_and_its_processes(backend: str, number: int) -> None:
    flags = ("--streams", "20", "--backend", backend)
    pipe = subprocess.PIPE
    with start("selfcheck", *flags, stdout=pipe, stderr=pipe) as process:
        assert process.stderr is not None
        process.stderr.readline()  # a tenth of the streams has run
        of_threads = Path(f"/proc/{process.pid}/task").glob("*/children")
        started = [int(pid) for each in of_threads for pid in each.read_text().split()]
        process.send_signal(number)
        output, errors = process.communicate(timeout=SLOW)
    assert len(started) == 2
    assert (process.returncode, output, errors) == (1, b"", b"")
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_outside_linux_the_command_line_works_without_the_check() -> None:
    program = """
import os, select, sys
del os.sched_getaffinity, os.sched_setaffinity, select.epoll
from ape_cerebras.__main__ import main
import ape_cerebras.commands  # libraries of this system's own, before it calls itself another
sys.platform = "darwin"
sys.exit(main(["selfcheck"]))
"""
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Linux" in done.stderr
