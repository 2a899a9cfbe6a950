"""Every test marked ``anyio`` runs on asyncio and on trio; so does every process that the tests
of a module share."""

import gc
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from typing import Any, Literal

import key_leaks
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_process import CLIENT_KEY, Served, refusing_port, serving

from ape_cerebras.net.event_loop import ANYIO_BACKENDS
from ape_cerebras.net.timestamps import TIMESTAMP_SPACE, enable_timestamps, timestamp_in

pytest_plugins = "pytester"

# How long an example takes, or its generation, says something about the machine only.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, nohup starts its command with SIGHUP
    # ignored, and every process that a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(key_leaks)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without garbage collections: a fifth of its time, and they find nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@settings(max_examples=1, database=None)
@given(st.none())
def first_example(_: None) -> None:
    """Nothing but what Hypothesis does for it."""


def pytest_collection_finish() -> None:
    """Exempt what collection made, a million objects, from every later garbage collection: many
    tests run one. Hypothesis is loaded above: otherwise its plugin does it at the end, and takes
    the random generator of trio, frozen, for garbage; and it has had its first example, or on
    CPython 3.14 it would take its own for that."""
    first_example()
    gc.collect()
    gc.freeze()


LOOP_FIXTURES: dict[str, Literal["function", "module"]] = {
    "anyio_backend": "function",
    "backend": "module",
    "watched": "module",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "the event loops that tests run on, comma-separated: of asyncio, trio, uvloop"
    parser.addoption("--loops", default="asyncio,trio", help=text)
    text = "those that tests marked every_loop run on as well"
    parser.addoption("--more-loops", default="uvloop", help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    loops = metafunc.config.getoption("--loops").split(",")
    if metafunc.definition.get_closest_marker("every_loop"):
        more = metafunc.config.getoption("--more-loops").split(",")
        loops = list(dict.fromkeys(loops + more))
    for name, scope in LOOP_FIXTURES.items():
        if name in metafunc.fixturenames and not is_chosen(metafunc, name):
            metafunc.parametrize(name, loops, indirect=True, scope=scope)


def is_chosen(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether the test itself chooses its event loops."""
    named = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    return any(name in ([each] if isinstance(each, str) else each) for each in named)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests are marked ``loops_in_turn``, keep each of a test's cases on one loop, and the
    test on all: two cases that differ in one parameter by one place are on different ones. A test
    of one case stays on all."""
    turns = defaultdict[str, dict[pytest.Item, int]](dict)
    places = defaultdict[str, dict[str, dict[int, int]]](lambda: defaultdict(dict))
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if item.get_closest_marker("loops_in_turn") and values.keys() & LOOP_FIXTURES.keys():
            test = item.nodeid.partition("[")[0]
            known = [(places[test][name], id(value)) for name, value in values.items()]
            turns[test][item] = sum(of.setdefault(value, len(of)) for of, value in known)
    left_out = set()
    for test, cases in turns.items():
        loops = max(len(of) for name, of in places[test].items() if name in LOOP_FIXTURES)
        if len(cases) > loops:
            left_out |= {item for item, turn in cases.items() if turn % loops}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = (item for item in items if item not in left_out)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ANYIO_BACKENDS[request.param]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA) -> Iterator[str]:
    with authority.cert_pem.tempfile() as path:
        yield path


@pytest.fixture(scope="session")
def kernel_timestamps() -> Iterator[None]:
    """Kernel receive timestamps are on. The kernel begins a moment after a first socket has enabled
    them, and goes on for as long as there is such a socket."""
    if sys.platform != "linux":
        pytest.skip("only Linux has receive timestamps")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        assert enable_timestamps(theirs)
        for _ in range(1000):
            ours.send(b"a")
            if timestamp_in(theirs.recvmsg(1, TIMESTAMP_SPACE)[1]):
                break
        else:
            pytest.fail("the kernel sets no timestamps")
        yield


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loop(backend: str) -> tuple[str, dict[str, Any]]:
    """The same as anyio's arguments."""
    return ANYIO_BACKENDS[backend]


@pytest.fixture(scope="module")
def demo(backend: str) -> Iterator[Served]:
    """A process that serves the simulator to everybody."""
    with serving("serve", "--demo", BACKEND=backend, LOG_LEVEL="debug") as served:
        yield served


@pytest.fixture(scope="module")
def guarded(backend: str) -> Iterator[Served]:
    """The same for clients with ``CLIENT_KEY``."""
    settings = {"APE_API_KEY": f"alice:{CLIENT_KEY}", "LOG_LEVEL": "debug"}
    with serving("serve", "--demo", BACKEND=backend, **settings) as served:
        yield served


@pytest.fixture(scope="module")
def unreachable(backend: str) -> Iterator[Served]:
    """A process whose upstream refuses connections."""
    with refusing_port() as port:
        url = f"http://127.0.0.1:{port}"
        key = "csk-upstream-key-0123456789"
        settings = {"CEREBRAS_API_KEY": key, "CEREBRAS_BASE_URL": url, "BACKEND": backend}
        with serving("serve", **settings) as served:
            yield served
