"""The meter over responses as the API sends them, byte for byte, and over others that it may."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from recorded_streams import TEXT, TOOL_CALL

from ape_cerebras.chat.meter import PlainMeter, StreamMeter, meter_for, read_json
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo, Usage

REPLIES = Path(__file__).parents[1] / "support" / "replies"
ERROR = (
    b'data: {"status_code":500,"error":{"message":"Encountered a server error, please try again",'
    b'"type":"server_error","param":"","code":"","id":""}}\n\n'
)
USAGE = b'{"prompt_tokens":3,"completion_tokens":2}'


def event(inside: bytes) -> bytes:
    return b'data: {"choices":[{"delta":{%s},"index":0}]}\n\n' % inside


def read_stream(*chunks: bytes) -> Exchange:
    """Chunk n arrives at n, and is written at n and a half."""
    exchange = Exchange(started_at=0.0)
    meter = meter_for(exchange, 200, b"text/event-stream; charset=utf-8")
    for number, chunk in enumerate(chunks):
        meter.feed(chunk, float(number), number + 0.5)
    meter.end()
    return exchange


def read_plain(
    *chunks: bytes, status: int = 200, content_type: bytes = b"application/json"
) -> Exchange:
    exchange = Exchange(started_at=0.0)
    meter = meter_for(exchange, status, content_type)
    for number, chunk in enumerate(chunks):
        meter.feed(chunk, float(number), number + 0.5)
    meter.end()
    return exchange


def one_by_one(stream: bytes) -> Exchange:
    return read_stream(*(payload + b"\n\n" for payload in stream.split(b"\n\n")[:-1]))


def times(exchange: Exchange) -> tuple[float | None, ...]:
    return (
        exchange.first_token_at,
        exchange.first_token_sent_at,
        exchange.first_output_sent_at,
        exchange.last_token_at,
    )


def test_a_stream_of_a_reasoning_model() -> None:
    exchange = one_by_one(TEXT)
    assert times(exchange) == (1.0, 1.5, 3.5, 5.0)  # the event that names the role is no token
    assert exchange.last_body_at == 7.0
    assert exchange.has_reasoning
    assert exchange.done_seen
    assert not exchange.stream_failed
    assert exchange.usage == Usage(69, 35, 104, 0, 6)
    assert exchange.time_info == TimeInfo(0.003022741, 0.002242227, 0.018884338)
    assert exchange.response_model == "gpt-oss-120b"


def test_a_stream_of_a_tool_call() -> None:
    exchange = one_by_one(TOOL_CALL)
    assert times(exchange) == (0.0, 0.5, 0.5, 2.0)
    assert not exchange.has_reasoning
    assert exchange.done_seen
    assert exchange.usage == Usage(136, 120, 256, 128, 89)
    assert exchange.time_info == TimeInfo(0.003457493, 0.004399205, 0.065016835)


def test_an_error_event() -> None:
    exchange = Exchange(started_at=0.0)
    meter = StreamMeter(exchange)
    meter.feed(event(b'"content":"a"'), 0.0, 0.5)
    assert not meter.complete
    meter.feed(ERROR, 1.0, 1.5)
    assert exchange.stream_failed
    assert meter.complete  # the marker does not have to follow
    assert not exchange.done_seen


@pytest.mark.parametrize(
    "inside",
    [
        b'"content":"a"',
        b'"content" : "a"',
        b'"role":"assistant","content":"a"',
        b'"tool_calls":[{"function":{"name":"f","arguments":"{}"},"type":"function","id":"b"}]',
        b'"tool_calls":[{"function":{"arguments":""},"index":0}]',
        b'"content":"[DONE]"',
        b'"content":"data: [DONE]\\n\\n"',
        b'"content":"\\ud83d"',  # half of a pair, which no strict parser takes
        b'"content":"\xff"',
    ],
)
def test_output_tokens(inside: bytes) -> None:
    first = read_stream(event(b'"role":"assistant"'), event(inside))
    assert times(first) == (1.0, 1.5, 1.5, 1.0)
    later = read_stream(event(b'"content":"a"'), event(inside), event(b""))
    assert times(later) == (0.0, 0.5, 0.5, 1.0)
    assert not first.done_seen
    assert not later.done_seen


@pytest.mark.parametrize("name", [b"reasoning", b"reasoning_content"])
def test_reasoning_tokens(name: bytes) -> None:
    exchange = read_stream(event(b'"%s":"hm"' % name), event(b'"%s":"hm"' % name))
    assert times(exchange) == (0.0, 0.5, None, 1.0)
    assert exchange.has_reasoning


def test_reasoning_after_the_first_output_token_makes_no_ttfo() -> None:
    exchange = read_stream(
        event(b'"content":"a"'),
        b'data: {"choices":[{"delta":{"reasoning":"hm"}}],"usage":%s}\n\n' % USAGE,
    )
    assert not exchange.has_reasoning
    assert exchange.last_token_at == 1.0


@pytest.mark.parametrize(
    "payload",
    [
        b'{"choices":[{"delta":{"role":"assistant"},"index":0}]}',
        b'{"choices":[{"delta":{"role":"assistant","content":""},"index":0}]}',
        b'{"choices":[{"delta":{"content":null,"tool_calls":[]},"index":0}]}',
        b'{"choices":[{"delta":{},"finish_reason":"stop","index":0}]}',
        b'{"choices":[{"delta":null}]}',
        b'{"choices":[null]}',
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":{}}',
        b"{}",
        b"[]",
        b"null",
        b"no json",
        b"[" * 100_000,
    ],
)
def test_events_without_a_token(payload: bytes) -> None:
    nothing = read_stream(b"data: %s\n\n" % payload)
    assert times(nothing) == (None,) * 4
    assert nothing.last_body_at == 0.0
    after = read_stream(event(b'"content":"a"'), b"data: %s\n\n" % payload)
    assert times(after) == (0.0, 0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        rb"\"usage\":{\"prompt_tokens\":99}",
        rb"\"error\":{\"message\":1}",
        rb"\"time_info\":{\"queue_time\":9}",
        rb"\"tool_calls\":[{",
        rb"\\\"usage\\\":{}",
    ],
)
def test_text_that_looks_like_fields_is_only_text(text: bytes) -> None:
    exchange = read_stream(event(b'"content":"a"'), event(b'"content":"%s"' % text))
    assert exchange.last_token_at == 1.0
    assert (exchange.usage, exchange.time_info, exchange.stream_failed) == (None, None, False)


@pytest.mark.parametrize("choices", [b"null", b"[]", b'[{"delta":{},"finish_reason":"stop"}]'])
def test_usage_is_taken_from_any_event_that_has_it(choices: bytes) -> None:
    usage = b'data: {"choices":%s,"usage":%s}\n\n' % (choices, USAGE)
    exchange = read_stream(
        event(b'"content":"a"'),
        usage,
        b'data: {"choices":[],"usage":null,"time_info":null}\n\n',
    )
    assert exchange.usage == Usage(3, 2, 5, 0, 0)
    assert exchange.last_token_at == 0.0


def test_many_events_in_one_chunk() -> None:
    """Events behind the first output token are searched several at a time."""
    thought, output = event(b'"reasoning":"a"') * 20, event(b'"content":"a"') * 20
    assert times(read_stream(b":\n\n", output)) == (1.0, 1.5, 1.5, 1.0)
    assert times(read_stream(thought + thought, output)) == (0.0, 0.5, 1.5, 1.0)
    empty = event(b'"content":""') * 20
    exchange = read_stream(empty, thought + output + empty, output, empty)
    assert times(exchange) == (1.0, 1.5, 1.5, 2.0)
    assert (exchange.token_events, exchange.token_reads) == (60, 2)


OUTPUT, REASONING = (1.0, 1.5, 1.5, 1.0), (1.0, 1.5, None, 1.0)


@pytest.mark.parametrize(
    ("delta", "moments"),
    [
        (b'"content":[{"type":"text","text":"a"}]', OUTPUT),
        (b'"content":[{"type":"text","text":""},{"type":"output_text","text":"a"}]', OUTPUT),
        (b'"content":["a"]', OUTPUT),
        (b'"content":{"type":"text","text":"a"}', OUTPUT),
        (b'"refusal":"no"', OUTPUT),
        (b'"content":[{"type":"refusal","refusal":"no"}]', OUTPUT),
        (b'"function_call":{"name":"f","arguments":""}', OUTPUT),
        (b'"reasoning":{"content":"a"}', REASONING),
        (b'"reasoning":{"text":"a"}', REASONING),
        (b'"reasoning":[{"type":"text","text":"a"}]', REASONING),
        (b'"reasoning":{"summary":[{"type":"summary_text","text":"a"}]}', REASONING),
        (b'"reasoning_details":[{"type":"reasoning.text","text":"a"}]', REASONING),
        (b'"content":[{"type":"thinking","thinking":[{"type":"text","text":"a"}]}]', REASONING),
        (b'"content":[{"type":"thinking","thinking":"a"}]', REASONING),
        *(
            (nothing, (None, None, None, None))
            for nothing in (
                b'"content":[]',
                b'"content":[{"type":"text","text":""}]',
                b'"content":[{"type":"text"}]',
                b'"content":[null,1,[]]',
                b'"content":%b"a"%b' % (b"[" * 9, b"]" * 9),
                b'"content":{"type":"text"}',
                b'"refusal":null',
                b'"refusal":""',
                b'"function_call":{}',
                b'"reasoning":{}',
                b'"reasoning":{"id":"r1","content":null}',
            )
        ),
    ],
)
def test_first_tokens_of_other_shapes(delta: bytes, moments: tuple[float | None, ...]) -> None:
    role = event(b'"role":"assistant"')
    assert times(read_stream(role, event(delta))) == moments


@pytest.mark.parametrize(
    "delta",
    [
        b'"content":[{"type":"text","text":"a"}]',
        b'"refusal":"a"',
        b'"function_call":{"arguments":"a"}',
    ],
)
def test_later_tokens_of_other_shapes(delta: bytes) -> None:
    exchange = read_stream(event(b'"content":"a"'), event(delta), event(delta) * 20)
    assert (exchange.token_events, exchange.last_token_at) == (22, 2.0)


@pytest.mark.parametrize("odd", [b"{}", b"null", b'{"prompt_tokens":null}', b'{"total_tokens":0}'])
def test_usage_is_not_erased_by_a_later_one_that_cannot_be_read(odd: bytes) -> None:
    last = b'data: {"choices":[],"usage":%s}\n\n'
    exchange = read_stream(event(b'"content":"a"'), last % USAGE, last % odd)
    assert (exchange.usage, exchange.usage_events) == (Usage(3, 2, 5), 1)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b'"stop"', "stop"),
        (b'"length"', "length"),
        (b'"eos_token"', "other"),
        *((none, None) for none in (b"null", b'""', b"1", b"[]")),
    ],
)
def test_the_finish_reason(written: bytes, found: str | None) -> None:
    end = b'{"choices":[{"delta":{},"message":{},"finish_reason":%s}],"service_tier":"flex"}'
    token, last = event(b'"content":"a"'), b"data: %s\n\n" % (end % written)
    for exchange in (read_stream(token * 20, last), read_plain(end % written)):
        assert (exchange.finish_reason, exchange.service_tier) == (found, "flex")


@pytest.mark.parametrize(
    "spaces", [(b"", b""), (b"", b" "), (b" ", b" "), (b"", b"  "), (b"", b"\t")]
)
def test_a_finish_reason_is_seen_in_whatever_spacing(spaces: tuple[bytes, bytes]) -> None:
    member = b'"finish_reason"%b:%b%%b' % spaces
    one = b'data: {"choices":[{"delta":{"content":"a"},%b,"index":0}]}\n\n'
    exchange = Exchange(started_at=0.0)
    meter = StreamMeter(exchange)
    for reason in (*[b"null"] * 12, b'"length"'):  # it comes with the last token
        meter.feed(one % (member % reason), 0.0, 0.0)
    meter.end_of_body(0.0, framed=True)
    assert (exchange.finish_reason, meter.complete, exchange.token_events) == ("length", True, 13)


def test_usage_in_every_event_counts_as_the_last_one_says() -> None:
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":%d}'
    each = b'data: {"choices":[{"delta":{"content":"a"}}],' + usage + b"}\n\n"
    exchange = read_stream(each % 1, each % 2, each % 3)
    assert (exchange.usage, exchange.usage_events) == (Usage(3, 3, 6), 3)


def test_a_finish_event_that_carries_content() -> None:
    last = b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"stop"}],"usage":%s}\n\n'
    exchange = read_stream(event(b'"content":"a"'), last % USAGE)
    assert exchange.last_token_at == 1.0
    assert exchange.usage == Usage(3, 2, 5, 0, 0)


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"])
def test_the_end_marker(end: bytes) -> None:
    assert read_stream(end).done_seen
    assert read_stream(event(b'"content":"a"') + end).done_seen


@pytest.mark.parametrize(
    "after", [ERROR, event(b'"content":"b"'), b'data: {"usage":%s}\n\n' % USAGE]
)
def test_nothing_counts_after_the_end_marker(after: bytes) -> None:
    first, end = event(b'"content":"a"'), b"data: [DONE]\n\n"
    for times in (1, 20):
        assert asdict(read_stream(first, end + after * times)) == asdict(read_stream(first, end))
    assert asdict(read_stream(first, end, after)) == asdict(read_stream(first, end))


def test_an_end_marker_in_an_unfinished_event_does_not_count() -> None:
    assert not read_stream(b"data: [DONE]\n").done_seen


def test_an_empty_completion_has_no_token() -> None:
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":%s}\n\ndata: [DONE]\n\n'
    exchange = read_stream(event(b'"role":"assistant"'), end % USAGE)
    assert times(exchange) == (None,) * 4
    assert exchange.done_seen


THOUGHT, TOKEN = event(b'"reasoning":"hm"'), event(b'"content":"a"')


@pytest.mark.parametrize(
    "output",
    [
        TOKEN,
        event(b'"tool_calls":[{"function":{"name":"f"}}]'),
        event(b'"content":[{"type":"text","text":"a"}]'),
        event(b'"refusal":"no"'),
        event(b'"function_call":{"name":"f"}'),
        b'data: {"choices":[{"text":"a"}]}\n\n',
        THOUGHT + TOKEN,
    ],
)
def test_a_chunk_that_may_bring_a_first_token_is_not_held(output: bytes) -> None:
    whole = ((THOUGHT, False), (THOUGHT, True), (output, False), (output, True), (THOUGHT, True))
    # Only the end of an event can complete it.
    cut = ((THOUGHT, False), (output[:20], True), (output[20:], False), (output[:20], True))
    for chunks in (whole, cut):
        exchange = Exchange(started_at=0.0)
        meter = StreamMeter(exchange)
        for chunk, held in chunks:
            assert meter.may_hold(chunk) is held
            meter.feed(chunk, 0.0, 0.0)
        assert exchange.first_output_sent_at == 0.0


@pytest.mark.parametrize(
    ("name", "usage", "time_info", "model"),
    [
        (
            "plain.json",
            Usage(20, 2, 22, 0, 0),
            TimeInfo(0.00012279, 0.001922189, 0.00024986),
            "gemma-4-31b",
        ),
        (
            "plain_reasoning.json",
            Usage(79, 37, 116, 0, 25),
            TimeInfo(0.008762771, 0.002785251, 0.017746517),
            "gpt-oss-120b",
        ),
        (
            "plain_tool_call.json",
            Usage(70, 15, 85, 0, 0),
            TimeInfo(0.002429379, 0.001281393, 0.019896992),
            "gemma-4-31b",
        ),
    ],
)
def test_plain_replies(name: str, usage: Usage, time_info: TimeInfo, model: str) -> None:
    reply = (REPLIES / name).read_bytes()
    for chunks in ((reply,), (reply[:100], reply[100:]), (b"", reply)):
        exchange = read_plain(*chunks)
        assert (exchange.usage, exchange.time_info) == (usage, time_info)
        assert exchange.response_model == model
        assert exchange.last_body_at == len(chunks) - 1
        assert times(exchange) == (None,) * 4


def test_a_plain_reply_with_half_a_surrogate_pair_is_read() -> None:
    assert read_plain(b'{"text":"\\ud83d","usage":%s}' % USAGE).usage == Usage(3, 2, 5, 0, 0)


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'{"usage":5,"model":5}', b'{"usage":'])
def test_a_plain_reply_without_usage_or_model(body: bytes) -> None:
    exchange = read_plain(body)
    assert (exchange.usage, exchange.time_info, exchange.response_model) == (None, None, None)


def test_a_body_that_is_not_parsed_is_timed() -> None:
    body = b'{"usage":%s}' % USAGE
    for exchange in (
        read_plain(body, status=429),
        read_plain(body, content_type=b"application/vnd.msgpack"),
        read_plain(body, content_type=b""),
    ):
        assert exchange.usage is None
        assert exchange.last_body_at == 0.0


def test_status_and_media_type_choose_the_meter() -> None:
    exchange = Exchange(started_at=0.0)
    assert isinstance(meter_for(exchange, 200, b"Text/Event-Stream"), StreamMeter)
    assert isinstance(meter_for(exchange, 400, b"text/event-stream"), PlainMeter)
    assert isinstance(meter_for(exchange, 200, b"application/json"), PlainMeter)
    assert isinstance(meter_for(exchange, 200, b""), PlainMeter)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":[1,2.5,null]}', {"a": [1, 2.5, None]}),
        (b'{"a":"\\ud83d"}', {"a": "\ud83d"}),  # half of a pair, cut between two tokens
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        *((text, None) for text in (b"", b"{", b"nonsense", b"[DONE]", b"[" * 100_000)),
    ],
)
def test_read_json(text: bytes, value: Any) -> None:
    assert read_json(text) == value
