"""SIGHUP while it is held."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys
import anyio
from ape_cerebras.process.signals import at_each_sighup, ending_signals, hold_sighup

signal.signal(signal.SIGHUP, getattr(signal, sys.argv[2]))
hold_sighup()
os.kill(os.getpid(), signal.SIGHUP)  # before anybody listens
assert signal.SIGHUP not in ending_signals(sighup_held=True)

async def main():
    done = []

    async def work():
        done.append(len(done))
        print("read")
        if len(done) == 1:
            os.kill(os.getpid(), signal.SIGHUP)
        else:
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(at_each_sighup, work)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("before", ["SIG_DFL", "SIG_IGN"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_early_sighup_is_kept_and_does_not_end_the_process(backend: str, before: str) -> None:
    ran = subprocess.run(
        (sys.executable, "-c", SCRIPT, backend, before),
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "read\nread\n"), ran.stderr
