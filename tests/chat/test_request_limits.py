"""Token limits written into a chat request: that one value, and no other byte."""

import json
import random
from typing import Any

import pytest
from characters import CHARACTERS
from chat_requests import JSON
from hypothesis import example, given
from hypothesis import strategies as st

from ape_cerebras.chat.request import ChatRequest, read_chat_request
from ape_cerebras.config.values import CompletionBounds
from ape_cerebras.errors import BadRequest

NEW, OLD = "max_completion_tokens", "max_tokens"


def read(body: bytes, default: int | None = None, cap: int | None = None) -> ChatRequest:
    return read_chat_request(body, JSON, b"", "m", {}, bounds=CompletionBounds(default, cap))


@pytest.mark.parametrize(
    ("body", "default", "cap", "sent"),
    [
        (b'{"model":"m"}', None, None, b'{"model":"m"}'),
        (b'{"model":"m"}', 100, None, b'{"max_completion_tokens":100,"model":"m"}'),
        (b"{}", 100, None, b'{"model":"m","max_completion_tokens":100}'),
        (b'{"model":"m","max_tokens":7}', 100, None, b'{"model":"m","max_tokens":7}'),
        (b'{"model":"m","max_tokens" : null}', 100, None, b'{"model":"m","max_tokens" : 100}'),
        (
            b'{"max_completion_tokens":null,"model":"m"}',
            *(100, 200),
            b'{"max_completion_tokens":100,"model":"m"}',
        ),
        (b'{"model":"m"}', None, 50, b'{"model":"m"}'),
        (b'{"model":"m","max_tokens":50}', None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":51}', None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"max_tokens": 99999 ,"model":"m"}', 10, 50, b'{"max_tokens": 50 ,"model":"m"}'),
        (b'{"model":"m","max_tokens":-1}', 10, None, b'{"model":"m","max_tokens":-1}'),
        (b'{"model":"m","max_tokens":-1}', None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":0}', 10, 50, b'{"model":"m","max_tokens":0}'),
        (
            b'{"model":"m","max_tokens":60,"max_completion_tokens":70}',
            *(None, 50),
            b'{"model":"m","max_tokens":50,"max_completion_tokens":50}',
        ),
        (b'{"model":"m","max\\u005ftokens":60}', None, 50, b'{"model":"m","max\\u005ftokens":50}'),
        (b'{"model":"m","max\\u005Ftokens":60}', None, 50, b'{"model":"m","max\\u005Ftokens":50}'),
        (
            b'{"model":"m","metadata":{"max_tokens":60},"max_tokens":60}',
            *(None, 50),
            b'{"model":"m","metadata":{"max_tokens":60},"max_tokens":50}',
        ),
        # However it is spelled.
        (b'{"model":"m","max_tokens":50.0}', None, 50, b'{"model":"m","max_tokens":50.0}'),
        (b'{"model":"m","max_tokens":51.0}', None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":6e1}', 10, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":1E+9 }', None, 50, b'{"model":"m","max_tokens":50 }'),
        (b'{"model":"m","max_tokens":-1.0}', None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":%d}' % 2**64, None, 50, b'{"model":"m","max_tokens":50}'),
        (b'{"model":"m","max_tokens":%d}' % 10**40, None, 50, b'{"model":"m","max_tokens":50}'),
        # Without a cap, invalid limits are left to the API to refuse.
        (b'{"model":"m","max_tokens":"60"}', 10, None, b'{"model":"m","max_tokens":"60"}'),
        (b'{"model":"m","max_tokens":true}', 10, None, b'{"model":"m","max_tokens":true}'),
        (b'{"model":"m","max_tokens":-2}', 10, None, b'{"model":"m","max_tokens":-2}'),
        (b'{"model":"m","max_tokens":null}', None, 50, b'{"model":"m","max_tokens":null}'),
    ],
)
def test_a_token_limit_is_inserted_or_lowered(
    body: bytes, default: int | None, cap: int | None, sent: bytes
) -> None:
    assert read(body, default, cap).body == sent


@pytest.mark.parametrize(
    "value",
    [b'"1000"', b'"10"', b"-2", b"-1000000000000", b"1.5", b"1000.5", b"true", b"[9]", b"{}"],
)
def test_a_limit_that_is_no_whole_number_does_not_pass_a_cap(value: bytes) -> None:
    for name in (NEW, OLD):
        with pytest.raises(BadRequest, match="whole number"):
            read(b'{"model":"m","%b":%b}' % (name.encode(), value), cap=50)


@pytest.mark.parametrize(
    ("members", "limit", "choices"),
    [
        (b'"max_tokens":1e3', 1000, 1),
        (b'"max_tokens":1000.0,"n":3', 1000, 3),
        (b'"max_tokens":-1,"n":2.0', None, 2),
        (b'"n":0', None, 1),
        (b'"n":"4"', None, 1),
        (b'"n":null,"max_tokens":"7"', None, 1),
        # Whichever of the two names the API goes by, no less is reserved than it may use.
        (b'"max_completion_tokens":1,"max_tokens":4000', 4000, 1),
        (b'"max_completion_tokens":4000,"max_tokens":1', 4000, 1),
        (b'"max_completion_tokens":1,"max_tokens":null', 1, 1),
        (b'"max_completion_tokens":1,"max_tokens":"4000"', None, 1),
        (b'"max_completion_tokens":-1,"max_tokens":1', None, 1),
    ],
)
def test_a_request_says_how_much_it_may_generate(
    members: bytes, limit: int | None, choices: int
) -> None:
    chat = read(b'{"model":"m",%b}' % members)
    assert (chat.limit, chat.choices) == (limit, choices)


def test_a_repeated_token_limit_is_refused() -> None:
    with pytest.raises(BadRequest, match="more than once"):
        read(b'{"model":"m","max_tokens":1,"max_tokens":100}', cap=50)


_limits = st.none() | st.integers(-1, 100_000)
_others = st.dictionaries(
    st.text(CHARACTERS, max_size=8).filter(lambda name: name not in ("model", "stream", NEW, OLD)),
    st.none()
    | st.integers()
    | st.text(CHARACTERS, max_size=8)
    | st.just({OLD: 99_999, "model": "x"}),
    max_size=4,
)


@example({}, {NEW: 0, OLD: -1}, None, 1, random.Random(1))
@given(
    _others,
    st.dictionaries(st.sampled_from((NEW, OLD)), _limits),
    st.none() | st.integers(1, 50_000),
    st.none() | st.integers(1, 50_000),
    st.randoms(),
)
def test_only_the_token_limit_changes(
    others: dict[str, Any], limits: dict[str, Any], default: int | None, cap: int | None, dice: Any
) -> None:
    members = [("model", "m"), *others.items(), *limits.items()]
    dice.shuffle(members)
    request = dict(members)
    body = json.dumps(request, indent=dice.choice((None, 1))).encode()
    chat = read(body, default, cap)
    sent = json.loads(chat.body)
    left = {name: value for name, value in sent.items() if name not in (NEW, OLD)}
    assert left == {name: value for name, value in request.items() if name not in (NEW, OLD)}
    for name in limits:
        before, after = limits[name], sent[name]
        if cap is not None and before is not None:
            assert after == (cap if before == -1 or before > cap else before)
        elif before is not None:
            assert after == before
    if default is None and cap is None:
        assert chat.body == body
    if default is not None and not [value for value in limits.values() if value is not None]:
        put = [sent[name] for name in (NEW, OLD) if sent.get(name) is not None]
        assert put == [default]
    named = [sent[name] for name in (NEW, OLD) if sent.get(name) is not None]
    assert chat.limit == (None if -1 in named else max(named, default=None))
