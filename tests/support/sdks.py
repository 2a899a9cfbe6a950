"""The official Python SDKs behind one interface: synchronous or asynchronous, for a plain response
or a stream. Every request has a trace id of its own, by which its log lines are found."""

import os
import shutil
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import pytest

from ape_cerebras.net.event_loop import run_on

__all__ = (
    "CEREBRAS",
    "JAVASCRIPT",
    "LEAVES_GENERATORS",
    "MESSAGE_PACK",
    "NO_CERTIFICATES",
    "OPENAI",
    "REQUEST",
    "TOOL",
    "SdkClient",
    "Sdk",
    "node",
    "text_of",
)

REQUEST: dict[str, Any] = {
    "model": "gpt-oss-120b",
    "messages": [{"role": "user", "content": "Hello!"}],
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
# The asynchronous SDKs stop reading at the end mark or a failure, and leave their generators to the
# garbage collector, of which trio warns.
LEAVES_GENERATORS = pytest.mark.filterwarnings(
    r"ignore:Async generator '(openai|httpx|httpcore|cerebras):ResourceWarning"
)

# The request for a stream, in MessagePack as agents on LiveKit send it.
MESSAGE_PACK = (
    b"\x83\xa5model\xacgpt-oss-120b\xa8messages\x91\x82\xa4role\xa4user\xa7content\xa6Hello!"
    b"\xa6stream\xc3"
)
# By default each client reads a hundred certificates, which takes longer than its request, and
# which nothing here needs.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

JAVASCRIPT = Path(__file__).parents[1] / "sdks" / "js"
"""The JavaScript SDKs, and scripts for Node that use them."""


class Sdk(NamedTuple):
    """``module`` is the SDK's, ``client`` its class of clients; ``prefix`` is the end of its base
    URL; ``options`` are those of every client. It is loaded where it is used: that is 2 s of CPU,
    and most processes of the tests use none."""

    module: str
    client: str
    prefix: str
    options: dict[str, Any]

    @property
    def errors(self) -> Any:
        """The module, with the SDK's exceptions."""
        return import_module(self.module)


OPENAI = Sdk("openai", "OpenAI", "/v1", {})
# Its warm-up, the subject of test_cerebras, has a client of its own, which reads the certificates.
_COLD = {"warm_tcp_connection": False}
CEREBRAS = Sdk("cerebras.cloud.sdk", "Cerebras", "", _COLD)


def text_of(events: list[Any], kind: str = "content") -> str:
    """The pieces of a stream reassembled."""
    deltas = [event.choices[0].delta for event in events if event.choices]
    return "".join(getattr(delta, kind, None) or "" for delta in deltas)


@dataclass
class SdkClient:
    """A client for each request, closed after it. ``backend`` is the event loop of an asynchronous
    one; None for a synchronous one."""

    sdk: Sdk
    port: int
    backend: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    trace_id: str = field(default_factory=lambda: token_hex(16))
    events: list[Any] = field(default_factory=list)
    """The events of the latest stream, also of one that failed."""

    def whole(self, simulate: str = "", **request: Any) -> Any:
        requested = self._request(simulate, request)
        return self._run(lambda client: client.chat.completions.create(**requested))

    def stream(self, simulate: str = "", most: int = 1_000_000, **request: Any) -> list[Any]:
        """All events of a stream, or the first ``most``; then the stream is closed early."""
        requested = {**self._request(simulate, request), "stream": True}
        self.events = []

        def collect(client: Any) -> None:
            with client.chat.completions.create(**requested) as events:
                for event in events:
                    self.events.append(event)
                    if len(self.events) == most:
                        break

        async def collect_async(client: Any) -> None:
            async with await client.chat.completions.create(**requested) as events:
                async for event in events:
                    self.events.append(event)
                    if len(self.events) == most:
                        break

        self._run(collect if self.backend is None else collect_async)
        return self.events

    def models(self) -> list[str]:
        return [model.id for model in self._run(lambda client: client.models.list()).data]

    def model(self, name: str) -> Any:
        return self._run(lambda client: client.models.retrieve(name))

    def _request(self, simulate: str, request: dict[str, Any]) -> dict[str, Any]:
        quick = "ttft=0.01, rate=10000"
        headers = {"x-trace-id": self.trace_id, "x-simulate": f"{quick}, {simulate}".strip(", ")}
        return {**REQUEST, "extra_headers": headers, **request}

    def _run(self, request: Callable[[Any], Any]) -> Any:
        options = {
            "base_url": f"http://127.0.0.1:{self.port}{self.sdk.prefix}",
            "api_key": "any",
            "max_retries": 0,
            **self.sdk.options,
            **self.options,
        }
        if self.backend is not None:
            return run_on(self.backend, self._run_async, request, options)
        http_client = self.sdk.errors.DefaultHttpxClient(verify=NO_CERTIFICATES)
        make = getattr(self.sdk.errors, self.sdk.client)
        with make(http_client=http_client, **options) as client:
            return request(client)

    async def _run_async(
        self, request: Callable[[Any], Awaitable[Any]], options: dict[str, Any]
    ) -> Any:
        http_client = self.sdk.errors.DefaultAsyncHttpxClient(verify=NO_CERTIFICATES)
        make = getattr(self.sdk.errors, f"Async{self.sdk.client}")
        async with make(http_client=http_client, **options) as client:
            return await request(client)


def node() -> str:
    """Where Node is; the tests are skipped where there is none, save in CI."""
    path = shutil.which("node")
    missing = "" if path else "there is no Node"
    if not (JAVASCRIPT / "node_modules").is_dir():
        missing = missing or "the SDKs are not installed: run 'npm ci' in tests/sdks/js"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    assert path is not None
    return path
