"""The findings in responses that are too large to be parsed at once."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.chat.meter import meter_for
from ape_cerebras.chat.sse import parts
from ape_cerebras.telemetry.exchange import Exchange

LARGE = "a" * 300_000
NAMES = r'"usage":{"total_tokens":9},\"model\":\"b\"'
USAGE = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
TOTALS = {"model": "m", "usage": USAGE, "time_info": {"queue_time": 0.5}}


def metered(content_type: bytes, *chunks: bytes) -> Exchange:
    exchange = Exchange(started_at=0.0)
    meter = meter_for(exchange, 200, content_type)
    for number, chunk in enumerate(chunks, 1):
        meter.feed(chunk, float(number), None)
    meter.end()
    return exchange


def plain(response: Any, size: int = 65_536) -> Exchange:
    text = orjson.dumps(response)
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    return metered(b"application/json", *chunks)


def stream(*events: Any) -> Exchange:
    return metered(b"text/event-stream", *(b"data: %s\n\n" % orjson.dumps(each) for each in events))


def choices(text: str, name: str = "content") -> list[Any]:
    return [{"delta": {name: text}}]


def check_totals(exchange: Exchange) -> None:
    assert exchange.usage is not None
    assert exchange.usage.total_tokens == 4
    assert exchange.time_info is not None
    assert exchange.time_info.queue == 0.5
    assert exchange.response_model == "m"


@pytest.mark.parametrize("size", [7, 1000, 65_536, 300_000])
@pytest.mark.parametrize("text", [LARGE, LARGE + NAMES])
def test_totals_at_the_end_of_a_plain_response(text: str, size: int) -> None:
    check_totals(plain({"choices": [{"message": {"content": text}}], **TOTALS}, size))


def test_a_plain_response_that_is_not_so_large_may_have_them_anywhere() -> None:
    check_totals(plain({**TOTALS, "choices": ["a" * 200_000]}))


def test_totals_that_are_no_members_of_the_response_itself() -> None:
    inner = {"a": {"usage": {"total_tokens": 9}, "model": "b"}}
    assert plain({"choices": [LARGE], "b": inner}).usage is None
    check_totals(plain({"choices": [LARGE], **TOTALS, "b": inner}))


def test_a_large_event_brings_its_tokens_and_totals() -> None:
    exchange = stream({"choices": choices(LARGE), **TOTALS})
    check_totals(exchange)
    assert (exchange.first_token_at, exchange.first_output_at) == (1.0, 1.0)
    assert (exchange.last_token_at, exchange.token_events) == (1.0, 1)


def test_a_large_event_of_reasoning_is_no_output() -> None:
    exchange = stream({"choices": choices(LARGE, "reasoning")}, {"choices": choices("a")})
    assert exchange.has_reasoning
    assert (exchange.first_token_at, exchange.first_output_at) == (1.0, 2.0)


@pytest.mark.parametrize(("error", "failed"), [({"message": LARGE}, True), (None, False)])
def test_a_large_event_that_is_an_error(error: Any, failed: bool) -> None:
    assert stream({"error": error, "x": LARGE}).stream_failed is failed


def test_a_large_event_without_tokens() -> None:
    exchange = stream({"choices": choices(""), "x": LARGE})
    assert exchange.first_token_at is None


# Reads in parts


def test_a_read_of_ordinary_events_is_one_part() -> None:
    for chunk in (b"", b"data: a\n\n", (b"data: %s\n\n" % (b"a" * 250)) * 250, b"a" * 65_536):
        assert list(parts(chunk)) == [chunk]


@pytest.mark.parametrize("event", [b"data:{}\n\n", b"\n", b"\r", b": wait\n\n", b"data: a\n\n"])
def test_a_read_of_very_many_lines_is_cut(event: bytes) -> None:
    chunk = event * (65_536 // len(event))
    found = list(parts(chunk))
    assert b"".join(found) == chunk
    assert max(map(len, found)) <= 2048


def test_it_is_cut_between_events() -> None:
    found = list(parts(b"data: abcdefg\n\n" * 4000))
    assert all(part.startswith(b"data: ") and part.endswith(b"\n\n") for part in found)


@given(st.lists(st.sampled_from([b"data: a\n\n", b"\n", b"\r", b"a" * 90]), min_size=1))
def test_nothing_is_lost_between_parts(some: list[bytes]) -> None:
    chunk = b"".join(some) * 300
    assert b"".join(parts(chunk)) == chunk
