"""Reading of the API's public list, and merging it with the price table."""

from decimal import Decimal
from typing import Any

import orjson
import pytest
from characters import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.chat.models import Drift, Model, checked, closest, drift, merged, read_catalogue
from ape_cerebras.config.prices import Price, PriceTable
from ape_cerebras.simulator.replies import model_list

# Recorded in August 2026, but for its description.
RECORDED = (
    b'{"object":"list","data":[{"id":"gpt-oss-120b","object":"model","created":1754438400,'
    b'"owned_by":"OpenAI","name":"OpenAI GPT OSS","description":"\xe2\x80\xa6",'
    b'"hugging_face_id":"openai/gpt-oss-120b","pricing":{"prompt":"0.00000035",'
    b'"completion":"0.00000075"},"capabilities":{"streaming":true},"limits":'
    b'{"max_context_length":131072,"max_completion_tokens":40960,"requests_per_minute":null,'
    b'"tokens_per_minute":null},"datacenter_locations":[],"deprecated":false,"preview":false,'
    b'"quantization":"FP16/8 (weights only)"}]}'
)
BUILT_IN = PriceTable.built_in()


def price(prompt: str, completion: str) -> Price:
    return Price(Decimal(prompt), Decimal(completion), Decimal(prompt))


def model(prompt: str = "1", completion: str = "2", *, deprecated: bool = False) -> Model:
    return Model(price(prompt, completion), {}, deprecated)


def listed(**fields: Any) -> Model:
    """The model that is read from an entry with these fields."""
    return read_catalogue(orjson.dumps({"data": [{"id": "m", **fields}]}))["m"]


def test_a_recorded_list() -> None:
    limits = {"context_tokens": 131_072, "completion_tokens": 40_960}
    assert read_catalogue(RECORDED) == {"gpt-oss-120b": Model(price("0.35", "0.75"), limits, False)}


def test_the_list_of_the_simulator_has_the_built_in_prices() -> None:
    models = read_catalogue(model_list(public=True))
    assert {name: each.price for name, each in models.items()} == BUILT_IN.prices
    assert drift(BUILT_IN, models) == Drift((), (), ())


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"{}", b"null", b"3", b'"data"', b'{"data":{}}', b'{"data":null}'),
        *(b'{"data":"models"}', b"\xff", b"[" * 2000, b'{"data":[' + b"0," * 100 + b"0]}"),
    ],
)
def test_an_invalid_list_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^is no list of models"):
        read_catalogue(text)


@pytest.mark.parametrize("entry", [None, 1, "m", [], {}, {"id": 1}, {"id": "a b"}, {"id": "é"}])
def test_invalid_entries_are_skipped(entry: Any) -> None:
    text = orjson.dumps({"data": [entry, {"id": "x" * 65}, {"id": ""}, {"id": "m"}]})
    assert read_catalogue(text) == {"m": Model(None, {}, False)}


@pytest.mark.parametrize(
    "pricing",
    [
        *([], "0.1", {}, {"prompt": "0.000001"}, {"completion": "0.000001"}),
        *(
            {"prompt": odd, "completion": "0.000001"}
            for odd in (
                *(0.000001, None, "", "-1", "+1", "1e-6", "nan", "1e999999999", "0,1", " 1", "٥"),
                *("0." + "0" * 18 + "1", "1" * 7, "2"),
                *("0.35", "0.0010001", "0.00000000009", "0.000000000000000001"),  # another unit
            )
        ),
    ],
)
def test_an_invalid_price_is_refused(pricing: Any) -> None:
    assert listed(pricing=pricing) == Model(None, {}, False, price_refused=True)


@pytest.mark.parametrize("fields", [{}, {"pricing": None}])
def test_a_model_may_have_no_price(fields: dict[str, Any]) -> None:
    assert listed(**fields) == Model(None, {}, False)


def test_a_price_that_cannot_have_become_of_the_one_before_is_refused() -> None:
    before = PriceTable(
        {name: price("0.35", "0.75") for name in ("same", "odd", "thousand", "free")}
    )
    models = {
        "same": model("0.35", "0.75"),
        "odd": Model(None, {}, False, price_refused=True),
        "thousand": model("350", "750"),
        "free": model("0", "0"),
        "new": model("350", "750"),
        "oddly new": Model(None, {}, False, price_refused=True),
    }
    found = checked(models, before)
    assert [name for name, each in found.items() if each.price_refused] == [
        *("odd", "thousand", "free", "oddly new")
    ]
    assert merged(PriceTable({}), found).prices == {**before.prices, "new": price("350", "750")}
    assert drift(before, found) == Drift(
        (), ("new", "oddly new"), (), ("odd", "thousand", "free", "oddly new")
    )


def test_prices_are_exact() -> None:
    read = listed(pricing={"prompt": "0.000000000100000001", "completion": "0.000999999"}).price
    assert read == price("0.000100000001", "999.999")
    assert listed(pricing={"prompt": "0", "completion": "0"}).price == price("0", "0")


@pytest.mark.parametrize("limits", [None, [], "x", 1, {"max_context_length": None}])
def test_invalid_limits_are_none(limits: Any) -> None:
    assert listed(limits=limits).limits == {}
    odd = {"max_context_length": 0, "max_completion_tokens": True, "tokens_per_minute": 2**41}
    assert listed(limits={**odd, "requests_per_minute": 30}).limits == {"requests_per_minute": 30}


def test_only_true_makes_a_model_deprecated() -> None:
    assert listed(deprecated=True).deprecated
    assert not listed(deprecated="yes").deprecated


def test_the_list_wins_over_the_built_in_table() -> None:
    table = merged(BUILT_IN, {"gpt-oss-120b": model("3", "4"), "new": model(), "free": listed()})
    assert table.prices["gpt-oss-120b"] == price("3", "4")
    assert table.prices["new"] == price("1", "2")
    assert table.prices["llama3.1-8b"] == BUILT_IN.prices["llama3.1-8b"]
    assert "free" not in table.prices
    assert PriceTable.built_in() == BUILT_IN  # as it was


def test_a_price_table_that_is_set_wins_over_the_list() -> None:
    own = PriceTable.from_json('{"gpt-oss-120b":{"input":"0.35","output":"0.75"}}')
    table = merged(own, {"gpt-oss-120b": model("3", "4"), "new": model()})
    assert table.prices == {"gpt-oss-120b": price("0.35", "0.75"), "new": price("1", "2")}
    same = PriceTable(BUILT_IN.prices)
    assert merged(same, {"gpt-oss-120b": model()}).prices["gpt-oss-120b"] == price("0.35", "0.75")


def test_drift() -> None:
    own = PriceTable(
        {
            "dearer": price("1", "1"),
            "same": price("1", "2"),
            "cached": Price(Decimal(1), Decimal(2), Decimal("0.1")),
            "unpriced": price("1", "2"),
            "gone": price("1", "2"),
        }
    )
    models = {name: model() for name in ("dearer", "same", "cached", "new")}
    found = drift(own, {**models, "unpriced": listed()})
    assert found == Drift(price=("dearer",), only_listed=("new",), not_listed=("gone",))


@pytest.mark.parametrize(
    ("requested", "found"),
    [
        ("qwen-3-235b-a22b-instruct-2507", "qwen-3.8-27b"),
        ("qwen-3-32b", "qwen-3.8-27b"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("GPT-OSS-20B", "gpt-oss-120b"),
        ("gemma-3", "gemma-4-31b"),
        ("", "gpt-oss-120b"),
        ("x", "gpt-oss-120b"),
    ],
)
def test_the_closest_name(requested: str, found: str) -> None:
    assert closest(requested, ["gpt-oss-120b", "qwen-3.8-27b", "gemma-4-31b"]) == found


def test_without_models_there_is_no_closest_name() -> None:
    assert closest("m", []) is None


_names = st.sampled_from(("id", "pricing", "prompt", "completion", "limits", "deprecated", "x"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(CHARACTERS, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(_names, _json, max_size=5), max_size=4))
def test_any_list_is_read(entries: list[Any]) -> None:
    models = read_catalogue(orjson.dumps({"data": entries}))
    assert len(models) <= len(entries)
    assert merged(BUILT_IN, models).prices.keys() >= BUILT_IN.prices.keys()
