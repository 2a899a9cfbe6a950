"""The chat body: invalid bodies, and the media types that are accepted."""

import gzip
import json
from typing import Any

import pytest
from chat_requests import JSON, read
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.chat.request import ChatRequest, count_contents
from ape_cerebras.errors import BadRequest, UnsupportedMedia

# Invalid bodies

NOT_JSON = {
    **{f"I1 {body!r}": body for body in (b"", b" ", b"{", b'{"a":1,}', b"{'a':1}", b"nul")},
    **{f"I1 {body!r}": body for body in (b"{} x", b"{}{}", b'{"a":1}\0', b'{"a"}', b"{,}")},
    "I3 deep": b"[" * 100_000,
    "I3 balanced": b"[" * 1025 + b"]" * 1025,
    "I3 deep in a member": b'{"a":' * 1025 + b"1" + b"}" * 1025,
    **{
        f"I5 {word!r}": b'{"a":%s}' % word for word in (b"NaN", b"Infinity", b"-Infinity", b"1e999")
    },
    "I7 not UTF-8": b'{"a":"\xff"}',
    "I7 lone surrogate": b'{"a":"\\ud800"}',
    "I7 UTF-8 surrogate": b'{"a":"\xed\xa0\x80"}',
    "I7 overlong": b'{"a":"\xc0\xaf"}',
    "I7 UTF-16": '{"a":1}'.encode("utf-16"),
    "I7 UTF-16 without mark": '{"a":1}'.encode("utf-16-le"),
    "I7 UTF-32": '{"a":1}'.encode("utf-32"),
    "I7 BOM": b'\xef\xbb\xbf{"a":1}',
    "I7 raw control byte": b'{"a":"\n"}',
}
NOT_A_REQUEST = {
    **{f"I2 {body!r}": body for body in (b"[]", b'"s"', b"1", b"null", b"true", b'["model"]')},
    **{
        f"I12 {member!r}": b'{"messages":[],%s}' % member
        for member in (
            *(b'"stream":"yes"', b'"stream":1', b'"stream":0', b'"stream":[]', b'"stream":{}'),
            *(b'"model":5', b'"model":""', b'"model":null', b'"model":["old"]', b'"model":{}'),
            *(b'"\\u006dodel":5', b'"str\\u0065am":"yes"'),
        )
    },
}
TWICE = {
    f"I6 {body.decode()}": body
    for body in (
        b'{"model":"allowed","model":"forbidden"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"old","x":{"model":"b"},"model":"old"}',
        b'{"model":"a","\\u006dodel":"b"}',
        b'{"\\u006Dodel":"a","model":"b"}',
        b'{"\\u006dodel":"a","mod\\u0065l":"b"}',
        b'{"\\u006d\\u006F\\u0064\\u0065\\u006c":"a","model":"b"}',
        b'{"stream":true,"stream":false}',
        b'{"stream":false,"messages":[{"stream":1}],"strea\\u006d" : true}',
        b'{"model":"a","stream":null,"stream":null}',
        b'{"model":"a","m\\"model":1,"model"\r\n:"b"}',
    )
}


@pytest.mark.parametrize("case", [*NOT_JSON, *NOT_A_REQUEST, *TWICE])
def test_an_invalid_body_is_refused_and_the_connection_kept(case: str) -> None:
    body = {**NOT_JSON, **NOT_A_REQUEST, **TWICE}[case]
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert caught.value.keeps
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("cases", "text"),
    [(NOT_JSON, "valid JSON"), (TWICE, "more than once"), (NOT_A_REQUEST, "must be")],
)
def test_each_kind_of_invalid_body_has_its_own_reason(cases: dict[str, bytes], text: str) -> None:
    for body in cases.values():
        with pytest.raises(BadRequest, match=text):
            read(body)


@pytest.mark.parametrize("case", [*NOT_JSON, *NOT_A_REQUEST, *TWICE])
def test_an_invalid_body_is_refused_before_conversion_too(case: str) -> None:
    with pytest.raises(BadRequest):
        read({**NOT_JSON, **NOT_A_REQUEST, **TWICE}[case], convert=True)


# Media types


@pytest.mark.parametrize(
    "content_type",
    [
        *(JSON, b"application/json; charset=utf-8", b"Application/JSON", b" application/json "),
        b"application/json;charset=utf-8;x=y",
    ],
)
@pytest.mark.parametrize("coding", [b"", b"identity", b"Identity", b" identity "])
def test_i9_i10_i11_json_is_read(content_type: bytes, coding: bytes) -> None:
    body = b'{"model":"m","stream":true}'
    assert read(body, content_type, coding) == ChatRequest(body, "m", "m", True)


@pytest.mark.parametrize(
    "media_type",
    [b"application/msgpack", b"application/vnd.msgpack", b"Application/X-MsgPack; a=b"],
)
@pytest.mark.parametrize("coding", [b"", b"identity", b"gzip", b"GZIP"])
def test_i9_message_pack_is_binary(media_type: bytes, coding: bytes) -> None:
    body = b"\x81\xa5model\xa3old"
    assert read(body, media_type, coding) == ChatRequest(body)


@pytest.mark.parametrize(
    "body", [gzip.compress(b'{"model":"old"}', mtime=0), b"no gzip at all", b""]
)
def test_i11_compressed_json_is_binary(body: bytes) -> None:
    assert read(body, JSON, b"gzip") == ChatRequest(body, None, None, None)


@pytest.mark.parametrize(
    ("content_type", "coding"),
    [
        *((media, b"") for media in (b"text/plain", b"", b"application/x-www-form-urlencoded")),
        *((media, b"") for media in (b"application/jsonx", b"application/json, a/b", b"text/json")),
        *((media, b"gzip") for media in (b"text/plain", b"", b"application/gzip")),
        *(
            (JSON, coding)
            for coding in (b"br", b"deflate", b"zstd", b"gzip, gzip", b"x-gzip", b"x")
        ),
        (b"application/msgpack", b"br"),
    ],
)
def test_i9_i11_any_other_media_type_or_coding_is_refused(
    content_type: bytes, coding: bytes
) -> None:
    with pytest.raises(UnsupportedMedia):
        read(b'{"model":"m"}', content_type, coding)


# Contents, counted without parsing

texts = st.text('\\"[]{},:a', max_size=8)
contents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int]:
    """Strings, and commas and opening brackets outside of them."""
    if not isinstance(value, list | dict):
        return int(isinstance(value, str)), 0
    inner = [*value.values(), *value] if isinstance(value, dict) else value
    found = [counted(each) for each in inner]
    return sum(each[0] for each in found), sum(each[1] for each in found) + max(1, len(value))


@given(contents, st.booleans())
def test_contents_beyond_a_limit_are_counted_outside_of_strings(value: Any, spaced: bool) -> None:
    text = json.dumps(value, indent=1 if spaced else None).encode()
    strings, values = counted(value)
    for most in (0, 1, 3):
        found_strings, found_values = count_contents(text, most, most)
        assert (found_strings > most) == (strings > most)
        if strings <= most:
            assert (found_values > most) == (values > most)
