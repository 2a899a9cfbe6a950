"""Whatever fails in the background: nothing ends. It is logged once by type and place, counted, and
tried again after pauses that grow; on the clock of ``mock_clock``."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread
from end_to_end import KEY, Lines, running_proxy
from memory_stream import memory_pair
from mock_clock import on_mock_clock

import ape_cerebras.proxy
from ape_cerebras import Config, Proxy
from ape_cerebras.chat.models import Catalogue
from ape_cerebras.telemetry.health import Health
from ape_cerebras.upstream.warmup import Warmup

SECRET = "a text that may quote a header"
MESSAGE = "A task in the background failed, and goes on after a pause"
# Of each task what it calls, and the seconds from its first failure to its fourth: 1, 2 and 4, and
# what it waits by itself.
TASKS = {
    "warmup": ("_upstream.pool.close_old", 7.0),
    "catalogue": ("_catalogue._refresh", 7.0),
    "loop_watch": ("_metrics.loop_lag.observe", 7.75),
    "health": ("_health.check", 7.0),
}


class Failing:
    """In place of a method: raises ``error``, and notes when."""

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self.error = error
        self.at: list[float] = []

    def __call__(self, *_: object) -> Any:
        self.at.append(anyio.current_time())
        raise self.error(SECRET)


def put(proxy: Proxy, path: str, failing: Callable[..., Any]) -> None:
    *way, last = path.split(".")
    owner: Any = proxy
    for name in way:
        owner = getattr(owner, name)
    setattr(owner, last, failing)


def a_proxy(lines: Lines) -> Proxy:
    config = Config.from_environment(
        {
            "CEREBRAS_API_KEY": KEY,
            "CEREBRAS_BASE_URL": "http://upstream",
            "PRICE_CATALOGUE": "on",
        }
    )

    async def connect(host: str, port: int) -> Any:
        raise ConnectionRefusedError

    return Proxy(config, lines.write, connect=connect)


async def failures_counted(proxy: Proxy, task: str) -> float:
    client, server = memory_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.handle, server)
        await client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        text = ""
        while f'background_failures_total{{task="{task}"}} ' not in text:
            text += (await client.receive()).decode()
        client.close()
    return float(text.partition(f'failures_total{{task="{task}"}} ')[2].partition("\n")[0])


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_fails_goes_on(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ape_cerebras.proxy, "_LAG_SAMPLE_IDLE", 0.25)

    async def test() -> None:
        lines, failing = Lines(), Failing()
        proxy = a_proxy(lines)
        path, between = TASKS[task]
        put(proxy, path, failing)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.run_in_background)
            await anyio.sleep(8.5)
            assert len(failing.at) == 4
            assert failing.at[3] - failing.at[0] == pytest.approx(between)
            assert await failures_counted(proxy, task) == 4
            failing.error = KeyError
            await anyio.sleep(300)
            tasks.cancel_scope.cancel()
        gaps = [after - before for before, after in zip(failing.at, failing.at[1:], strict=False)]
        assert max(gaps) == pytest.approx(60, abs=0.5)
        told = [line for line in lines.all() if line["message"] == MESSAGE]
        assert [line["task"] for line in told] == [task, task]
        kinds = [line["exceptions"][-1].partition(" ")[0] for line in told]
        assert kinds == ["RuntimeError", "KeyError"]
        assert SECRET not in str(lines.all())

    on_mock_clock(test)


def test_the_pauses_begin_again_where_it_went_well_for_long() -> None:
    async def test() -> None:
        lines, failing = Lines(), Failing()
        proxy = a_proxy(lines)
        good = proxy._health.check

        def fails_twice_and_after_long() -> None:
            if anyio.current_time() - began_at < 2 or anyio.current_time() - began_at > 100:
                failing()
            good()

        put(proxy, "_health.check", fails_twice_and_after_long)
        async with anyio.create_task_group() as tasks:
            began_at = anyio.current_time()
            tasks.start_soon(proxy.run_in_background)
            await anyio.sleep(103)
            tasks.cancel_scope.cancel()
        assert [round(at - began_at) for at in failing.at] == [0, 1, 101, 102]

    on_mock_clock(test)


def test_the_loop_is_watched_more_often_while_exchanges_may_wait_for_each_other() -> None:
    async def test() -> None:
        proxy, late = a_proxy(Lines()), list[float]()
        put(proxy, "_metrics.loop_lag.observe", late.append)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.run_in_background)
            for samples in (10, 10, 100):  # with no exchange in flight, with one, with two
                await anyio.sleep(0.15)
                late.clear()
                await anyio.sleep(1)
                assert len(late) == pytest.approx(samples, abs=1)
                assert max(late) == pytest.approx(0, abs=1e-6)
                client, server = memory_pair()
                tasks.start_soon(proxy.handle, server)
                await client.send(b"GET / HTTP/1.1\r\n")
            await anyio.sleep(0.15)
            late.clear()
            trio.lowlevel.current_clock().jump(0.05)  # type: ignore[attr-defined]
            await anyio.sleep(0.001)
            assert late == [pytest.approx(0.045, abs=0.005)]
            tasks.cancel_scope.cancel()

    on_mock_clock(test)


@pytest.mark.anyio
@pytest.mark.every_loop
async def test_requests_are_served_while_everything_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(Warmup, "keep", fails)
    monkeypatch.setattr(Catalogue, "_refresh", fails)
    monkeypatch.setattr(Health, "check", Failing())
    async with running_proxy(1, WARM_CONNECTIONS="1", PRICE_CATALOGUE="on") as running:
        client = await running.client()
        while len([line for line in running.lines.all() if line["message"] == MESSAGE]) < 3:
            assert (await client.get("/health")).status == 200
        assert (await client.get("/health")).status == 200
    assert SECRET not in str(running.lines.all())


@pytest.mark.anyio
async def test_a_scrape_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    async with running_proxy(1) as running:
        client = await running.client()
        monkeypatch.setattr(to_thread, "run_sync", no_thread)
        response = await client.get("/metrics")
    assert response.status == 200
    assert b"cerebras_proxy_build_info" in response.body
