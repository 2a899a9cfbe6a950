"""Clients of the SDKs."""

from collections.abc import Callable
from typing import Any

import pytest
from sdks import CEREBRAS, OPENAI, SdkClient
from server_process import Served


# In this order, where tests take the loops in turn, each loop gets both SDKs and both kinds.
@pytest.fixture(params=["openai", "cerebras", "cerebras-async", "openai-async"])
def sdk_client(request: pytest.FixtureRequest, backend: str) -> Callable[..., SdkClient]:
    """What makes a client of one of the SDKs for a process; an asynchronous one runs on the same
    event loop as the process."""
    name, _, is_async = request.param.partition("-")

    def client(served: Served, **options: Any) -> SdkClient:
        sdk = {"openai": OPENAI, "cerebras": CEREBRAS}[name]
        return SdkClient(sdk, served.port, backend if is_async else None, options)

    return client
