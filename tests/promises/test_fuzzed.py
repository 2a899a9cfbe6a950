"""The properties that the fuzzers check, tried on their seeds, on spoilt seeds, and on anything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parser_checks import CHECKS, SEEDS

EACH = pytest.mark.parametrize("name", CHECKS)
spoils = st.lists(st.tuples(st.integers(0, 120), st.binary(max_size=3), st.booleans()), max_size=4)


@EACH
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_where_they_begin(name: str, step: int) -> None:
    for seed in SEEDS[name]:
        CHECKS[name](step, seed)


@EACH
@settings(max_examples=100)
@given(data=st.data(), step=st.integers(1, 60), changes=spoils)
def test_nearby(
    name: str, data: st.DataObject, step: int, changes: list[tuple[int, bytes, bool]]
) -> None:
    text = data.draw(st.sampled_from(SEEDS[name]))
    for at, spoil, instead in changes:
        text = text[:at] + spoil + text[at + (len(spoil) if instead else 0) :]
    CHECKS[name](step, text)


@EACH
@settings(max_examples=50)
@given(step=st.integers(1, 60), text=st.binary(max_size=100))
def test_anything(name: str, step: int, text: bytes) -> None:
    CHECKS[name](step, text)
