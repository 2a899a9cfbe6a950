"""The list of models, on a clock that only moves when everybody waits."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
from end_to_end import Conversation, running_upstream
from memory_stream import MemoryStream, memory_pair
from trio.testing import MockClock
from waiting import until, wait_all_tasks_blocked

from ape_cerebras import Config
from ape_cerebras.chat.models import ModelList
from ape_cerebras.errors import ModelNotFound
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.upstream.client import UpstreamClient

FIRST = b'{"object":"list", "data":[{"id":"one","owned_by":"C"},{"id":"two"}]}'
SECOND = b'{"object":"list","data":[]}'
CONFIG = Config.from_environment(
    {
        "CEREBRAS_API_KEY": "k",
        "CEREBRAS_BASE_URL": "http://upstream",
        "MODEL_ALIASES": "gpt-4=one,gpt-3=none",
    }
)
BUILT_IN = list(CONFIG.model_prices.prices)

Response = Callable[[MemoryStream], Awaitable[None]]


def exchange() -> Exchange:
    return Exchange(started_at=0.0)


def response(body: bytes, status: int = 200, after: float = 0.0) -> Response:
    async def send(peer: MemoryStream) -> None:
        await anyio.sleep(after)
        await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

    return send


async def cut_short(peer: MemoryStream) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + FIRST)
    peer.close()


async def disconnect(peer: MemoryStream) -> None:
    peer.close()


async def never_respond(peer: MemoryStream) -> None:
    await anyio.sleep_forever()


async def drip(peer: MemoryStream) -> None:
    """A byte a second, for as long as somebody reads."""
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        if peer.peer_is_gone():
            return
        await peer.send(b" ")
        await anyio.sleep(1)


class Rig:
    """A list of models over an upstream that gives these responses in turn; then none."""

    def __init__(self, tasks: trio.Nursery, responses: tuple[Response, ...]) -> None:
        self._tasks = tasks
        self._responses = list(responses)
        self.requested_at: list[float] = []
        self.requests: list[bytes] = []
        self.models = ModelList(CONFIG, UpstreamClient(CONFIG, self.connect))

    async def connect(self, host: str, port: int) -> TimestampedStream:
        if not self._responses:
            self.requested_at.append(anyio.current_time())
            raise ConnectionRefusedError
        ours, theirs = memory_pair()
        self._tasks.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, peer: MemoryStream) -> None:
        try:
            while True:
                self.requests.append(await peer.receive())
                self.requested_at.append(anyio.current_time())
                await self._responses.pop(0)(peer)
        except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass

    async def ids(self) -> list[str]:
        return [entry["id"] for entry in json.loads(await self.models.text(exchange()))["data"]]


def run(test: Callable[[Rig], Awaitable[None]], *responses: Response) -> None:
    async def main() -> None:
        async with trio.open_nursery() as tasks:
            await test(Rig(tasks, responses))
            tasks.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_list_is_kept_for_a_minute_byte_for_byte() -> None:
    async def test(rig: Rig) -> None:
        assert await rig.models.text(exchange()) == FIRST
        await anyio.sleep_until(59.999)
        assert await rig.models.text(exchange()) == FIRST
        assert rig.requested_at == [0.0]
        await anyio.sleep_until(60.0)
        assert await rig.models.text(exchange()) == SECOND
        assert rig.requested_at == [0.0, 60.0]

    run(test, response(FIRST), response(SECOND))


def test_an_alias_is_found_as_the_model_that_is_served() -> None:
    async def test(rig: Rig) -> None:
        assert json.loads(await rig.models.entry(exchange(), "gpt-4")) == {
            "id": "gpt-4",
            "owned_by": "C",
        }
        assert json.loads(await rig.models.entry(exchange(), "two")) == {"id": "two"}
        for nowhere in ("gpt-3", "three"):
            with pytest.raises(ModelNotFound):
                await rig.models.entry(exchange(), nowhere)

    run(test, response(FIRST))


def test_the_minute_begins_when_the_list_has_arrived() -> None:
    async def test(rig: Rig) -> None:
        await rig.models.text(exchange())
        assert anyio.current_time() == 2.0
        await anyio.sleep_until(61.999)
        await rig.models.text(exchange())
        assert rig.requested_at == [0.0]
        await anyio.sleep_until(62.0)
        await rig.models.text(exchange())
        assert rig.requested_at == [0.0, 62.0]

    run(test, response(FIRST, after=2.0), response(FIRST))


def test_the_request_has_three_headers() -> None:
    async def test(rig: Rig) -> None:
        await rig.models.text(exchange())
        head = rig.requests[0].lower().split(b"\r\n")
        assert head[0] == b"get /v1/models http/1.1"
        names = {line.partition(b":")[0] for line in head[1:]} - {b""}
        assert names == {b"host", b"authorization", b"accept-encoding"}

    run(test, response(FIRST))


def test_concurrent_requests_share_one_upstream_request() -> None:
    async def test(rig: Rig) -> None:
        texts: list[bytes] = []

        async def request() -> None:
            texts.append(await rig.models.text(exchange()))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(request)
        assert texts == [FIRST] * 50
        assert rig.requested_at == [0.0]

    run(test, response(FIRST, after=3.0))


def test_waiting_for_a_shared_request_is_waiting_for_upstream() -> None:
    async def test(rig: Rig) -> None:
        waiting = [exchange() for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for each in waiting:
                tasks.start_soon(rig.models.text, each)
                await anyio.sleep(1.0)
        assert [each.upstream_wait_seconds for each in waiting] == [5.0, 4.0, 3.0]
        again = exchange()
        await rig.models.text(again)
        assert again.upstream_wait_seconds == 0.0

    run(test, response(FIRST, after=5.0))


@pytest.mark.anyio
async def test_a_shared_request_is_waited_for_on_either_backend() -> None:
    may_respond = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await may_respond.wait()
        await peer.respond(FIRST)

    async with running_upstream(script) as peer:
        base = {"CEREBRAS_BASE_URL": f"http://127.0.0.1:{peer.port}"}
        config = Config.from_environment({"CEREBRAS_API_KEY": "k", **base})
        upstream = UpstreamClient(config)
        models, second = ModelList(config, upstream), exchange()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(models.text, exchange())
            await until(lambda: bool(peer.requests))
            tasks.start_soon(models.text, second)
            await wait_all_tasks_blocked()
            may_respond.set()
        upstream.pool.close()
        assert len(peer.requests) == 1
        assert second.upstream_wait_seconds > 0.0


def test_after_a_cancelled_request_the_next_one_fetches_the_list() -> None:
    async def test(rig: Rig) -> None:
        with anyio.move_on_after(1.0):
            await rig.models.text(exchange())
        assert await rig.models.text(exchange()) == SECOND
        assert rig.requested_at == [0.0, 1.0]

    run(test, never_respond, response(SECOND))


def test_without_an_upstream_the_list_comes_from_the_price_table() -> None:
    async def test(rig: Rig) -> None:
        assert await rig.ids() == BUILT_IN
        entry = {"id": "gpt-oss-120b", "object": "model", "created": 0, "owned_by": "Cerebras"}
        assert json.loads(await rig.models.entry(exchange(), "gpt-oss-120b")) == entry
        assert rig.requested_at == [0.0]

    run(test)


def test_after_a_failure_upstream_gets_no_request_for_5_seconds() -> None:
    async def test(rig: Rig) -> None:
        for moment in (0.0, 0.0, 4.999, 5.0, 9.999, 10.0):
            await anyio.sleep_until(moment)
            assert await rig.ids() == BUILT_IN
        assert rig.requested_at == [0.0, 5.0, 10.0]

    run(test)


def test_the_last_list_is_served_while_upstream_fails() -> None:
    async def test(rig: Rig) -> None:
        for moment in (0.0, 60.0, 64.999):
            await anyio.sleep_until(moment)
            assert await rig.models.text(exchange()) == FIRST
        assert rig.requested_at == [0.0, 60.0]
        await anyio.sleep_until(65.0)
        assert await rig.models.text(exchange()) == SECOND
        await anyio.sleep_until(124.999)
        await rig.models.text(exchange())
        assert rig.requested_at == [0.0, 60.0, 65.0]

    run(test, response(FIRST), response(b"{}", status=500), response(SECOND))


@pytest.mark.parametrize(
    "failure",
    [
        cut_short,
        disconnect,
        response(FIRST, status=401),
        response(FIRST, status=429),
        response(FIRST, status=203),
        response(b" " * (4 * 1024 * 1024) + FIRST),
        *(
            response(text)
            for text in (
                b"",
                b"no json",
                b"null",
                b"5",
                b"[]",
                b"{}",
                b'{"data":null}',
                b'{"data":{}}',
                b'{"data":{"id":"x"}}',
                b'{"data":"ab"}',
                b'{"data":5}',
                b'{"data":["x"]}',
                b'{"data":[null]}',
                b'{"data":[[]]}',
                b'{"data":[{}]}',
                b'{"data":[{"id":5}]}',
                b'{"data":[{"id":"x"},{"id":null}]}',
                b'{"data":[{"id":"\xff"}]}',
                b"[" * 100_000,
                b'{"data":[{"id":"x","deep":%s}]}' % (b"[" * 254 + b"]" * 254),
            )
        ),
    ],
)
def test_an_invalid_list_does_not_replace_the_last_one(failure: Response) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.models.text(exchange()) == FIRST
        await anyio.sleep_until(60.0)
        assert await rig.models.text(exchange()) == FIRST
        assert (await rig.models.entry(exchange(), "two")) == b'{"id":"two"}'
        await anyio.sleep_until(65.0)
        assert await rig.models.text(exchange()) == SECOND
        assert rig.requested_at == [0.0, 60.0, 65.0]

    run(test, response(FIRST), failure, response(SECOND))


@pytest.mark.parametrize("failure", [never_respond, drip])
def test_a_slow_upstream_is_waited_for_10_seconds(failure: Response) -> None:
    async def test(rig: Rig) -> None:
        assert await rig.ids() == BUILT_IN
        assert anyio.current_time() == 10.0
        await anyio.sleep_until(14.999)
        assert await rig.ids() == BUILT_IN
        await anyio.sleep_until(15.0)
        assert await rig.models.text(exchange()) == FIRST
        assert rig.requested_at == [0.0, 15.0]

    run(test, failure, response(FIRST))


def test_one_model_is_served_by_its_exact_name() -> None:
    async def test(rig: Rig) -> None:
        wanted: dict[str, Any] = {"id": "one", "owned_by": "C"}
        assert json.loads(await rig.models.entry(exchange(), "one")) == wanted
        for unknown in ("", "gpt-oss-120b", "one ", "ONE"):
            with pytest.raises(ModelNotFound):
                await rig.models.entry(exchange(), unknown)
        assert rig.requested_at == [0.0]

    run(test, response(FIRST))
