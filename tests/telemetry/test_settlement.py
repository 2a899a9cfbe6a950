"""Exchanges that have ended, waiting to be told of; and nobody waiting in vain."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from end_to_end import TOKEN, Client, Running, chat, running_proxy, running_upstream
from exchanges import plain_exchange
from scripts import one_token_and_no_more

from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.settlement import Settlement
from ape_cerebras.telemetry.timings import Timings


class Told:
    """Two observers, of which one fails where an exchange has that id."""

    def __init__(self, failing: str = "") -> None:
        self.seen: list[tuple[str, str]] = []
        self.complaints = 0
        self._failing = failing
        self.settlement = Settlement((self._observer("a"), self._observer("b")), self._complain)
        self.settlement.may_wait = True

    def _observer(self, name: str) -> Callable[[Exchange, Timings], None]:
        def observe(exchange: Exchange, _: Timings) -> None:
            if name == "a" and exchange.request_id == self._failing:
                raise ValueError
            self.seen.append((name, exchange.request_id))

        return observe

    def _complain(self) -> None:
        self.complaints += 1


@asynccontextmanager
async def beside_a_stream(**settings: str) -> AsyncIterator[tuple[Running, Client]]:
    """A client of a proxy that is in the middle of another's stream."""
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        streaming = await running.client()
        await streaming.send(chat())
        await streaming.until(TOKEN)
        yield running, await running.client()


def exchange(number: int) -> Exchange:
    return plain_exchange(request_id=str(number))


def test_who_ends_last_is_told_of_at_once_with_all_before() -> None:
    told = Told()
    told.settlement.add(exchange(0), last=False)
    assert told.seen == []
    told.settlement.add(exchange(1), last=True)
    assert told.seen == [("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
    told.settlement.settle()
    assert len(told.seen) == 4


def test_no_more_wait_than_are_done_in_a_row() -> None:
    told = Told()
    for number in range(15):
        told.settlement.add(exchange(number), last=False)
    assert told.seen == []
    told.settlement.add(exchange(15), last=False)
    assert sorted(told.seen) == sorted((name, str(n)) for name in "ab" for n in range(16))


def test_a_large_body_does_not_wait() -> None:
    told = Told()
    told.settlement.add(plain_exchange(body=bytes(64 * 1024)), last=False)
    assert len(told.seen) == 2


def test_one_that_cannot_be_told_of_costs_no_other() -> None:
    told = Told(failing="1")
    for number in range(3):
        told.settlement.add(exchange(number), last=False)
    told.settlement.settle()
    assert told.seen == [("a", "0"), ("a", "2"), ("b", "0"), ("b", "1"), ("b", "2")]
    assert told.complaints == 1


@pytest.mark.anyio
async def test_an_event_does_not_overtake_what_ended_before_it() -> None:
    async with beside_a_stream() as (running, client):
        for number in range(1, 10):
            await client.get("/health")
            running.proxy.logs.event("info", f"{number}")
            *_, before, event = running.lines.all()
            assert (before["route"], event["message"]) == ("/health", f"{number}")


def test_nobody_waits_where_nobody_comes_by() -> None:
    told = Told()
    told.settlement.may_wait = False
    told.settlement.add(exchange(0), last=False)
    assert len(told.seen) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("metrics", ["true", "false"])
async def test_nobody_waits_for_the_end_of_a_stream(metrics: str) -> None:
    async with beside_a_stream(METRICS_ENABLED=metrics) as (running, client):
        await client.get("/health")
        line = await running.lines.exchange(patience=1)
        assert line["route"] == "/health"


@pytest.mark.anyio
async def test_a_scrape_tells_of_all_that_have_ended() -> None:
    async with beside_a_stream() as (_, client):
        for number in range(1, 10):  # on one connection: nothing comes between the two
            await client.get("/health")
            text = (await client.get("/metrics")).body.decode()
            counted = f'route="/health",status_code="200"}} {number}.0'
            assert counted in text
