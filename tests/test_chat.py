"""The chat body: what is refused of it, and that nothing but the model's value ever changes."""

import gzip
import json

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ape_cerebras.chat import ChatRequest, read_chat_request
from ape_cerebras.errors import BadRequest, UnsupportedMedia

JSON = b"application/json"
DEFAULT = "the-default"
ALIASES = {"old": "new", "gpt-4": "gpt-oss-120b", 'qu"ote\\': "plain", "plain": 'qu"ote\\'}


def read(body: bytes, content_type: bytes = JSON, content_encoding: bytes = b"") -> ChatRequest:
    return read_chat_request(body, content_type, content_encoding, DEFAULT, ALIASES)


# What is refused

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
def test_refused_and_the_connection_kept(case: str) -> None:
    body = {**NOT_JSON, **NOT_A_REQUEST, **TWICE}[case]
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert caught.value.keeps
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("cases", "text"),
    [(NOT_JSON, "valid JSON"), (TWICE, "more than once"), (NOT_A_REQUEST, "must be")],
)
def test_the_reason_is_the_right_one(cases: dict[str, bytes], text: str) -> None:
    for body in cases.values():
        with pytest.raises(BadRequest, match=text):
            read(body)


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
def test_i9_message_pack_is_opaque(media_type: bytes, coding: bytes) -> None:
    body = b"\x81\xa5model\xa3old"
    assert read(body, media_type, coding) == ChatRequest(body)


@pytest.mark.parametrize("body", [gzip.compress(b'{"model":"old"}'), b"no gzip at all", b""])
def test_i11_compressed_json_is_opaque(body: bytes) -> None:
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
def test_i9_i11_anything_else_is_refused(content_type: bytes, coding: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        read(b'{"model":"m"}', content_type, coding)


# What is read and edited


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"{}", b'{"model":"the-default"}'),
        (b" \n{ } ", b' \n{"model":"the-default" } '),
        (b'{"a":1}', b'{"model":"the-default","a":1}'),
        (b'{ "a" : {"model":"x"} }', b'{"model":"the-default", "a" : {"model":"x"} }'),
        (b'{"a":"\\"model\\":1"}', b'{"model":"the-default","a":"\\"model\\":1"}'),
        (b'{"x\\"model":"old"}', b'{"model":"the-default","x\\"model":"old"}'),
        (b'{"Model":"old"}', b'{"model":"the-default","Model":"old"}'),
        (b'{"model":"old"}', b'{"model":"new"}'),
        (b'{"a":"model","model":"old"}', b'{"a":"model","model":"new"}'),
        (
            b'{"model":"old","tools":[{"model":"old"}]}',
            b'{"model":"new","tools":[{"model":"old"}]}',
        ),
        (b'{"t":[{"model":"old"}],"model":"old"}', b'{"t":[{"model":"old"}],"model":"new"}'),
        (b'{"\\u006dodel" :\t"\\u006fld" }', b'{"\\u006dodel" :\t"new" }'),
        (b'{"x\\\\":1,"model"\r\n:\r\n"gpt-4"}', b'{"x\\\\":1,"model"\r\n:\r\n"gpt-oss-120b"}'),
        (b'{"x\\"model":"old","model":"old"}', b'{"x\\"model":"old","model":"new"}'),
        (b'{"model":"qu\\"ote\\\\"}', b'{"model":"plain"}'),
        (b'{"model":"plain"}', b'{"model":"qu\\"ote\\\\"}'),
        (b'{"model":"OLD"}', b'{"model":"OLD"}'),
        (b'{"model":"model","stream":null}', b'{"model":"model","stream":null}'),
    ],
)
def test_edited(body: bytes, sent: bytes) -> None:
    request = read(body)
    assert request.body == sent
    assert request.model == json.loads(sent)["model"]
    assert request.requested_model == json.loads(body).get("model", DEFAULT)
    assert request.stream is False


def test_i4_deep_arrays_pass_untouched() -> None:
    deep = b"[" * 300 + b"]" * 300
    body = b'{"model":"old","metadata":%s}' % deep
    assert read(body).body == b'{"model":"new","metadata":%s}' % deep


def test_a_body_that_needs_no_edit_is_the_same_object() -> None:
    body = b'{"messages":[],"model":"m","stream":true}'
    assert read(body).body is body


# The property: bodies are put together here, so it is known which bytes may change.

spaces = st.sampled_from([b"", b"", b" ", b"\n", b"\t \r\n"])


def escaped(text: str, which: int) -> bytes:
    """A JSON string with some letters as escapes, in upper or lower case."""
    spelled = [
        f"\\u{ord(letter):04X}" if which >> at & 2 else f"\\u{ord(letter):04x}"
        for at, letter in enumerate(text)
    ]
    plain = [json.dumps(letter)[1:-1] for letter in text]
    chosen = [spelled[at] if which >> at & 1 else plain[at] for at in range(len(text))]
    return b'"%s"' % "".join(chosen).encode()


words = st.sampled_from(
    [
        *("model", "stream", "old", "messages", "é😀", ""),
        *('x"model', '"model":"old"', "model\\", "\\u006dodel"),
    ]
)
strings = st.builds(escaped, words, st.sampled_from([0, 0, 1, 2, 3, 5, 0xFF, 0xFFFF]))
scalars = strings | st.sampled_from([b"1", b"-1.5e3", b"true", b"null", b"[]", b"{}", b"[ ]"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: b"[%s]" % b" ,".join(items))
        | st.lists(st.tuples(strings, spaces, inner), max_size=3).map(
            lambda items: b"{%s}" % b", ".join(n + s + b":" + v for n, s, v in items)
        )
    ),
    max_leaves=8,
)
models = st.sampled_from([b'"old"', b'"m"', b'"\\u006f\\u006C\\u0064"', b'"gpt-4"', b'"model"'])


@st.composite
def bodies(draw: st.DrawFn) -> list[tuple[str, bytes, bytes]]:
    """Members of an object: decoded name, the bytes up to the value, the value."""
    members = []
    for name in draw(st.lists(strings, max_size=5)):
        decoded = json.loads(name)
        own = {"model": models, "stream": st.sampled_from([b"true", b"false", b"null"])}
        value = draw(own.get(decoded, values))
        lead = draw(spaces) + name + draw(spaces) + b":" + draw(spaces)
        members.append((decoded, lead, value))
    return members


@settings(max_examples=800)
@given(bodies(), spaces, spaces)
@example([], b"", b" ")
def test_only_the_models_value_changes(
    members: list[tuple[str, bytes, bytes]], before: bytes, after: bytes
) -> None:
    def whole(parts: list[bytes]) -> bytes:
        return before + b"{" + b",".join(parts) + after + b"}"

    body = whole([lead + value for _, lead, value in members])
    names = [name for name, _, _ in members]
    if names.count("model") > 1 or names.count("stream") > 1:
        with pytest.raises(BadRequest, match="more than once"):
            read(body)
        return
    asked = next((json.loads(value) for name, _, value in members if name == "model"), DEFAULT)
    served = ALIASES.get(asked, asked)
    streams = [json.loads(value) for name, _, value in members if name == "stream"]
    renamed = [
        lead + (json.dumps(served).encode() if name == "model" and served != asked else value)
        for name, lead, value in members
    ]
    expected = whole(renamed)
    if "model" not in names:
        comma = b"," if members else b""
        expected = expected.replace(b"{", b'{"model":"the-default"' + comma, 1)
    request = read(body)
    assert request == ChatRequest(expected, served, asked, bool(streams and streams[0]))
    # What a parser then finds is what was checked, and all else is as it was.
    then, now = (dict(orjson.loads(text)) for text in (body, request.body))
    assert now.pop("model") == served
    then.pop("model", None)
    assert then == now
