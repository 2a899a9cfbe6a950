"""Several proxies that name the same LIMITS_STORE keep one limit, exactly; and what they do while
the store is gone is what was chosen, and nothing else."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path

import anyio
import pytest
from end_to_end import (
    FINISH,
    KEY,
    TOKEN,
    Conversation,
    Response,
    Running,
    chat,
    error_shape,
    events,
    running_proxy,
    running_upstream,
)
from redis import Redis
from redis_server import PASSWORD, RedisServer, redis_server
from run_here import run_here
from waiting import until

from ape_cerebras.config.values import read_store
from ape_cerebras.limits import redis_store

pytestmark = pytest.mark.anyio


async def respond_to_all(conversation: Conversation) -> None:
    while True:
        await conversation.request()
        await conversation.respond(FINISH)


@asynccontextmanager
async def three_proxies(
    server: RedisServer, per_minute: int, **settings: str
) -> AsyncIterator[Sequence[Running]]:
    limit = {
        "RATE_LIMIT_PER_MINUTE": str(per_minute),
        "LIMITS_STORE": server.url,
        "LIMITS_STORE_TIMEOUT": "5",  # it writes to a disk that others use
    }
    async with running_upstream(respond_to_all) as upstream, AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running_proxy(upstream.port, **limit, **settings))
            for _ in range(3)
        ]


async def request_all(proxies: Sequence[Running], times: int) -> list[Response]:
    """So many requests to each, at the same time."""
    responses: list[Response] = []

    async def request(running: Running) -> None:
        client = await running.client()
        responses.extend([await client.request(chat()) for _ in range(times)])

    async with anyio.create_task_group() as tasks:
        for running in proxies:
            tasks.start_soon(request, running)
    return responses


def logged(running: Running) -> list[str]:
    """The log messages about the store."""
    messages = [line["message"] for line in running.lines.all()]
    return [message for message in messages if message.startswith("Limit store")]


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is tried again soon: requests are sent until then."""
    monkeypatch.setattr(redis_store, "_RETRY_AFTER", 0.1)


async def until_logged(proxies: Sequence[Running], message: str) -> None:
    """Send requests until each proxy has logged it: only a request tries the store."""
    with anyio.fail_after(10):
        while any(message not in logged(running) for running in proxies):
            await request_all(proxies, 1)


GONE, BACK = "Limit store does not respond", "Limit store responds again"


async def test_three_proxies_keep_one_limit_exactly(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with three_proxies(server, 300) as proxies:
            began_at = anyio.current_time()
            responses = await request_all(proxies, 150)
            seconds = anyio.current_time() - began_at
            assert [logged(running) for running in proxies] == [[], [], []]
    statuses = Counter(response.status for response in responses)
    assert statuses.keys() == {200, 429}
    # A full bucket, and five a second that come back meanwhile; requests came to the end.
    assert statuses[200] == pytest.approx(300 + 5 * seconds, rel=0.01)
    refused = next(response for response in responses if response.status == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-limit-requests-minute"] == "300"
    assert refused.headers["x-ratelimit-remaining-requests-minute"] == "0"


async def test_open_each_keeps_the_limit_by_itself_until_the_store_is_back(
    tmp_path: Path,
) -> None:
    with redis_server(tmp_path) as server:
        async with three_proxies(server, 30) as proxies:
            began_at = anyio.current_time()
            assert {response.status for response in await request_all(proxies, 5)} == {200}
            server.kill()
            alone = Counter(response.status for response in await request_all(proxies, 35))
            seconds = anyio.current_time() - began_at
            assert alone.keys() == {200, 429}
            # Each knew of 15 that were left, or of a few more that others took afterwards.
            assert 45 <= alone[200] <= 3 * (25 + seconds / 2)
            server.start()
            await until_logged(proxies, BACK)
            again = Counter(response.status for response in await request_all(proxies, 20))
            seconds = anyio.current_time() - began_at
            # What was spent before is still known: no more than was left then and came back since.
            assert again[200] <= 16 + seconds / 2
            assert again.keys() <= {200, 429}
            assert [logged(running) for running in proxies] == [[GONE, BACK]] * 3
            raw = b"".join(line for running in proxies for line in running.lines.raw)
    assert PASSWORD.encode() not in raw


async def test_closed_nothing_is_served_until_the_store_is_back(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with three_proxies(server, 3000, LIMITS_STORE_OUTAGE="closed") as proxies:
            assert {response.status for response in await request_all(proxies, 2)} == {200}
            server.kill()
            refused = await request_all(proxies, 5)
            assert {response.status for response in refused} == {503}
            assert error_shape(refused[0].json()) == ("overloaded_error", "overloaded")
            assert refused[0].headers["retry-after"] == "1"
            health = await (await proxies[0].client()).get("/health")
            assert health.status == 200
            server.start()
            await until_logged(proxies, BACK)
            assert {response.status for response in await request_all(proxies, 2)} == {200}
            assert [logged(running) for running in proxies] == [[GONE, BACK]] * 3


async def test_a_store_that_is_not_there_from_the_start_stops_nobody(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        server.kill()
        async with three_proxies(server, 3000) as proxies:
            assert {response.status for response in await request_all(proxies, 2)} == {200}
            server.start()
            await until_logged(proxies, BACK)


@asynccontextmanager
async def with_budget(tmp_path: Path, server: RedisServer) -> AsyncIterator[Sequence[Running]]:
    """Three proxies, and a key with a budget of 0.000021 dollars. A response costs 0.0000065."""
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\nname = "anna"\nkey = "key-of-anna"\nusd_per_day = 0.000021\n')
    async with three_proxies(server, 3000, APE_API_KEYS_FILE=str(file)) as proxies:
        yield proxies


def is_idle(running: Running) -> bool:
    return not running.proxy._in_flight


def of_anna(limit: int) -> bytes:
    """A prompt of 18 tokens at 0.35 dollars per million, and the limit at 0.75."""
    body = b'{"model":"gpt-oss-120b","messages":[],"max_completion_tokens":%d}' % limit
    return chat(body, b"Authorization: Bearer key-of-anna")


async def test_what_a_key_may_spend_it_may_spend_once(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with with_budget(tmp_path, server) as proxies:
            responses = []
            for running in [*proxies] * 2:
                responses.append(await (await running.client()).request(of_anna(1)))
                await until(partial(is_idle, running))
        with Redis.from_url(server.url, decode_responses=True) as contents:
            keys = contents.keys()
    assert [response.status for response in responses] == [200, 200, 200, 429, 429, 429]
    assert error_shape(responses[3].json())[1] == "budget_reserved"
    assert responses[3].headers["x-should-retry"] == "false"
    assert not [key for key in keys if "key-of-anna" in key]


async def test_many_at_once_spend_no_more_than_one_by_one(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with with_budget(tmp_path, server) as proxies:
            responses: list[Response] = []

            async def request(running: Running) -> None:
                responses.append(await (await running.client()).request(of_anna(18)))

            async with anyio.create_task_group() as tasks:
                for running in [*proxies] * 4:
                    tasks.start_soon(request, running)
    statuses = Counter(response.status for response in responses)
    # Each reserves 0.0000198.
    assert statuses == {200: 1, 429: 11}
    codes = {error_shape(each.json())[1] for each in responses if each.status == 429}
    assert codes <= {"budget_reserved"}


def test_check_marks_whose_a_limit_is() -> None:
    check = partial(
        run_here, "check", CEREBRAS_API_KEY=KEY, ASYNC_WORKERS="2", RATE_LIMIT_PER_MINUTE="7"
    )
    assert "RATE_LIMIT_PER_MINUTE=7  # in each of 2 workers" in check().stdout.splitlines()
    shared = check(LIMITS_STORE=f"redis://:{PASSWORD}@localhost").stdout
    assert "RATE_LIMIT_PER_MINUTE=7  # shared by all proxies with the same LIMITS_STORE" in shared
    assert "MAX_CONNECTIONS" in shared
    assert "LIMITS_STORE=(set)" in shared
    assert PASSWORD not in shared


def test_without_the_package_a_store_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ape_cerebras.config.values.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a package: pip install 'ape-cerebras\[redis\]'"):
        read_store("redis://localhost")


async def test_what_a_shutdown_cuts_is_spent_and_holds_nothing(tmp_path: Path) -> None:
    async def stall(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.stream_head()
        await conversation.chunk(events(TOKEN))
        await conversation.until_disconnected()

    with redis_server(tmp_path) as server:
        file = tmp_path / "keys.toml"
        file.write_text('[[keys]]\nname = "anna"\nkey = "key-of-anna"\nusd_per_day = 1\n')
        settings = {"APE_API_KEYS_FILE": str(file), "LIMITS_STORE": server.url}
        async with (
            running_upstream(stall) as upstream,
            running_proxy(upstream.port, GRACEFUL_SHUTDOWN_TIMEOUT="0.1", **settings) as running,
        ):
            client = await running.client()
            await client.send(of_anna(18))
            await client.until(TOKEN)
            await running.proxy.drain()
        [line] = running.lines.exchanges()
        with Redis.from_url(server.url, decode_responses=True) as contents:
            [spent] = contents.keys()
            [cost] = contents.hvals(spent)
    assert line["outcome"] == "shut_down"
    assert int(cost) == Decimal(str(line["cost_usd"])).scaleb(12) > 0
