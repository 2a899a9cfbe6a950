"""Token counts and timings of a response, read permissively."""

from typing import Any

import orjson
import pytest
from characters import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.telemetry.exchange import TimeInfo, Usage

GEMMA = (
    b'{"total_tokens":22,"completion_tokens":2,"completion_tokens_details":{"reasoning_tokens":0},'
    b'"prompt_tokens":20,"prompt_tokens_details":{"cached_tokens":0,"image_tokens":0}}'
)
GPT_OSS = (
    b'{"total_tokens":116,"completion_tokens":37,"completion_tokens_details":'
    b'{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0,"reasoning_tokens":25},'
    b'"prompt_tokens":79,"prompt_tokens_details":{"cached_tokens":0}}'
)
CACHED = (
    b'{"total_tokens":256,"completion_tokens":120,"completion_tokens_details":'
    b'{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0,"reasoning_tokens":89},'
    b'"prompt_tokens":136,"prompt_tokens_details":{"cached_tokens":128}}'
)
TIMES = (
    b'{"created":1787427094.337268,"queue_time":0.00012279,"prompt_time":0.001922189,'
    b'"completion_time":0.00024986,"total_time":0.0033884048461914062}'
)


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (GEMMA, Usage(20, 2, 22, 0, 0)),
        (GPT_OSS, Usage(79, 37, 116, 0, 25)),
        (CACHED, Usage(136, 120, 256, 128, 89)),
        (b"{}", None),
        (b'{"prompt_tokens":5,"completion_tokens":7}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":5,"completion_tokens":7,"total_tokens":13}', Usage(5, 7, 13, 0, 0)),
        *(
            (b'{"prompt_tokens":5,"completion_tokens":7,%s}' % details, Usage(5, 7, 12, 0, 0))
            for details in (
                b'"prompt_tokens_details":null',
                b'"prompt_tokens_details":[1]',
                b'"prompt_tokens_details":{"cached_tokens":null}',
                b'"completion_tokens_details":{"reasoning_tokens":-1}',
            )
        ),
        # The same in other spellings
        (b'{"prompt_tokens":"5","completion_tokens":7.0}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":"5.0","completion_tokens":"7"}', Usage(5, 7, 12, 0, 0)),
        (b'{"input_tokens":5,"output_tokens":7}', Usage(5, 7, 12, 0, 0)),
        (
            b'{"input_tokens":5,"input_tokens_details":{"cached_tokens":4},"output_tokens":7,'
            b'"output_tokens_details":{"reasoning_tokens":6},"total_tokens":12}',
            Usage(5, 7, 12, 4, 6),
        ),
        (b'{"prompt_tokens":null,"input_tokens":5,"completion_tokens":7}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":0,"input_tokens":5,"completion_tokens":7}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":5,"total_tokens":12}', Usage(5, 7, 12, 0, 0)),
        (b'{"completion_tokens":7,"total_tokens":"12"}', Usage(5, 7, 12, 0, 0)),
        (b'{"prompt_tokens":5,"completion_tokens":0}', Usage(5, 0, 5, 0, 0)),
        # Nobody can know what these mean, and no tokens at all are no usage.
        *(
            (b'{"prompt_tokens":%s,"completion_tokens":7}' % odd, None)
            for odd in (
                *(b"null", b"true", b"-5", b"5.5", b'""', b'"-5"', b'"5.5"', b'"five"', b"[5]"),
                *(b"1e300", b"1099511627777", b'"1099511627777"', b"{}"),
            )
        ),
        (b'{"prompt_tokens":5}', None),
        (b'{"total_tokens":5}', None),
        (b'{"prompt_tokens":null,"completion_tokens":null,"total_tokens":null}', None),
        (b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}', None),
        (b"null", None),
        (b"[]", None),
        (b"5", None),
        (b'"x"', None),
    ],
)
def test_read_usage(text: bytes, usage: Usage | None) -> None:
    assert Usage.read(orjson.loads(text)) == usage


@pytest.mark.parametrize(
    ("info", "times"),
    [
        (orjson.loads(TIMES), TimeInfo(0.00012279, 0.001922189, 0.00024986)),
        ({}, None),
        ({"queue_time": None, "prompt_time": 1}, TimeInfo(None, 1.0, None)),
        ({"queue_time": 0, "prompt_time": -1, "completion_time": "1"}, TimeInfo(0.0, None, None)),
        (
            {"queue_time": True, "prompt_time": [], "completion_time": 2.5},
            TimeInfo(None, None, 2.5),
        ),
        ({"queue_time": float("inf"), "prompt_time": float("nan")}, TimeInfo(None, None, None)),
        ({"queue_time": 10**400, "prompt_time": 1.5}, TimeInfo(None, 1.5, None)),
        (None, None),
        ([], None),
        ("x", None),
    ],
)
def test_read_time_info(info: Any, times: TimeInfo | None) -> None:
    assert TimeInfo.read(info) == times


strange = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(
            [
                *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"),
                *("completion_tokens_details", "cached_tokens", "reasoning_tokens"),
                *("queue_time", "prompt_time", "completion_time"),
            ]
        ),
        inner | st.lists(inner, max_size=2),
        max_size=6,
    ),
)


@given(strange)
def test_no_value_raises_or_gives_a_negative_number(value: Any) -> None:
    usage, times = Usage.read(value), TimeInfo.read(value)
    assert (times is None) == (not isinstance(value, dict) or not value)
    assert usage is None or usage.prompt_tokens + usage.completion_tokens > 0
    counts, parts = (usage or ())[:5], (usage or ())[5:]
    assert all(type(count) is int and count >= 0 for count in counts)
    assert all(count is None or (type(count) is int and count > 0) for count in parts)
    assert all(each is None or 0 <= each < float("inf") for each in times or ())
