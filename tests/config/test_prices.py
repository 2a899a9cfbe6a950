"""Counts read permissively, prices strictly, costs exactly."""

from decimal import Decimal, getcontext
from fractions import Fraction
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.config.prices import (
    Price,
    PriceTable,
    TimeInfo,
    Usage,
    read_json,
    read_time_info,
    read_usage,
)

GEMMA = (
    b'{"total_tokens":22,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":0},'
    b'"prompt_tokens":20,"prompt_tokens_details":{"cached_tokens":0,"image_tokens":0}}'
)
GPT_OSS = (
    b'{"total_tokens":116,"completion_tokens":37,"completion_tokens_details":'
    b'{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0,"reasoning_tokens":25},'
    b'"prompt_tokens":79,"prompt_tokens_details":{"cached_tokens":0}}'
)
CACHED = (
    b'{"total_tokens":256,"completion_tokens":120,"completion_tokens_details":'
    b'{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0,"reasoning_tokens":89},'
    b'"prompt_tokens":136,"prompt_tokens_details":{"cached_tokens":128}}'
)
TIMES = (
    b'{"created":1787427094.337268,"queue_time":0.00012279,"prompt_time":0.001922189,'
    b'"completion_time":0.00024986,"total_time":0.0033884048461914062}'
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":[1,2.5,null]}', {"a": [1, 2.5, None]}),
        (b'{"a":"\\ud83d"}', {"a": "\ud83d"}),  # half of a pair, cut between two tokens
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        *((text, None) for text in (b"", b"{", b"nonsense", b"[DONE]", b"[" * 100_000)),
    ],
)
def test_json_of_answers(text: bytes, value: Any) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (GEMMA, Usage(20, 2, 22, 0, 0)),
        (GPT_OSS, Usage(79, 37, 116, 0, 25)),
        (CACHED, Usage(136, 120, 256, 128, 89)),
        (b"{}", None),
        (b'{"prompt_tokens":5,"completion_tokens":7}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":5,"completion_tokens":7,"total_tokens":13}', Usage(5, 7, 13, 0, 0)),
        (b'{"prompt_tokens":5,"prompt_tokens_details":null}', Usage(5, 0, 5, 0, 0)),
        (b'{"prompt_tokens":5,"prompt_tokens_details":[1]}', Usage(5, 0, 5, 0, 0)),
        (
            b'{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":null}}',
            Usage(5, 0, 5, 0, 0),
        ),
        (b'{"prompt_tokens":"5","completion_tokens":7}', Usage(0, 7, 7, 0, 0)),
        (b'{"prompt_tokens":true,"completion_tokens":7}', Usage(0, 7, 7, 0, 0)),
        (b'{"prompt_tokens":-5,"completion_tokens":7}', Usage(0, 7, 7, 0, 0)),
        (b'{"prompt_tokens":5.5,"completion_tokens":7}', Usage(0, 7, 7, 0, 0)),
        (b"null", None),
        (b"[]", None),
        (b"5", None),
        (b'"x"', None),
    ],
)
def test_read_usage(text: bytes, usage: Usage | None) -> None:
    assert read_usage(orjson.loads(text)) == usage


@pytest.mark.parametrize(
    ("info", "times"),
    [
        (orjson.loads(TIMES), TimeInfo(0.00012279, 0.001922189, 0.00024986)),
        ({}, None),
        ({"queue_time": None, "prompt_time": 1}, TimeInfo(None, 1.0, None)),
        ({"queue_time": 0, "prompt_time": -1, "completion_time": "1"}, TimeInfo(0.0, None, None)),
        (
            {"queue_time": True, "prompt_time": [], "completion_time": 2.5},
            TimeInfo(None, None, 2.5),
        ),
        ({"queue_time": float("inf"), "prompt_time": float("nan")}, TimeInfo(None, None, None)),
        ({"queue_time": 10**400, "prompt_time": 1.5}, TimeInfo(None, 1.5, None)),
        (None, None),
        ([], None),
        ("x", None),
    ],
)
def test_read_time_info(info: Any, times: TimeInfo | None) -> None:
    assert read_time_info(info) == times


strange = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(
            [
                *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
                *("completion_tokens_details", "cached_tokens", "reasoning_tokens"),
                *("queue_time", "prompt_time", "completion_time"),
            ]
        ),
        inner | st.lists(inner, max_size=2),
        max_size=6,
    ),
)


@given(strange)
def test_nothing_strange_raises_or_gives_less_than_nothing(value: Any) -> None:
    usage, times = read_usage(value), read_time_info(value)
    assert (usage is None) == (times is None) == (not isinstance(value, dict) or not value)
    assert all(type(count) is int and count >= 0 for count in usage or ())
    assert all(each is None or 0 <= each < float("inf") for each in times or ())


# Prices


def test_the_built_in_prices() -> None:
    prices = PriceTable.built_in().prices
    assert {model: (str(row.input), str(row.output)) for model, row in prices.items()} == {
        "gpt-oss-120b": ("0.35", "0.75"),
        "qwen-3.8-27b": ("0.99", "1.49"),
        "gemma-4-31b": ("0.99", "1.49"),
        "zai-glm-4.7": ("2.25", "2.75"),
        "llama3.1-8b": ("0.10", "0.10"),
        "qwen-3-235b-a22b-instruct-2507": ("0.60", "1.20"),
    }
    assert all(row.cached_input == row.input for row in prices.values())


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ('{"m":{"input":"0.35","output":"0.75"}}', ("0.35", "0.75", "0.35")),
        ('{"m":{"input":0.1,"output":0.3}}', ("0.1", "0.3", "0.1")),
        ('{"m":{"input":1,"output":2,"cached_input":0}}', ("1", "2", "0")),
        ('{"m":{"input":2e-1,"output":"1E1"}}', ("0.2", "10", "0.2")),
        ('{"m":{"input":1000000,"output":"0.000000000001"}}', ("1000000", "1e-12", "1000000")),
    ],
)
def test_prices_are_read_without_rounding(text: str, amounts: tuple[str, str, str]) -> None:
    assert PriceTable.from_json(text).prices == {"m": Price(*map(Decimal, amounts))}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"m":{"input":NaN,"output":1}}', "not a number"),
        ("[]", "JSON object"),
        ('"m"', "JSON object"),
        ('{"m":1}', "needs input and output"),
        ('{"m":{"input":1}}', "needs input and output"),
        ('{"m":{"input":1,"output":1,"outptu":1}}', "needs input and output"),
        ('{"m":{"input":-1,"output":1}}', "not a number from 0"),
        ('{"m":{"input":"","output":1}}', "not a number from 0"),
        ('{"m":{"input":"free","output":1}}', "not a number from 0"),
        ('{"m":{"input":null,"output":1}}', "not a number from 0"),
        ('{"m":{"input":true,"output":1}}', "not a number from 0"),
        ('{"m":{"input":[1],"output":1}}', "not a number from 0"),
        ('{"m":{"input":"Infinity","output":1}}', "not a number from 0"),
        ('{"m":{"input":Infinity,"output":1}}', "not a number from 0"),
        ('{"m":{"input":"1_0","output":1}}', "not a number from 0"),
        ('{"m":{"input":1e999999,"output":1}}', "not a number from 0"),
        ('{"m":{"input":1e99999999999999999999,"output":1}}', "not a number from 0"),
        ('{"m":{"input":1000001,"output":1}}', "not a number from 0"),
        ('{"m":{"input":0.0000000000001,"output":1}}', "12 decimals"),
        ('{"m":{"input":1e-999999,"output":1}}', "12 decimals"),
        ('{"m":{"input":1,"output":1},"m":{"input":2,"output":2}}', "twice"),
        ('{"m":{"input":1,"input":2,"output":1}}', "twice"),
    ],
)
def test_a_price_that_is_wrong_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PriceTable.from_json(text)


def test_what_is_wrong_is_said_of_the_model() -> None:
    with pytest.raises(ValueError, match="'dear'"):
        PriceTable.from_json('{"fine":{"input":1,"output":1},"dear":{"input":"x","output":1}}')


# Costs


def test_the_cost_of_a_recorded_exchange() -> None:
    # 136 tokens at 0.35 and 120 at 0.75 USD per million.
    cost = PriceTable.built_in().cost("gpt-oss-120b", Usage(136, 120, 256, 128, 89))
    assert cost == Decimal("0.0001376")


def test_cached_tokens_have_their_own_price_and_are_not_charged_twice() -> None:
    table = PriceTable.from_json('{"m":{"input":10,"output":100,"cached_input":1}}')
    assert table.cost("m", Usage(100, 1, 101, 90, 0)) == Decimal("0.00029")
    more_cached_than_there_are = table.cost("m", Usage(100, 0, 100, 1000, 0))
    assert more_cached_than_there_are == Decimal("0.0001")


def test_a_model_without_a_price_has_no_cost() -> None:
    assert PriceTable({}).cost("m", Usage(1, 1, 2, 0, 0)) is None
    assert PriceTable.from_json('{"m":{"input":0,"output":0}}').cost("m", Usage(1, 1, 2, 0, 0)) == 0
    assert (
        PriceTable.from_json('{"m":{"input":0,"output":0}}').cost("M", Usage(1, 1, 2, 0, 0)) is None
    )


prices = st.decimals(0, 10**6, places=12)
counts = st.integers(0, 2**64)


@given(prices, prices, prices, counts, counts, counts)
def test_costs_are_exact(
    input_: Decimal, output: Decimal, cached_input: Decimal, prompt: int, out: int, cached: int
) -> None:
    table = PriceTable({"m": Price(input_, output, cached_input)})
    cost = table.cost("m", Usage(prompt, out, prompt + out, cached, 0))
    cached = min(cached, prompt)
    exact = (
        Fraction(input_) * (prompt - cached)
        + Fraction(cached_input) * cached
        + Fraction(output) * out
    ) / 10**6
    assert cost is not None
    assert Fraction(cost) == exact
    assert getcontext().prec == 28
