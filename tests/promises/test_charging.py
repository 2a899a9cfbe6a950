"""An exchange that reached the API is charged however it ends: by the usage that came, else by an
estimate that is marked as one."""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from end_to_end import (
    FINISH,
    TOKEN,
    Client,
    Conversation,
    Running,
    Script,
    ScriptedUpstream,
    body_of,
    chat,
    events,
    free_port,
    running_proxy,
    running_upstream,
)
from upstream_scripts import closes, resets, responds_with, silent, streams
from waiting import until

from ape_cerebras.limits.token_buckets import Budget, Hold, day_of

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

STREAM = b'{"model":"gpt-oss-120b","messages":[],"stream":true}'
PLAIN = b'{"model":"gpt-oss-120b","messages":[]}'
PROMPT = {STREAM: 13, PLAIN: 10}  # a token for four bytes
INPUT, OUTPUT = Decimal("0.35"), Decimal("0.75")  # of gpt-oss-120b, for a million
TOKENS = events(*[TOKEN] * 5)  # 1 + 4 * 6 tokens, of a model seen for the first time
STALLS = {"UPSTREAM_IDLE_TIMEOUT": "0.2", "UPSTREAM_FIRST_BYTE_TIMEOUT": "0.2"}
EXACT = {"TTFT_MODE": "exact"}
NO_USAGE = b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":%s}'
ERROR = b'{"status_code":500,"error":{"message":"m","type":"server_error","code":"","param":""}}'


class Charging(NamedTuple):
    """A proxy that charges alice for what she requests, and its upstream."""

    running: Running
    upstream: ScriptedUpstream

    async def client(self) -> Client:
        return await self.running.client()

    def lines(self) -> list[dict[str, Any]]:
        """Those of chat exchanges."""
        lines = self.running.lines.exchanges()
        return [line for line in lines if line["route"].endswith("completions")]

    async def line(self, number: int = 1) -> dict[str, Any]:
        await until(lambda: len(self.lines()) >= number)
        return self.lines()[number - 1]

    async def spent(self) -> Decimal:
        """US dollars that alice has spent, by the account of her budget. Nothing is reserved."""
        day, _ = day_of(time.time())
        budget = Budget("alice", day, Decimal(10**6))
        balance = await self.running.proxy._limits.reserve_dollars(budget, Decimal(0), Hold())
        assert balance.reserved == 0
        return balance.spent

    async def metrics(self) -> Counter[str]:
        """The sums of all metrics' samples, and the tokens that were counted by their kind; of one
        scrape."""
        sums: Counter[str] = Counter()
        for series, value in await self.running.samples():
            name, _, labels = series.removeprefix("cerebras_proxy_").partition("{")
            sums[name] += value  # type: ignore[assignment]
            if name == "tokens_total":
                assert labels.startswith('model="gpt-oss-120b",type="')
                sums[labels.split('"')[3]] += value  # type: ignore[assignment]
        return sums


@asynccontextmanager
async def charging(
    script: Script, directory: Path, /, budget: str = "1", **settings: str
) -> AsyncIterator["Charging"]:
    """A proxy with a key for alice, who has that many US dollars a day."""
    keys = directory / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "alice"\nkey = "key-of-alice"\nusd_per_day = {budget}\n')
    settings = {"APE_API_KEYS_FILE": str(keys), **settings}
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        yield Charging(running, upstream)


def request(body: bytes) -> bytes:
    return chat(body, b"Authorization: Bearer key-of-alice")


async def check_charged(
    it: Charging, prompt: int, completion: int, source: str = "estimated"
) -> dict[str, Any]:
    """Line, counters and budget have one exchange, with these tokens. Return the line."""
    line, metrics = await it.line(), await it.metrics()
    cost = (prompt * INPUT + completion * OUTPUT) / 10**6
    assert line["usage_source"] == source
    assert (line["prompt_tokens"], line["completion_tokens"]) == (prompt, completion)
    assert line["total_tokens"] == prompt + completion
    assert Decimal(str(line["cost_usd"])) == cost == await it.spent()
    assert metrics.keys() >= {"prompt", "completion"}
    assert (metrics["prompt"], metrics["completion"]) == (prompt, completion)
    assert metrics["client_tokens_total"] == prompt + completion
    for name in ("cost_usd_total", "client_cost_usd_total"):
        assert metrics[name] == pytest.approx(float(cost))
    assert metrics["usage_estimated_total"] == (source == "estimated")
    missing = source == "estimated" and line["outcome"] == "completed"
    assert metrics["usage_missing_total"] == missing
    return line


class End(NamedTuple):
    """An end: ``script`` of upstream, and the outcome of the exchange; how many tokens its
    completion is estimated at; whether the client has to leave, after how much."""

    script: Script
    outcome: str
    completion: int
    leaves_after: bytes | None = None
    settings: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


async def cut_in_the_body(peer: Conversation) -> None:
    await peer.request()
    await peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
    )
    await peer.send(b"x" * 480)


async def garbage(peer: Conversation) -> None:
    await peer.request()
    await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def message_pack(peer: Conversation) -> None:
    await peer.request()
    await peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\nContent-Length: 480\r\n\r\n"
    )
    await peer.send(b"x" * 480)


GONE, CUT, STALLED = "client_disconnected", "upstream_truncated", "upstream_stalled"
OF_STREAMS = {
    "gone before the head": End(silent, GONE, 0, b""),
    "gone before a token": End(streams(b": wait\n\n", then="stay"), GONE, 0, b": wait"),
    "gone in the middle": End(streams(TOKENS, then="stay"), GONE, 25, TOKEN),
    "cut before a token": End(streams(then="leave"), CUT, 0),
    "cut in the middle": End(streams(TOKENS, then="leave"), CUT, 25),
    "ended without the end marker": End(streams(TOKENS), CUT, 25),
    "stalled": End(streams(TOKENS, then="stay"), STALLED, 25, None, STALLS),
    "no head in time": End(silent, "upstream_timeout", 0, None, STALLS),
    "no time left": End(
        streams(TOKENS, then="stay"), "exchange_timeout", 25, None, {"REQUEST_TIMEOUT": "0.3"}
    ),
    "an error event": End(streams(TOKENS, events(ERROR)), "upstream_stream_error", 25),
    "closed without a response": End(closes, "upstream_invalid", 0),
    "reset without a response": End(resets, "upstream_invalid", 0),
    "not HTTP": End(garbage, "upstream_invalid", 0),
    **{
        f"usage: {usage.decode()}": End(
            streams(TOKENS, events(NO_USAGE % usage, b"[DONE]")), "completed", 25
        )
        for usage in (b"null", b"{}", b'{"prompt_tokens":null,"completion_tokens":"many"}')
    },
}
OF_PLAIN = {
    "gone before the head": End(silent, GONE, 0, b""),
    "cut in the body": End(cut_in_the_body, CUT, 50),
    "no head in time": End(silent, "upstream_timeout", 0, None, STALLS),
    "without usage": End(responds_with(200, b"%-480b" % b"{}"), "completed", 50),
    "not JSON": End(message_pack, "completed", 50),
}


async def play(it: Charging, body: bytes, end: End) -> None:
    client = await it.client()
    await client.send(request(body))
    if end.leaves_after is None:
        await it.line()
        return
    if end.leaves_after:
        await client.until(end.leaves_after)
    else:
        await until(lambda: bool(it.upstream.requests))
    client.stream.close()


@pytest.mark.parametrize("name", OF_STREAMS)
async def test_a_stream_is_charged_however_it_ends(name: str, tmp_path: Path) -> None:
    end = OF_STREAMS[name]
    async with charging(end.script, tmp_path, **end.settings) as it:
        await play(it, STREAM, end)
        line = await check_charged(it, PROMPT[STREAM], end.completion)
        assert line["outcome"] == end.outcome


@pytest.mark.parametrize("name", OF_PLAIN)
async def test_a_plain_request_is_charged_however_it_ends(name: str, tmp_path: Path) -> None:
    end = OF_PLAIN[name]
    async with charging(end.script, tmp_path, **end.settings) as it:
        await play(it, PLAIN, end)
        assert (await check_charged(it, PROMPT[PLAIN], end.completion))["outcome"] == end.outcome


@pytest.mark.parametrize("name", [*OF_STREAMS])
async def test_a_reassembled_stream_is_charged_however_it_ends(name: str, tmp_path: Path) -> None:
    end = OF_STREAMS[name]
    leaves = b"" if end.leaves_after else end.leaves_after  # it gets nothing before the end
    async with charging(end.script, tmp_path, **EXACT, **end.settings) as it:
        await play(it, PLAIN, end._replace(leaves_after=leaves))
        line = await it.line()
        prompt = -(-len(body_of(it.upstream.requests[0])) // 4)
        seen = end.completion if leaves is None else line["completion_tokens"]
        await check_charged(it, prompt, seen)


async def test_what_is_under_way_when_the_proxy_ends_is_charged(tmp_path: Path) -> None:
    async with charging(streams(TOKENS, then="stay"), tmp_path) as it:
        client = await it.client()
        await client.send(request(STREAM))
        await client.until(TOKEN)
    line = it.lines()[-1]
    assert (line["outcome"], line["usage_source"]) == ("shut_down", "estimated")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (13, 25)
    assert await it.spent() == Decimal(str(line["cost_usd"])) > 0


async def test_usage_that_came_counts_also_where_the_stream_is_cut_after_it(tmp_path: Path) -> None:
    last = b'{"choices":[],"usage":{"prompt_tokens":null,"completion_tokens":null}}'
    script = streams(TOKENS, events(FINISH, last), then="leave")
    async with charging(script, tmp_path) as it:
        await play(it, STREAM, End(script, CUT, 4))
        assert (await check_charged(it, 10, 4, "upstream"))["outcome"] == CUT


@pytest.mark.parametrize(
    ("usage", "prompt", "completion"),
    [
        (b'{"prompt_tokens":null,"completion_tokens":7}', PROMPT[STREAM], 7),
        (b'{"prompt_tokens":500}', 500, 25),
        (b'{"input_tokens":500,"output_tokens":null}', 500, 25),
    ],
)
async def test_of_half_a_usage_the_other_half_is_estimated(
    usage: bytes, prompt: int, completion: int, tmp_path: Path
) -> None:
    script = streams(TOKENS, events(NO_USAGE % usage, b"[DONE]"))
    async with charging(script, tmp_path) as it:
        await play(it, STREAM, End(script, "completed", completion))
        await check_charged(it, prompt, completion)


@pytest.mark.parametrize("body", [STREAM, PLAIN], ids=["stream", "plain"])
async def test_a_response_that_nobody_can_decode_is_charged_by_its_bytes(
    body: bytes, tmp_path: Path
) -> None:
    kind = b"text/event-stream" if body is STREAM else b"application/json"

    async def unreadable(peer: Conversation) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Encoding: compress\r\n" % kind
        await peer.send(head + b"Content-Length: 480\r\n\r\n" + b"\x1f\x9d\x90" * 160)

    async with charging(unreadable, tmp_path) as it:
        await play(it, body, End(unreadable, "completed", 120))
        await check_charged(it, PROMPT[body], 120)


async def test_tokens_behind_the_usage_of_a_cut_stream_are_added(tmp_path: Path) -> None:
    first = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":0,"total_tokens":7}}'
    async with charging(streams(events(first), TOKENS, then="leave"), tmp_path) as it:
        await play(it, STREAM, OF_STREAMS["cut in the middle"])
        await check_charged(it, 7, 30)


async def test_an_estimate_is_at_most_what_was_reserved(tmp_path: Path) -> None:
    body = b'{"model":"gpt-oss-120b","messages":[],"stream":true,"max_tokens":9}'
    async with charging(streams(TOKENS, then="leave"), tmp_path) as it:
        await play(it, body, OF_STREAMS["cut in the middle"])
        await check_charged(it, 17, 9)
        line = await it.line()
        assert line["total_tokens"] == 17 + 9


async def test_leaving_early_again_and_again_does_not_pass_a_budget(tmp_path: Path) -> None:
    body = b'{"model":"gpt-oss-120b","messages":[],"stream":true,"max_tokens":20}'
    async with charging(streams(TOKENS, then="stay"), tmp_path, budget="0.0001") as it:
        for number in range(1, 5):  # (17 * 0.35 + 20 * 0.75) / 10**6 dollars each
            client = await it.client()
            await client.send(request(body))
            await client.until(TOKEN)
            client.stream.close()
            await it.line(number)
        response = await (await it.client()).request(request(body))
        assert (response.status, response.json()["code"]) == (429, "budget_reserved")


async def test_events_carry_what_those_of_the_same_model_did_lately(tmp_path: Path) -> None:
    finish = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":41}}'
    whole = events(*[TOKEN] * 5, finish, b"[DONE]")

    async def script(peer: Conversation) -> None:
        for number in range(2):
            await peer.request()
            await peer.stream_head()
            await peer.chunk(whole if number == 0 else TOKENS)
            if number == 0:
                await peer.end()

    async with charging(script, tmp_path) as it:
        client = await it.client()
        await client.request(request(STREAM))
        await client.send(request(STREAM))
        assert (await it.line(2))["completion_tokens"] == 41


# Not charged


@pytest.mark.parametrize("status", [302, 400, 401, 402, 404, 429, 500, 503, 504])
async def test_a_request_that_the_api_did_not_accept_costs_nothing(
    status: int, tmp_path: Path
) -> None:
    async with charging(responds_with(status), tmp_path) as it:
        await play(it, STREAM, End(silent, "", 0))
        await check_free(it)


async def test_a_request_that_did_not_get_to_the_api_costs_nothing(tmp_path: Path) -> None:
    base = {"CEREBRAS_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    async with charging(silent, tmp_path, **base) as it:
        await play(it, STREAM, End(silent, "", 0))
        await check_free(it)


async def test_an_upload_that_was_reset_without_a_response_costs_nothing(tmp_path: Path) -> None:
    body = STREAM[:-1] + b',"user":"%s"}' % (b"x" * 8_000_000)  # more than the kernels hold

    async def resets_in_the_body(peer: Conversation) -> None:
        await peer.stream.receive(1)
        peer.stream.reset()

    async with charging(resets_in_the_body, tmp_path, RETRY_ATTEMPTS="0") as it:
        await play(it, body, End(resets_in_the_body, "", 0))
        await check_free(it)


async def check_free(it: Charging) -> None:
    line = await it.line()
    assert not {"usage_source", "total_tokens", "cost_usd"} & line.keys()
    assert await it.spent() == 0
    metrics = await it.metrics()
    for name in ("tokens_total", "cost_usd_total", "usage_estimated_total", "usage_missing_total"):
        assert metrics[name] == 0
