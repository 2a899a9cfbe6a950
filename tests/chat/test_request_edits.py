"""The chat body: the values read from it, and that only the intended values change."""

import json

import orjson
import pytest
from chat_requests import ALIASES, DEFAULT, JSON, read
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ape_cerebras.chat.request import ChatRequest
from ape_cerebras.errors import BadRequest

ASKED = b'"stream_options":{"include_usage":true}'


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
def test_aliases_and_the_default_model_are_applied(body: bytes, sent: bytes) -> None:
    request = read(body)
    assert request.body == sent
    assert request.model == json.loads(sent)["model"]
    assert request.requested_model == json.loads(body).get("model", DEFAULT)
    assert request.stream is False


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"{}", b'{"model":"the-default","stream":true,%s}'),
        (b'{"model":"m"}', b'{"stream":true,%s,"model":"m"}'),
        (b' {\n "model" : "m" } ', b' {"stream":true,%s,\n "model" : "m" } '),
        (b'{"model":"m","stream":false}', b'{%s,"model":"m","stream":true}'),
        (b'{"stream"\t:\r\nnull , "model":"m"}', b'{%s,"stream"\t:\r\ntrue , "model":"m"}'),
        (b'{"str\\u0065am":false,"model":"m"}', b'{%s,"str\\u0065am":true,"model":"m"}'),
        (b'{"stream":false}', b'{"model":"the-default",%s,"stream":true}'),
        (b'{"model":"old","stream":false}', b'{%s,"model":"new","stream":true}'),
        (b'{"stream":null,"model":"old"}', b'{%s,"stream":true,"model":"new"}'),
        (b'{"n":1.0,"model":"old"}', b'{"stream":true,%s,"n":1.0,"model":"new"}'),
        (
            b'{"x":{"stream":false},"stream":false,"y":"\\"stream\\":false","model":"m"}',
            b'{%s,"x":{"stream":false},"stream":true,"y":"\\"stream\\":false","model":"m"}',
        ),
        *(
            (
                b'{"model":"m","stream_options":%s,"stream":false}' % options,
                b'{"model":"m","stream_options":%s,"stream":true}' % options,
            )
            for options in (b'{"include_usage":false}', b"{}", b"null")
        ),
    ],
)
def test_a_plain_request_is_converted_to_a_stream(body: bytes, sent: bytes) -> None:
    request = read(body, convert=True)
    assert request.body == (sent % ASKED if b"%s" in sent else sent)
    assert (request.stream, request.converted) == (False, True)
    assert (request.model, request.requested_model) == read(body)[1:3]


def test_a_stream_is_not_converted() -> None:
    body = b'{ "stream" :true, "model":"m"}'
    assert read(body, convert=True) == ChatRequest(body, "m", "m", True, False)
    assert read(body, convert=True).body is body


@pytest.mark.parametrize(("media_type", "coding"), [(JSON, b"gzip"), (b"application/msgpack", b"")])
def test_compressed_and_binary_bodies_are_not_converted(media_type: bytes, coding: bytes) -> None:
    assert read(b"{}", media_type, coding, convert=True) == ChatRequest(b"{}")


def test_i4_deep_arrays_pass_untouched() -> None:
    deep = b"[" * 300 + b"]" * 300
    body = b'{"model":"old","metadata":%s}' % deep
    assert read(body).body == b'{"model":"new","metadata":%s}' % deep


def test_a_body_that_needs_no_edit_is_the_same_object() -> None:
    body = b'{"messages":[],"model":"m","stream":true}'
    assert read(body).body is body


# The property: bodies are built here, so it is known which bytes may change.

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


@settings(max_examples=400)
@given(bodies(), spaces, spaces, st.booleans())
@example([], b"", b" ", False)
def test_only_model_and_stream_change(
    members: list[tuple[str, bytes, bytes]], before: bytes, after: bytes, convert: bool
) -> None:
    def whole(parts: list[bytes]) -> bytes:
        return before + b"{" + b",".join(parts) + after + b"}"

    body = whole([lead + value for _, lead, value in members])
    names = [name for name, _, _ in members]
    if names.count("model") > 1 or names.count("stream") > 1:
        with pytest.raises(BadRequest, match="more than once"):
            read(body, convert=convert)
        return
    requested = next((json.loads(value) for name, _, value in members if name == "model"), DEFAULT)
    served = ALIASES.get(requested, requested)
    streams = [json.loads(value) for name, _, value in members if name == "stream"]
    streamed = bool(streams and streams[0])
    converted = convert and not streamed
    values = {
        **({"model": json.dumps(served).encode()} if served != requested else {}),
        **({"stream": b"true"} if converted else {}),
    }
    expected = whole([lead + values.get(name, value) for name, lead, value in members])
    added = b"" if "model" in names else b'"model":"the-default",'
    added += b'"stream":true,' if converted and "stream" not in names else b""
    added += ASKED + b"," if converted else b""
    expected = expected.replace(b"{", b"{" + (added if members else added[:-1]), 1)
    request = read(body, convert=convert)
    assert request == ChatRequest(expected, served, requested, streamed, converted)
    # A parser of the sent body finds the values that were checked; all others are unchanged.
    then, now = (dict(orjson.loads(text)) for text in (body, request.body))
    assert now.pop("model") == served
    assert now.pop("stream_options", None) == ({"include_usage": True} if converted else None)
    assert now.pop("stream", None) is (True if converted else then.get("stream"))
    assert {name: then[name] for name in now} == now
    assert then.keys() - now.keys() <= {"model", "stream"}
