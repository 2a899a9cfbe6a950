"""Degradation noticed: a warning when it begins, a line when it ends, a gauge, and in health.
All on the clock of ``mock_clock``."""

from typing import Any

import anyio
import orjson
import pytest
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
        self.refusal = b""  # the status line of a refusal, where upstream refuses the account
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
        if self.refusal:
            await stream.send(self.refusal + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return
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
            for _ in range(20):
                await rig.request(chat())
            await anyio.sleep(2)
            assert (await rig.health())["degraded"] == ["ttft"]
            assert (await rig.health())["status"] == "degraded"
            assert (await rig.gauge("ttft"), await rig.gauge("failures")) == (1, 0)
            await anyio.sleep(61)
            assert "degraded" not in await rig.health()
            assert await rig.gauge("ttft") == 0
        assert rig.reported() == [
            ("warning", "Service degraded", "ttft"),
            ("info", "Service recovered", "ttft"),
        ]
        event = next(line for line in rig.lines.all() if "reason" in line)
        assert (event["share"], event["target"], event["samples"]) == (1.0, 0.05, 20)
        assert event["ttft_target_seconds"] == 0.299
        # The client goes as soon as it has its response.
        assert event["main_outcome"] in ("completed", "client_disconnected")

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
        event = next(line for line in rig.lines.all() if "reason" in line)
        assert (event["share"], event["samples"]) == (0.0952, 21)
        assert event["main_outcome"] == "upstream_connect_failed"

    on_mock_clock(test)


@pytest.mark.parametrize(
    ("status", "outcome", "message"),
    [
        (b"401 Unauthorized", "upstream_key_refused", "Upstream refuses the account's key"),
        (b"403 Forbidden", "upstream_key_refused", "Upstream refuses the account's key"),
        (
            b"402 Payment Required",
            "upstream_payment_required",
            "Upstream wants the account to be paid for",
        ),
    ],
)
def test_an_account_that_is_refused(status: bytes, outcome: str, message: str) -> None:
    async def main() -> None:
        again = "Upstream has not refused the account for a minute"
        async with Rig() as rig:
            rig.refusal = b"HTTP/1.1 " + status
            for _ in range(21):
                await rig.request(chat())
            await anyio.sleep(1.5)
            assert (await rig.health())["degraded"] == ["failures"]
            lines = rig.lines.all()
            assert {line["outcome"] for line in lines if "route" in line} >= {outcome}
            [event] = [line for line in lines if line["message"] == message]
            assert (event["level"], event["upstream_status"]) == ("error", int(status[:3]))
            assert event["trace_id"] in {line["trace_id"] for line in lines if "outcome" in line}
            rig.refusal = b""
            await rig.request(chat())
            await anyio.sleep(58)
            assert again not in {line["message"] for line in rig.lines.all()}
            await anyio.sleep(3)
            assert [line["level"] for line in rig.lines.all() if line["message"] == again] == [
                "info"
            ]

    on_mock_clock(main)
