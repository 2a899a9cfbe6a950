"""What a service on asyncio has loaded once it has served: nothing of rooms, extras and codecs that
it does not use. Each would cost every start, and memory for as long as the process runs."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys

import anyio

from ape_cerebras.__main__ import main
from ape_cerebras.commands import run_command
from ape_cerebras.config.config import Config
from ape_cerebras.config.keys import UpstreamKey
from ape_cerebras.config.values import Origin
from ape_cerebras.server import serve

async def serve_one() -> None:
    config = Config(
        cerebras_api_key=UpstreamKey("csk-0123456789"),
        cerebras_base_url=Origin("http", "127.0.0.1", 1),
        host="127.0.0.1",
        port=0,
    )
    async with anyio.create_task_group() as tasks:
        proxy = await tasks.start(lambda **status: serve(config, write_line=len, **status))
        async with await anyio.connect_tcp(*proxy.addresses[0]) as client:
            await client.send(b"GET /v1/models HTTP/1.0\\r\\n\\r\\n")
            while True:
                try:
                    await client.receive()
                except anyio.EndOfStream:
                    break
        tasks.cancel_scope.cancel()

anyio.run(serve_one)
print(*sys.modules)
"""

# What commands have loaded: a service when its event loop is about to begin, the others at their
# end. Each is a fork of a process that has loaded what is common to all.
_COMMANDS = """
import os
import sys

from ape_cerebras import commands

def run(work, backend, **_):
    return 0

commands.run_until_stopped = run
for command in sys.argv[1:]:
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, command
        continue
    status = commands.run_command(command.split())
    print(f"{command}:", status, *sys.modules)
    sys.stdout.flush()
    if command.startswith("serve"):
        import trio  # which still can be
    os._exit(0)
"""
_BACKENDS = ("asyncio", "trio", "uvloop")
_SHORT = ("health --port 1", "check", "settings")

UNUSED = {
    # Rooms and modules of other commands and settings.
    "ape_cerebras.limits.redis_store",
    "ape_cerebras.process.workers",
    "ape_cerebras.report",
    "ape_cerebras.simulator",
    "ape_cerebras.telemetry.traces",
    # The extras, which the tests have installed.
    *("boost_histogram", "matplotlib", "numpy", "opentelemetry", "redis", "rich", "uvloop"),
    # 284 KB: a host's name that goes to the resolver as `str` is encoded by this codec.
    "encodings.idna",
    "tomllib",
}


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    command = (sys.executable, "-W", "error", "-c", _PROGRAM)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_a_service_loads_nothing_that_it_does_not_use(loaded: set[str]) -> None:
    assert "ape_cerebras.upstream.connection" in loaded
    assert not loaded & UNUSED


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, set[str]]:
    """What each command has loaded, and its status among it."""
    commands = (*_SHORT, *(f"serve --backend {name} --demo" for name in _BACKENDS))
    program = (sys.executable, "-W", "error", "-c", _COMMANDS, *commands)
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    return {command: set(loaded.split()) for command, _, loaded in lines if command in commands}


@pytest.mark.parametrize("backend", _BACKENDS)
def test_the_command_loads_trio_only_to_run_on_it(
    backend: str, loaded_by: dict[str, set[str]]
) -> None:
    loaded = loaded_by[f"serve --backend {backend} --demo"]
    assert {"0", "ape_cerebras.server", "httpcore"} <= loaded
    assert ("trio" in loaded) == (backend == "trio")


@pytest.mark.parametrize("arguments", _SHORT)
def test_a_short_command_loads_nothing_of_what_serves(
    arguments: str, loaded_by: dict[str, set[str]]
) -> None:
    loaded = loaded_by[arguments]
    assert "ape_cerebras.commands" in loaded
    assert not loaded & {"ape_cerebras.server", "httpcore", "trio", "uvloop"}
