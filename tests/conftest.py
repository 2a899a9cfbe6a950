"""Every test marked ``anyio`` runs on asyncio and on trio; so does every process that is shared by
the tests of a module."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sdks import CEREBRAS, OPENAI, Asker
from served import BACKENDS, CLIENT_KEY, Served, refusing_port, serving


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def demo(backend: str) -> Iterator[Served]:
    """A process that serves the simulated API to everybody."""
    with serving("serve", "--demo", BACKEND=backend, LOG_LEVEL="debug") as served:
        yield served


@pytest.fixture(scope="module")
def guarded(backend: str) -> Iterator[Served]:
    """The same for those who present ``CLIENT_KEY``."""
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


@pytest.fixture(params=["openai", "openai-async", "cerebras", "cerebras-async"])
def asking(request: pytest.FixtureRequest, backend: str) -> Callable[..., Asker]:
    """What makes a client of one of the SDKs for a process; an asynchronous one runs on the same
    event loop as the process."""
    name, _, is_async = request.param.partition("-")

    def asker(served: Served, **options: Any) -> Asker:
        sdk = {"openai": OPENAI, "cerebras": CEREBRAS}[name]
        return Asker(sdk, served.port, backend if is_async else None, options)

    return asker
