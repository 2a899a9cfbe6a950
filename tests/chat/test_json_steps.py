"""Large JSON in steps: what is too much to be read, and that what is written is what it was."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import result_of

from ape_cerebras.chat.json_steps import Text, dump, is_light

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "light"),
    [
        (b"no JSON", True),  # who parses it will find out
        (b"[%s1]" % (b"[]," * 20_000), True),
        (b"[%s1]" % (b"[]," * 40_000), False),
        (b'{"a":"%s"}' % (b"a" * 4 * MIB), True),
        (b'{"a":"%s"}' % (b"[],{}," * 100_000), True),
        (b"[%s1]" % (b"[]," * MIB), False),
        (b"no JSON" * 100_000, False),
        (b"[1,%s1]" % (b" " * MIB), False),
    ],
)
def test_what_can_be_parsed_at_once(text: bytes, light: bool) -> None:
    assert result_of(is_light(text)) is light


def test_that_is_found_out_in_steps() -> None:
    assert len(list(is_light(b'{"a":"%s"}' % (b"a" * MIB)))) > 50
    assert not list(is_light(b'{"a":1}'))


def written(value: Any) -> bytes:
    """As it is written at once; and in steps the same comes out."""
    at_once, run_in_steps = (bytes(result_of(dump(value, size))) for size in (1, MIB))
    assert at_once == run_in_steps
    return at_once


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_what_is_written_in_steps_is_what_is_written_at_once(value: Any) -> None:
    assert written(value) == orjson.dumps(value)


def test_a_tuple_is_an_array_and_a_text_is_a_string() -> None:
    value = {"a": ({"b": Text(["c", "", "d"])}, (), 1), "e": Text()}
    assert written(value) == b'{"a":[{"b":"cd"},[],1],"e":""}'


@given(st.lists(st.text(st.characters(), max_size=3), max_size=20))
def test_halves_of_characters_find_together(pieces: list[str]) -> None:
    """Surrogates that orjson does not write, in different pieces or in one."""
    text = "".join(pieces)
    spelled = json.loads(json.dumps(text))  # where two halves that meet are one
    assert json.loads(written(Text(pieces))) == spelled


def test_halves_of_characters_find_together_across_large_pieces() -> None:
    large = "a" * MIB
    assert json.loads(written(Text([large, "\ud83d", "\ude00", large]))) == f"{large}😀{large}"
    assert json.loads(written(Text([large + "\ud83d", "\ude00" + large]))) == f"{large}😀{large}"


@pytest.mark.parametrize(
    "value",
    [
        {"a": Text(["a" * 1000] * 1000)},
        ({"a": ["a" * 1000] * 1000},),
        {f"{number}": {"a": "a" * 1000} for number in range(1000)},
    ],
)
def test_it_is_written_in_steps(value: Any) -> None:
    assert len(list(dump(value, MIB))) > 5
