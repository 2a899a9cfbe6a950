"""Large chat bodies are read, whatever is in them; those whose contents would hold the event loop
for long are refused before they are parsed."""

from collections.abc import Callable

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


# Made where they are read: all of them are 110 MB.
LARGE: dict[str, Callable[[], bytes]] = {
    "one string": lambda: many(MODEL + b'"x":"', b"x", b'"}'),
    "one string of escapes": lambda: many(MODEL + b'"x":"', b"\\n", b'"}'),
    "one string of letters' escapes": lambda: many(MODEL + b'"x":"', b"\\u006d", b'"}'),
    "one string of quotes": lambda: many(MODEL + b'"x":"', b'\\"', b'"}'),
    "one string of commas": lambda: many(MODEL + b'"x":"', b",", b'"}'),
    "one string of brackets": lambda: many(MODEL + b'"x":"', b"[", b'"}'),
    "100 strings": lambda: many(MODEL + b'"x":[', b'"%s",' % (b"word, " * 17_000), b"1]}"),
    "90,000 members": lambda: keys(MODEL, 90_000),
    "90,000 members and another model": lambda: keys(NESTED, 90_000),
    "9,000 models": lambda: MODEL + b'"x":[' + b'{"model":1},' * 9_000 + b"1]}",
    "a long prompt in numbers": lambda: MODEL + b'"prompt":[' + b"50256," * 131_072 + b"1]}",
}
TOO_MANY: dict[str, Callable[[], bytes]] = {
    "900,000 members": lambda: keys(MODEL, 900_000),
    "900,000 members and another model": lambda: keys(NESTED, 900_000),
    "the same member": lambda: many(MODEL, b'"b":"",', b'"c":1}'),
    "arrays": lambda: many(MODEL + b'"x":[', b"[],", b"1]}"),
    "objects": lambda: many(MODEL + b'"x":[', b"{},", b"1]}"),
    "numbers": lambda: many(MODEL + b'"x":[', b"1,", b"1]}"),
    "strings": lambda: many(MODEL + b'"x":[', b'"a",', b"1]}"),
    "strings of a backslash": lambda: many(MODEL + b'"x":[', b'"\\\\",', b"1]}"),
    "models": lambda: MODEL + b'"x":[' + b'{"model":1},' * 90_000 + b"1]}",
}


def read(body: bytes) -> str | None:
    chat = read_chat_request(body, b"application/json", b"", "default", {"old": "new"})
    return chat.requested_model


@pytest.mark.parametrize("case", LARGE)
def test_a_large_body_is_read(case: str) -> None:
    assert read(LARGE[case]()) == "old"


@pytest.mark.parametrize("case", TOO_MANY)
def test_a_body_that_would_take_too_long_is_refused(case: str) -> None:
    with pytest.raises(BadRequest, match=r"more (strings|values)|too often"):
        read(TOO_MANY[case]())
