"""Large JSON in pieces: that they are valid exactly where the whole is, for orjson's word."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ape_cerebras.chat.pieces import Malformed, Piece, Sparse, pieces


def is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def is_json_by_pieces(text: bytes, size: int) -> bool | None:
    """None where the text has no place to be cut at."""
    try:
        return all(is_json(piece.text) for piece in pieces(text, size))
    except Malformed:
        return False
    except Sparse:
        return None


def test_a_small_text_is_its_own_piece() -> None:
    text = b' {"a":[1,2]} '
    assert list(pieces(text)) == [Piece(text)]
    assert next(pieces(text)).text is text


def test_containers_are_closed_and_opened_again() -> None:
    text = b'{"a":[%s1],"b":{"c":2}}' % (b"10," * 20)
    first, second = pieces(text, 64)
    assert first.text == b'{"a":[' + b"10," * 19 + b"0]}"
    assert second.text == b'{"":[0,10,1],"b":{"c":2}}'
    assert (first.shift, first.values, first.strings) == (0, 21, 1)
    assert text[len(text) - 12 :] == second.text[len(text) - 12 - second.shift :]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (b'["%s"]' % (b"a" * 80), ['["%s"]' % ("a" * 61), '["~%s"]' % ("a" * 19)]),
        (b'{"%s":1}' % (b"a" * 80), ['{"%s":0}' % ("a" * 61), '{"~%s":1}' % ("a" * 19)]),
        (
            b'{"a":"%s"}' % (b"a" * 80),
            ['{"a":"%s"}' % ("a" * 57), '{"":"~%s"}' % ("a" * 23)],
        ),
        (b'"%s"' % (b"a" * 80), ['"%s"' % ("a" * 62), '"~%s"' % ("a" * 18)]),
        # It has ended, but there is no comma behind it.
        (
            b'[["%s"]%s]' % (b"a" * 40, b" " * 40),
            ['[["%s"]]' % ("a" * 40), '[["~"]%s]' % (" " * 40)],
        ),
    ],
)
def test_a_long_string_is_cut(text: bytes, cut: list[str]) -> None:
    assert [piece.text.decode() for piece in pieces(text, 64)] == cut


@pytest.mark.parametrize(
    "character", ["\\n", "\\\\", '\\"', "\\u00e9", "\\ud83d\\ude00", "é", "😀"]
)
@pytest.mark.parametrize("before", range(12))
def test_no_character_is_cut_in_two(character: str, before: int) -> None:
    text = b'["%s%s"]' % (b"a" * before, character.encode() * 60)
    found = list(pieces(text, 64))
    assert len(found) > 1
    strings = [orjson.loads(piece.text)[0].removeprefix("~") for piece in found]
    assert "".join(strings) == orjson.loads(text)[0]


@pytest.mark.parametrize("name", [b"model", b"\\u006dodel"])
def test_what_is_left_of_a_long_name_is_no_other_name(name: bytes) -> None:
    for length in range(40, 80):
        text = b'{"%s%s":1}' % (b"a" * length, name)
        assert not any("model" in orjson.loads(piece.text) for piece in pieces(text, 64))


@pytest.mark.parametrize(
    "text",
    [
        b"[1," * 1025,
        b'{"a":1,"b":' * 1025 + b"1" + b"}" * 1025,
        b"[1,2]" + b",3" * 50,
        b"[1}" + b",3" * 50,
        b"]" * 100,
        b'["%s"]' % (b"\x80" * 100),
    ],
)
def test_what_can_be_no_json_is_found_out(text: bytes) -> None:
    assert is_json_by_pieces(text, 64) is is_json(text) is False


@pytest.mark.parametrize(
    "text", [b"[,%s1]", b"[1,,%s1]", b'{,"a":1%s}', b'{"a":1,,"b":2%s}', b"[1%s,]", b'{"a":1%s,}']
)
@pytest.mark.parametrize("padding", range(0, 130, 7))
def test_a_comma_between_two_pieces_stands_between_two_values(text: bytes, padding: int) -> None:
    padded = text.replace(b"%s", b' ,"x"' * padding if b"[" in text else b',"x":1' * padding)
    assert is_json_by_pieces(padded, 64) is False


@pytest.mark.parametrize("text", [b"[1,%s2]" % (b" " * 100), b"[0.%s]" % (b"1" * 100)])
def test_a_text_without_a_place_to_be_cut_at_is_told_from_one_that_is_no_json(text: bytes) -> None:
    assert is_json(text)
    with pytest.raises(Sparse):
        list(pieces(text, 64))


def test_no_piece_is_large() -> None:
    deep = b'{"a":' * 100 + b"[%s1]" % (b"1," * 100_000) + b"}" * 100
    for text in (b'["%s"]' % (b"a" * 1_000_000), deep, b'[%s"a"]' % (b'"a",' * 100_000)):
        assert max(len(piece.text) for piece in pieces(text)) < 18 * 1024


def test_a_position_in_a_piece_is_one_in_the_whole() -> None:
    numbers = [b"%d" % number for number in range(1000, 2000)]
    text = b'[{"a":[%s]},"%s",[%s]]' % (b",".join(numbers), b"b" * 200, b",".join(numbers[::-1]))
    found = [
        (number, piece.text.index(number) + piece.shift)
        for piece in pieces(text, 64)
        for number in numbers
        if number in piece.text
    ]
    assert len(found) == 2 * len(numbers)
    assert all(text[at : at + 4] == number for number, at in found)


strings = st.text(max_size=90) | st.text('\\"\né😀a,[]{}:', max_size=200)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | strings,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(strings, inner, max_size=8),
    max_leaves=50,
)
spacings: list[dict[str, Any]] = [
    {"separators": (",", ":")},
    {"separators": (" , ", " : ")},
    {"indent": 1},
]
written = st.builds(
    lambda value, spacing, is_ascii: json.dumps(value, ensure_ascii=is_ascii, **spacing).encode(
        "utf-8", "replace"
    ),
    values,
    st.sampled_from(spacings),
    st.booleans(),
)
sizes = st.integers(64, 150)


@settings(max_examples=200, deadline=None)
@given(written, sizes)
def test_all_pieces_of_json_are_json(text: bytes, size: int) -> None:
    if is_json(text):
        assert is_json_by_pieces(text, size) is not False


spoils = st.tuples(
    st.floats(0, 1),
    st.sampled_from((*map(bytes, zip(b',[]{}"\\:1 \xffa')), b"")),
    st.integers(0, 2),
)


@settings(max_examples=300, deadline=None)
@given(written, sizes, st.lists(spoils, min_size=1, max_size=3))
def test_pieces_that_are_all_json_are_pieces_of_json(
    text: bytes, size: int, spoiled: list[tuple[float, bytes, int]]
) -> None:
    for where, inserted, dropped in spoiled:
        at = int(where * len(text))
        text = text[:at] + inserted + text[at + dropped :]
    if is_json_by_pieces(text, size):
        assert is_json(text)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(strings, values, min_size=1, max_size=30), sizes)
@example({"model": "a" * 100, "x": "b" * 100}, 64)
def test_every_member_of_the_outermost_object_is_in_a_piece(
    whole: dict[str, Any], size: int
) -> None:
    text = json.dumps(whole).encode("utf-8", "replace")
    if not is_json(text):
        return
    found: dict[str, Any] = {}
    try:
        for piece in pieces(text, size):
            found.update(orjson.loads(piece.text))
    except Sparse:
        return
    for name, value in orjson.loads(text).items():
        if name and len(json.dumps(name)) < size // 2 and not isinstance(value, list | dict | str):
            assert found[name] == value
