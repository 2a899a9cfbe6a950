"""What is not used is not loaded; what is, is there in whatever way it is asked for."""

import subprocess
import sys

import pytest

USES = [
    "import trio; print(trio.run.__module__)",
    "import trio.testing; print(trio.testing.MockClock.__name__)",
    "import trio.lowlevel; from trio import run; print(run.__name__)",
    "from trio import run; print(run.__name__)",
    "import anyio; print(anyio.run(anyio.sleep, 0, backend='trio'))",
    "import httpcore; httpcore.AsyncConnectionPool(); import trio; print(trio.Event.__name__)",
]


def run(program: str, first: str = "") -> str:
    """What a program prints that begins with our import, or with something before that, in a
    process of its own."""
    whole = f"{first}\nimport sys, ape_cerebras\n{program}"
    command = (sys.executable, "-W", "error", "-c", whole)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_runs_on_asyncio_does_not_load_trio() -> None:
    serving = (
        "from ape_cerebras.__main__ import main\n"
        "try: main(['check'])\n"
        "finally: print([name for name in sys.modules if name.startswith('trio.')])"
    )
    assert run(serving).endswith("[]\n")
    assert run("print([name for name in sys.modules if name.startswith('trio')])") == "['trio']\n"


@pytest.mark.parametrize("use", USES)
def test_it_is_loaded_by_its_first_use(use: str) -> None:
    assert run(use).strip()


def test_what_it_does_not_have_it_does_not_have() -> None:
    said = run(
        "import trio\n"
        "for _ in range(2):\n"
        "    try: trio.nothing_like_it\n"
        "    except AttributeError as error: print(error.name)\n"
        "try: from trio import nothing_like_it\n"
        "except ImportError as error: print(error.name)"
    )
    assert said.split() == ["nothing_like_it", "nothing_like_it", "trio"]


def test_what_was_loaded_before_stays_as_it_is() -> None:
    said = run("import trio; print(trio.run is before)", first="import trio; before = trio.run")
    assert said == "True\n"


def test_a_proxy_loads_nothing_of_the_stand_in() -> None:
    program = (
        "from ape_cerebras.__main__ import main\n"
        "print([name for name in sys.modules if 'simulat' in name or 'selfcheck' in name])"
    )
    assert run(program) == "[]\n"
