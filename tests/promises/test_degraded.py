"""Degradation noticed: a warning when it begins, a line when it ends, a gauge, and in health.
All on the clock of ``mock_clock``."""

from typing import Any

import anyio
import orjson
from end_to_end import KEY, Lines, chat, events
from memory_stream import MemoryStream, memory_pair
from mock_clock import TOKEN, on_mock_clock

from ape_cerebras import Config, Proxy

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


class Rig:
    """A proxy in the background, whose upstream responds late, or not at all."""

    def __init__(self, **settings: str) -> None:
        self.lines = Lines()
        self.responds = True
        environment = {
            "CEREBRAS_API_KEY": KEY,
            "CEREBRAS_BASE_URL": "http://upstream",
            "WARM_CONNECTIONS": "0",
        }
        config = Config.from_environment({**environment, **settings})
        self._proxy = Proxy(config, self.lines.write, connect=self._connect)

    async def __aenter__(self) -> "Rig":
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._proxy.run_in_background)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _connect(self, host: str, port: int) -> MemoryStream:
        if not self.responds:
            raise ConnectionRefusedError
        ours, theirs = memory_pair()
        self._tasks.start_soon(self._respond, theirs)
        return ours

    async def _respond(self, stream: MemoryStream) -> None:
        await stream.receive()
        await anyio.sleep(0.3)
        body = events(TOKEN, b"[DONE]")
        await stream.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    async def request(self, request: bytes) -> bytes:
        client, server = memory_pair()
        self._tasks.start_soon(self._proxy.handle, server)
        await client.send(request)
        head, _, body = (await client.receive()).partition(b"\r\n\r\n")
        client.close()
        return body if b" 200 " in head else b"{}"

    async def health(self) -> Any:
        return orjson.loads(await self.request(HEALTH))

    async def gauge(self, reason: str) -> float:
        text = (await self.request(METRICS)).decode()
        name = f'cerebras_proxy_degraded{{reason="{reason}"}} '
        return float(text.partition(name)[2].partition("\n")[0])

    def reported(self) -> list[tuple[str, str, str]]:
        return [
            (line["level"], line["message"], line["reason"])
            for line in self.lines.all()
            if "reason" in line
        ]


def test_a_ttft_over_its_target() -> None:
    async def test() -> None:
        async with Rig(TTFT_TARGET_MS="299") as rig:
            for _ in range(3):
                await rig.request(chat())
            await anyio.sleep(2)
            assert (await rig.health())["degraded"] == ["ttft"]
            assert (await rig.health())["status"] == "healthy"
            assert (await rig.gauge("ttft"), await rig.gauge("failures")) == (1, 0)
            await anyio.sleep(61)
            assert "degraded" not in await rig.health()
            assert await rig.gauge("ttft") == 0
        assert rig.reported() == [
            ("warning", "Service degraded", "ttft"),
            ("info", "Service recovered", "ttft"),
        ]

    on_mock_clock(test)


def test_a_ttft_within_its_target() -> None:
    async def test() -> None:
        async with Rig(TTFT_TARGET_MS="301") as rig:
            await rig.request(chat())
            await anyio.sleep(2)
            assert "degraded" not in await rig.health()
        assert rig.reported() == []

    on_mock_clock(test)


def test_failures() -> None:
    async def test() -> None:
        async with Rig() as rig:
            for _ in range(19):
                await rig.request(chat())
            rig.responds = False
            await rig.request(chat())  # one in twenty: 5 %, not above
            await anyio.sleep(2)
            assert "degraded" not in await rig.health()
            await rig.request(chat())
            await anyio.sleep(2)
            assert (await rig.health())["degraded"] == ["failures"]
            assert await rig.gauge("failures") == 1
        assert rig.reported() == [("warning", "Service degraded", "failures")]

    on_mock_clock(test)
