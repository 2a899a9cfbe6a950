"""Estimates of the tokens of responses that were cut, or came without usage."""

from typing import Any

import pytest
from exchanges import chat_exchange

from ape_cerebras.chat.models import UsageEstimates
from ape_cerebras.telemetry.exchange import Exchange, Usage

PROMPT, MOST = 30, 1000


def cut(**fields: Any) -> Exchange:
    """A stream that was cut."""
    return chat_exchange(**{"stream": True, "streamed": True, **fields})


def whole(tokens: int, events: int, model: str = "gpt-oss-120b") -> Exchange:
    """A stream that came to its end, with usage."""
    usage = Usage(10, tokens, 10 + tokens)
    return cut(done_seen=True, token_events=events, usage=usage, usage_events=events, model=model)


def estimated(exchange: Exchange, *streams: Exchange, most: int = MOST) -> Usage | None:
    """The estimate after these streams."""
    estimates = UsageEstimates()
    for stream in streams:
        estimates.learn_from(stream)
    return estimates.usage_of(exchange, PROMPT, most)


def completion_of(exchange: Exchange, *streams: Exchange, most: int = MOST) -> int:
    usage = estimated(exchange, *streams, most=most)
    assert usage is not None
    assert usage.prompt_tokens == PROMPT
    assert usage.total_tokens == PROMPT + usage.completion_tokens
    return usage.completion_tokens


@pytest.mark.parametrize(
    ("fields", "completion"),
    [
        ({}, 0),  # no token yet
        ({"head_at": None, "upstream_status": None}, 0),
        ({"token_events": 1}, 1),
        ({"token_events": 11}, 61),
    ],
)
def test_a_stream_of_a_model_seen_for_the_first_time(
    fields: dict[str, Any], completion: int
) -> None:
    assert completion_of(cut(**fields)) == completion


def test_events_count_as_those_of_the_same_model_did_lately() -> None:
    streams = [whole(81, 11), whole(3, 1), whole(31, 11, model="zai-glm-4.7")]
    assert completion_of(cut(token_events=6), *streams) == 41
    assert completion_of(cut(token_events=6, model="zai-glm-4.7"), *streams) == 16
    assert completion_of(cut(token_events=6, model="another"), *streams) == 31


def test_the_last_ten_streams_count_most() -> None:
    before, lately = [whole(81, 11)] * 100, [whole(11, 11)] * 10
    assert completion_of(cut(token_events=101), *before) == 801
    assert completion_of(cut(token_events=101), *before, *lately) == 345


def test_only_the_first_hundred_models_are_told_apart() -> None:
    streams = [whole(81, 11, model=f"model-{number}") for number in range(101)]
    assert completion_of(cut(token_events=11, model="model-99"), *streams) == 81
    assert completion_of(cut(token_events=11, model="model-100"), *streams) == 61


@pytest.mark.parametrize(("size", "completion"), [(0, 0), (100, 0), (1080, 200)])
def test_a_plain_body_counts_by_its_bytes(size: int, completion: int) -> None:
    assert completion_of(chat_exchange(plain_bytes=size)) == completion


def test_of_a_body_that_could_not_be_decoded_its_bytes_count_as_they_came() -> None:
    assert completion_of(chat_exchange(unread_bytes=400)) == 100
    assert completion_of(cut(unread_bytes=400)) == 100
    assert completion_of(cut(unread_bytes=400, token_events=11)) == 161
    assert completion_of(cut(unread_bytes=10**6), most=8) == 8


def test_half_a_usage_counts_and_the_rest_is_estimated() -> None:
    prompt_only = cut(token_events=11, half_prompt_tokens=500)
    assert estimated(prompt_only) == Usage(500, 61, 561)
    completion_only = cut(token_events=11, half_completion_tokens=70)
    assert estimated(completion_only) == Usage(PROMPT, 70, PROMPT + 70)
    assert estimated(completion_only, most=5) == Usage(PROMPT, 70, PROMPT + 70)


def test_an_estimate_has_no_more_completion_than_was_reserved() -> None:
    assert completion_of(cut(token_events=500), most=8) == 8
    assert completion_of(chat_exchange(plain_bytes=10**6), most=8) == 8


def test_tokens_after_reported_ones_are_added() -> None:
    usage = Usage(10, 20, 30, 4)
    later = cut(token_events=15, usage=usage, usage_events=10)
    assert estimated(later, whole(81, 11)) == Usage(10, 60, 70, 4)
    assert estimated(later, whole(81, 11), most=25) == Usage(10, 25, 35, 4)
    assert estimated(later, whole(81, 11), most=5) == Usage(10, 20, 30, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"sent_at": None, "head_at": None, "upstream_status": None},
        *({"upstream_status": status} for status in (302, 400, 401, 429, 500, 503, 504)),
    ],
)
def test_work_that_was_not_done_has_no_tokens(fields: dict[str, Any]) -> None:
    assert estimated(chat_exchange(**fields)) is None


def test_a_lost_request_has_its_prompt_though_it_was_not_sent_again() -> None:
    never_again = chat_exchange(request_lost=True, sent_at=None, head_at=None, upstream_status=None)
    usage = estimated(never_again)
    assert usage is not None
    assert usage.prompt_tokens > usage.completion_tokens == 0
