"""Prices read strictly, costs exact."""

import json
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.config.prices import Price, PriceTable, is_plausible_change


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
        ('{"m":{"input":1000,"output":"0.000100000001"}}', ("1000", "0.000100000001", "1000")),
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
        ('{"m":{"input":1000.1,"output":1}}', "not a number from 0 to 1000"),
        ('{"m":{"input":350000,"output":1}}', "not a number from 0 to 1000"),
        ('{"m":{"input":1,"output":0.00000075}}', "below 0.0001: it is per million"),
        ('{"m":{"input":1,"output":1,"cached_input":"9E-5"}}', "below 0.0001: it is per million"),
        ('{"m":{"input":"sNaN","output":1}}', "not a number from 0"),
        ('{"%s":{"input":-1,"output":1}}' % ("m" * 10**6), r"^model 'm{64}' has"),
        (json.dumps({n: {"input": 1, "output": 1} for n in range(1001)}), "more than 1000 models"),
        ('{"m":{"input":0.0000000000001,"output":1}}', "12 decimals"),
        ('{"m":{"input":1e-999999,"output":1}}', "12 decimals"),
        ('{"m":{"input":1,"output":1},"m":{"input":2,"output":2}}', "twice"),
        ('{"m":{"input":1,"input":2,"output":1}}', "twice"),
    ],
)
def test_an_invalid_price_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PriceTable.from_json(text)


def test_a_problem_names_its_model() -> None:
    with pytest.raises(ValueError, match="'dear'"):
        PriceTable.from_json('{"fine":{"input":1,"output":1},"dear":{"input":"x","output":1}}')


@pytest.mark.parametrize(
    ("after", "plausible"),
    [
        *(((input_, "0.75"), True) for input_ in ("0.35", "17.5", "0.007")),
        *(((input_, "0.75"), False) for input_ in ("0", "17.51", "0.0069", "35", "350")),
        (("0.35", "0"), False),
        (("0", "0"), False),
    ],
)
def test_a_change_of_the_unit_is_not_plausible(after: tuple[str, str], plausible: bool) -> None:
    old, new = (
        Price(Decimal(input_), Decimal(output), Decimal(input_))
        for input_, output in (("0.35", "0.75"), after)
    )
    assert is_plausible_change(old, new) is plausible
    assert is_plausible_change(new, old) is plausible
    assert is_plausible_change(new, new)


# Costs


def test_the_cost_of_a_recorded_exchange() -> None:
    # 136 tokens at 0.35 and 120 at 0.75 USD per million.
    cost = PriceTable.built_in().cost("gpt-oss-120b", 136, 120, 128)
    assert cost == Decimal("0.0001376")


def test_cached_tokens_have_their_own_price_and_are_not_charged_twice() -> None:
    table = PriceTable.from_json('{"m":{"input":10,"output":100,"cached_input":1}}')
    assert table.cost("m", 100, 1, 90) == Decimal("0.00029")
    more_cached_than_there_are = table.cost("m", 100, 0, 1000)
    assert more_cached_than_there_are == Decimal("0.0001")


def test_a_model_without_a_price_has_no_cost() -> None:
    assert PriceTable({}).cost("m", 1, 1, 0) is None
    assert PriceTable.from_json('{"m":{"input":0,"output":0}}').cost("m", 1, 1, 0) == 0
    assert PriceTable.from_json('{"m":{"input":0,"output":0}}').cost("M", 1, 1, 0) is None


prices = st.decimals(0, 10**6, places=12)
counts = st.integers(0, 2**64)


@given(prices, prices, prices, counts, counts, counts)
def test_costs_are_exact(
    input_: Decimal, output: Decimal, cached_input: Decimal, prompt: int, out: int, cached: int
) -> None:
    table = PriceTable({"m": Price(input_, output, cached_input)})
    cost = table.cost("m", prompt, out, cached)
    cached = min(cached, prompt)
    exact = (
        Fraction(input_) * (prompt - cached)
        + Fraction(cached_input) * cached
        + Fraction(output) * out
    ) / 10**6
    assert cost is not None
    assert Fraction(cost) == exact
    assert getcontext().prec == 28
