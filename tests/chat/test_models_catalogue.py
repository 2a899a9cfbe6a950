"""The API's public list, fetched in the background: the requests to upstream, and their effects."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
import trio
from end_to_end import KEY, Conversation, Lines, Running, chat, running_proxy, running_upstream
from memory_stream import MemoryStream, memory_pair
from mock_clock import on_mock_clock
from running_simulator import rig as simulator
from scraped_metrics import config_with, samples
from waiting import until

from ape_cerebras.chat.models import Catalogue, ModelList
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.simulator.replies import ERRORS
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.upstream.client import UpstreamClient

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

ON = {"PRICE_CATALOGUE": "on"}
RESPONSE = (
    b'{"model":"%s","choices":[{"message":{"content":"a"}}],'
    b'"usage":{"prompt_tokens":1000000,"completion_tokens":1000000,"total_tokens":2000000}}'
)


def entry(name: str, per_token: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "pricing": {"prompt": per_token, "completion": per_token}, **more}


def listing(*entries: dict[str, Any]) -> bytes:
    return orjson.dumps({"object": "list", "data": entries})


LISTING = listing(
    entry("gpt-oss-120b", "0.000005", limits={"max_context_length": 131072}),
    entry("brand-new-1b", "0.000001"),
    entry("gemma-4-31b", "0.000001", deprecated=True),
)


def api(public: bytes, **responses: bytes) -> Callable[[Conversation], Awaitable[None]]:
    """An API with this public list; ``responses``: errors by the model of a chat request."""

    async def script(peer: Conversation) -> None:
        while True:
            request = await peer.request()
            if request.startswith(b"GET /public"):
                await peer.respond(public)
            elif (name := orjson.loads(request.partition(b"\r\n\r\n")[2])["model"]) in responses:
                await peer.respond(responses[name], status="404 Not Found")
            else:
                await peer.respond(RESPONSE % name.encode())

    return script


async def fetched(running: Running, times: int = 1) -> None:
    await running.until_metric("cerebras_proxy_catalogue_fetches_total", lambda n: n >= times)


def chat_for(model: str) -> bytes:
    return chat(b'{"model":"%s","messages":[]}' % model.encode())


async def cost(running: Running, model: str) -> Decimal | None:
    """The logged cost of a million prompt and a million completion tokens."""
    await (await running.client()).request(chat_for(model))

    def lines() -> list[dict[str, Any]]:
        return [line for line in running.lines.exchanges() if line.get("model") == model]

    await until(lambda: bool(lines()))
    [line] = lines()
    return Decimal(str(line["cost_usd"])) if "cost_usd" in line else None


def logged(lines: Lines) -> list[dict[str, Any]]:
    """The log lines about the list and its models, without timestamp and trace id."""
    return [
        {key: value for key, value in line.items() if key not in ("timestamp", "trace_id")}
        for line in lines.all()
        if "list of models" in line["message"] or "this model" in line["message"]
    ]


async def test_the_list_is_requested_without_the_key() -> None:
    async with running_upstream(api(LISTING)) as upstream, running_proxy(upstream.port, **ON) as it:
        await fetched(it)
        assert await it.sample('cerebras_proxy_catalogue_fetches_total{result="ok"}') == 1
        routes = {line["route"] for line in it.lines.exchanges()}
    [request] = upstream.requests
    assert request.startswith(b"GET /public/v1/models HTTP/1.1\r\n")
    assert b"authorization" not in request.lower()
    assert KEY[:6].encode() not in request
    assert routes == {"/metrics"}


async def test_the_fetched_prices_and_models_are_used() -> None:
    async with running_upstream(api(LISTING)) as upstream, running_proxy(upstream.port, **ON) as it:
        await fetched(it)
        assert await cost(it, "gpt-oss-120b") == 10
        assert await cost(it, "brand-new-1b") == 2
        assert await cost(it, "llama3.1-8b") == Decimal("0.2")  # which is not on the list
        assert await cost(it, "unheard-of") is None
        requests = "cerebras_proxy_requests_total"
        assert await it.sample(f'{requests}{{model="brand-new-1b"}}') == 1
        assert await it.sample(f'{requests}{{model="other"}}') == 1
        drift = {
            kind: await it.sample(f'cerebras_proxy_catalogue_drift{{kind="{kind}"}}')
            for kind in ("price", "only_listed", "not_listed")
        }
        limit = 'cerebras_proxy_model_limit{kind="context_tokens",model="gpt-oss-120b"}'
        assert await it.sample(limit) == 131072
    assert drift == {"price": 2, "only_listed": 1, "not_listed": 4}
    assert logged(it.lines) == [
        {
            "level": "warning",
            "message": "The API's list of models differs from the price table",
            "price": ["gpt-oss-120b", "gemma-4-31b"],
            "only_listed": ["brand-new-1b"],
            "not_listed": [
                *("qwen-3.8-27b", "zai-glm-4.7", "llama3.1-8b", "qwen-3-235b-a22b-instruct-2507"),
            ],
        }
    ]


async def test_prices_that_are_set_win_over_the_list() -> None:
    own = {"MODEL_PRICES": '{"gpt-oss-120b":{"input":"2","output":"2"}}', **ON}
    async with (
        running_upstream(api(LISTING)) as upstream,
        running_proxy(upstream.port, **own) as it,
    ):
        await fetched(it)
        assert await cost(it, "gpt-oss-120b") == 4
        assert await cost(it, "brand-new-1b") == 2
        assert await cost(it, "llama3.1-8b") is None


async def test_by_default_the_list_is_not_requested() -> None:
    async with running_upstream(api(LISTING)) as upstream, running_proxy(upstream.port) as it:
        assert await cost(it, "gpt-oss-120b") == Decimal("1.1")
        assert await it.metric("cerebras_proxy_catalogue_fetches_total") == 0
    assert [request.split(b" ")[0] for request in upstream.requests] == [b"POST"]


@pytest.mark.parametrize(
    "public", [b"<html>", b'{"data":3}', b" " * 300_000, b'{"data":["%s"]}' % KEY.encode()]
)
async def test_an_invalid_list_changes_no_price(public: bytes) -> None:
    async with running_upstream(api(public)) as upstream, running_proxy(upstream.port, **ON) as it:
        await fetched(it)
        assert await it.sample('cerebras_proxy_catalogue_fetches_total{result="failed"}') == 1
        assert await cost(it, "gpt-oss-120b") == Decimal("1.1")
    message = "The API's public list of models could not be fetched"
    assert logged(it.lines) == [{"level": "warning", "message": message}]
    assert KEY[:6].encode() not in b"".join(it.lines.raw)


async def test_a_price_of_another_unit_is_refused_by_name_and_the_old_one_stays() -> None:
    public = listing(entry("gpt-oss-120b", "0.35"), entry("brand-new-1b", "1e-6"))
    async with running_upstream(api(public)) as upstream, running_proxy(upstream.port, **ON) as it:
        await fetched(it)
        assert await it.sample('cerebras_proxy_catalogue_drift{kind="price_refused"}') == 2
        assert await cost(it, "gpt-oss-120b") == Decimal("1.1")
        assert await cost(it, "brand-new-1b") is None
    [line] = logged(it.lines)
    assert line["level"] == "warning"
    assert line["price_refused"] == ["gpt-oss-120b", "brand-new-1b"]


async def test_the_simulator_serves_the_list() -> None:
    async with simulator(api_key=KEY) as simulated, running_proxy(simulated.port, **ON) as it:
        await fetched(it)
        assert await it.sample('cerebras_proxy_catalogue_fetches_total{result="ok"}') == 1
        assert await it.metric("cerebras_proxy_catalogue_drift") == 0
        limit = 'cerebras_proxy_model_limit{kind="completion_tokens",model="gpt-oss-120b"}'
        assert await it.sample(limit) == 40960
    assert logged(it.lines) == []


# Models that upstream does not have

MISSING = ERRORS["model_not_found"].body


def missing(model: str, closest: str) -> dict[str, str]:
    message = "Upstream does not have this model; an alias in MODEL_ALIASES would help"
    return {"level": "warning", "message": message, "model": model, "closest_model": closest}


async def test_a_missing_model_is_logged_once_with_the_closest_listed_one() -> None:
    gone = {"gpt-oss-20b": MISSING, "brand-old": MISSING, "gemma-4-31b": MISSING}
    async with (
        running_upstream(api(LISTING, **gone)) as upstream,
        running_proxy(upstream.port, **ON) as it,
    ):
        await fetched(it)
        client = await it.client()
        for model in (*gone, *gone, "gpt-oss-120b"):
            await client.request(chat_for(model))
        lines = [line for line in logged(it.lines) if "model" in line]
        traces = [line["trace_id"] for line in it.lines.exchanges() if line["route"] != "/metrics"]
        of_them = [line["trace_id"] for line in it.lines.all() if "closest_model" in line]
    assert lines == [
        missing("gpt-oss-20b", "gpt-oss-120b"),
        missing("brand-old", "brand-new-1b"),
        missing("gemma-4-31b", "brand-new-1b"),
    ]
    assert of_them == traces[:3]


async def test_a_deprecated_model_is_not_proposed() -> None:
    async with (
        running_upstream(api(LISTING, **{"gemma-4-31x": MISSING})) as upstream,
        running_proxy(upstream.port, **ON) as it,
    ):
        await fetched(it)
        await (await it.client()).request(chat_for("gemma-4-31x"))
    assert logged(it.lines)[-1]["closest_model"] != "gemma-4-31b"


async def test_without_the_list_the_closest_known_model_is_proposed() -> None:
    gone = dict.fromkeys(("qwen-3.8-27b", "qwen-3-32b"), MISSING)
    async with (
        running_upstream(api(LISTING, **gone)) as upstream,
        running_proxy(upstream.port) as it,
    ):
        client = await it.client()
        for name in gone:
            assert (await client.request(chat_for(name))).body == MISSING
    assert logged(it.lines) == [
        missing("qwen-3.8-27b", "qwen-3-235b-a22b-instruct-2507"),
        missing("qwen-3-32b", "qwen-3-235b-a22b-instruct-2507"),  # not one that is missing too
    ]


async def test_names_from_clients_are_logged_in_bounded_number_and_length() -> None:
    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            await peer.respond(MISSING, status="404 Not Found")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as it:
        client = await it.client()
        for end in ("y", "z"):  # too long to be remembered
            name = "\x00\u2028\n" + "x" * 900 + end
            await client.request(chat(orjson.dumps({"model": name})))
        for number in range(110):
            await client.request(chat_for(f"model-{number}"))
    lines = [line for line in it.lines.raw if b"closest_model" in line]
    assert len(lines) == 100
    assert max(map(len, lines)) < 1000
    assert orjson.loads(lines[1])["model"] == "model-0"
    assert lines[0].isascii()
    assert orjson.loads(lines[0])["model"].startswith("\x00\\u2028\nxxx")


async def test_other_404s_are_not_logged_as_missing_models() -> None:
    gone = {"gpt-oss-20b": b'{"code":"other"}', "brand-old": b""}
    async with (
        running_upstream(api(LISTING, **gone)) as upstream,
        running_proxy(upstream.port) as it,
    ):
        client = await it.client()
        for name in gone:
            await client.request(chat_for(name))
    assert logged(it.lines) == []


# Labels


def test_a_growing_list_makes_at_most_100_labels() -> None:
    metrics = Metrics(config_with(), "trio")
    names = [f"model-{number}" for number in range(1000)]
    for begin in range(0, 1000, 50):
        metrics.set_catalogue({name: {} for name in names[begin : begin + 50]}, {})
    labels = {metrics.model_label(name) for name in names}
    assert len(labels) == 101
    assert labels == {*names[:100], "other"}
    assert metrics.model_label(None) == "other"


def test_a_model_removed_from_the_list_loses_its_limits() -> None:
    metrics = Metrics(config_with(), "trio")
    for names in (["one", "two"], ["two"]):
        metrics.set_catalogue({name: {"context_tokens": 8} for name in names}, {})
    limits = [each for each in samples(metrics) if each.name == "cerebras_proxy_model_limit"]
    assert [each.labels["model"] for each in limits] == ["two"]


# At exact times


class FakeUpstream:
    """The upstream of a catalogue: sends these responses, then refuses connections."""

    def __init__(self, tasks: trio.Nursery, responses: list[bytes | None]) -> None:
        self._tasks = tasks
        self._responses = responses
        self.requested_at: list[float] = []
        self.lines = Lines()
        config = config_with(CEREBRAS_BASE_URL="http://upstream")
        upstream = UpstreamClient(config, self.connect)
        models, metrics = ModelList(config, upstream), Metrics(config, "trio")
        logs = Logs("debug", self.lines.write)
        self.catalogue = Catalogue(config, upstream, models, metrics, logs)
        tasks.start_soon(self.catalogue.refresh_hourly, Exchange(started_at=trio.current_time()))

    async def connect(self, host: str, port: int) -> TimestampedStream:
        self.requested_at.append(trio.current_time())
        response = self._responses.pop(0) if self._responses else b""
        if response == b"":
            raise ConnectionRefusedError
        ours, theirs = memory_pair()
        self._tasks.start_soon(self._serve, theirs, response)
        return ours

    async def _serve(self, peer: MemoryStream, response: bytes | None) -> None:
        await peer.receive()
        if response is None:
            await trio.sleep_forever()
        else:
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(response)
            await peer.send(head + response)
            peer.close()


def play(responses: list[bytes | None], seconds: float) -> FakeUpstream:
    played: list[FakeUpstream] = []

    async def test() -> None:
        async with trio.open_nursery() as tasks:
            played.append(FakeUpstream(tasks, responses))
            await trio.sleep(seconds)
            tasks.cancel_scope.cancel()

    on_mock_clock(test)
    return played[0]


def test_the_list_is_requested_every_hour_also_after_failures() -> None:
    played = play([LISTING, b"", LISTING], 4 * 3600 - 1)
    assert played.requested_at == [0, 3600, 7200, 10800]


def test_a_fetch_is_given_up_after_30_seconds() -> None:
    played = play([None, LISTING], 3700)
    assert played.requested_at == [0, 3630]
    messages = [line["message"] for line in played.lines.all()]
    assert messages[0] == "The API's public list of models could not be fetched"


def test_a_price_refused_keeps_the_one_that_the_list_had_before() -> None:
    odd = listing(entry("gpt-oss-120b", "0.000005"), entry("brand-new-1b", "1"))
    played = play([LISTING, odd], 2 * 3600 - 1)
    assert played.catalogue.prices.prices["brand-new-1b"].input == 1
    assert played.lines.all()[-1]["price_refused"] == ["brand-new-1b"]


def test_a_drift_is_logged_again_only_when_it_changes() -> None:
    other = listing(entry("gpt-oss-120b", "0.000006"))
    played = play([LISTING, LISTING, other, LISTING], 4 * 3600 - 1)
    drifts = [line for line in played.lines.all() if "price" in line]
    assert [line["price"] for line in drifts] == [
        ["gpt-oss-120b", "gemma-4-31b"],
        ["gpt-oss-120b"],
        ["gpt-oss-120b", "gemma-4-31b"],
    ]
