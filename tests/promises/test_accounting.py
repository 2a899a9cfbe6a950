"""Every exchange is counted and logged at the moment at which it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from end_to_end import TOKEN, Client, Running, chat, running_proxy, running_upstream
from upstream_scripts import one_token_and_no_more

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def beside_a_stream(**settings: str) -> AsyncIterator[tuple[Running, Client]]:
    """A client of a proxy that is in the middle of another client's stream."""
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        streaming = await running.client()
        await streaming.send(chat())
        await streaming.until(TOKEN)
        yield running, await running.client()


async def test_an_event_is_logged_after_the_exchanges_that_ended_before_it() -> None:
    async with beside_a_stream() as (running, client):
        for number in range(1, 10):
            await client.get("/health")
            running.proxy.logs.event("info", f"{number}")
            *_, before, event = running.lines.all()
            assert (before["route"], event["message"]) == ("/health", f"{number}")


@pytest.mark.parametrize("metrics", ["true", "false"])
async def test_an_exchange_is_logged_while_a_stream_goes_on(metrics: str) -> None:
    async with beside_a_stream(METRICS_ENABLED=metrics) as (running, client):
        await client.get("/health")
        line = await running.lines.exchange(timeout=1)
        assert line["route"] == "/health"


async def test_a_scrape_counts_all_exchanges_that_have_ended() -> None:
    async with beside_a_stream() as (_, client):
        for number in range(1, 10):  # on one connection: nothing comes between the two
            await client.get("/health")
            text = (await client.get("/metrics")).body.decode()
            counted = f'route="/health",status_code="200"}} {number}.0'
            assert counted in text


@pytest.mark.parametrize("failing", ["_metrics", "_health"])
async def test_an_observer_that_fails_is_reported_and_costs_the_others_nothing(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port) as running,
    ):
        monkeypatch.setattr(getattr(running.proxy, failing), "observe", fail)
        client = await running.client()
        assert (await client.get("/health")).status == 200
        assert (await client.get("/health")).status == 200
        reported, exchange = running.lines.all()[-2:]
        assert reported["message"] == "An exchange was not accounted for"
        assert (reported["level"], exchange["route"]) == ("error", "/health")
