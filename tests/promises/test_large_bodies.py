"""Large chat bodies are read, whatever is in them; those whose contents would hold the event loop
for long are refused before they are parsed."""

import pytest

from ape_cerebras.chat.request import read_chat_request
from ape_cerebras.errors import BadRequest

MODEL = b'{"model":"old",'
NESTED = MODEL + b'"tool":{"model":1},'
SIZE = 10 * 2**20 - 100


def many(start: bytes, item: bytes, end: bytes) -> bytes:
    return start + item * ((SIZE - len(start)) // len(item)) + end


def keys(start: bytes, count: int) -> bytes:
    return start + b",".join(b'"%d":1' % number for number in range(count)) + b"}"


LARGE = {
    "one string": many(MODEL + b'"x":"', b"x", b'"}'),
    "one string of escapes": many(MODEL + b'"x":"', b"\\n", b'"}'),
    "one string of letters' escapes": many(MODEL + b'"x":"', b"\\u006d", b'"}'),
    "one string of quotes": many(MODEL + b'"x":"', b'\\"', b'"}'),
    "one string of commas": many(MODEL + b'"x":"', b",", b'"}'),
    "one string of brackets": many(MODEL + b'"x":"', b"[", b'"}'),
    "100 strings": many(MODEL + b'"x":[', b'"%s",' % (b"word, " * 17_000), b"1]}"),
    "90,000 members": keys(MODEL, 90_000),
    "90,000 members and another model": keys(NESTED, 90_000),
    "9,000 models": MODEL + b'"x":[' + b'{"model":1},' * 9_000 + b"1]}",
    "a long prompt in numbers": MODEL + b'"prompt":[' + b"50256," * 131_072 + b"1]}",
}
TOO_MANY = {
    "900,000 members": keys(MODEL, 900_000),
    "900,000 members and another model": keys(NESTED, 900_000),
    "the same member": many(MODEL, b'"b":"",', b'"c":1}'),
    "arrays": many(MODEL + b'"x":[', b"[],", b"1]}"),
    "objects": many(MODEL + b'"x":[', b"{},", b"1]}"),
    "numbers": many(MODEL + b'"x":[', b"1,", b"1]}"),
    "strings": many(MODEL + b'"x":[', b'"a",', b"1]}"),
    "strings of a backslash": many(MODEL + b'"x":[', b'"\\\\",', b"1]}"),
    "models": MODEL + b'"x":[' + b'{"model":1},' * 90_000 + b"1]}",
}


def read(body: bytes) -> str | None:
    chat = read_chat_request(body, b"application/json", b"", "default", {"old": "new"})
    return chat.requested_model


@pytest.mark.parametrize("case", LARGE)
def test_a_large_body_is_read(case: str) -> None:
    assert read(LARGE[case]) == "old"


@pytest.mark.parametrize("case", TOO_MANY)
def test_a_body_that_would_take_too_long_is_refused(case: str) -> None:
    with pytest.raises(BadRequest, match=r"more (strings|values)|too often"):
        read(TOO_MANY[case])
