"""Responses of the mock upstream: canned bytes, and when they are written.

The first word of the request's message chooses the response. A token is written as the
text ``some words``, which nothing else has in it, so that a reader of the response can count them.
"""

from typing import NamedTuple

MARK = b"some words"  # what each token has in it, plain reply included

_EVENT = (
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta":%s,'
    b'"index":0}],"created":1787325819,"model":"gpt-oss-120b",'
    b'"system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.completion.chunk"%s}\n\n'
)
_USAGE = (
    b',"usage":{"total_tokens":169,"completion_tokens":%d,"prompt_tokens":69},"time_info":'
    b'{"queue_time":0.0001,"prompt_time":0.0002,"completion_time":0.0003,"total_time":0.0007,'
    b'"created":1787325819.5}'
)


class CannedResponse(NamedTuple):
    """``writes`` go out one after the other, ``pace`` seconds apart; the second and later ones only
    after the order to, where the response is ``held``."""

    writes: tuple[bytes, ...]
    events: int  # that have text in them
    tokens: int
    pace: float = 0.0
    held: bool = False


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _reply(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + _chunk(_EVENT % (b'{"role":"assistant"}', b""))
)
_TOKEN = _chunk(_EVENT % (b'{"content":" some words"}', b""))
_FIVE_TOKENS = _chunk(_EVENT % (b'{"content":" some words of it, and more"}', b""))
_PLAIN = _reply(
    b'{"id":"chatcmpl-fb114482","object":"chat.completion","created":1787325819,"choices":['
    b'{"finish_reason":"stop","index":0,"message":{"content":"some words","role":"assistant"}}],'
    b'"model":"gpt-oss-120b"%s}' % (_USAGE % 100)
)


def _tail(tokens: int) -> bytes:
    last = _EVENT.replace(b'"index":0', b'"index":0,"finish_reason":"stop"')
    return _chunk(last % (b"{}", _USAGE % tokens)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


SMALL = _reply(b'{"status":"ok"}')
RESPONSES = {
    b"plain": CannedResponse((_PLAIN,), events=1, tokens=100),
    # All that a stream has, in one write.
    b"burst": CannedResponse((_HEAD + _TOKEN * 100 + _tail(100),), events=100, tokens=100),
    # A token at a time, 200 a second.
    b"paced": CannedResponse(
        (_HEAD, *(_TOKEN,) * 100, _tail(100)), events=100, tokens=100, pace=0.005
    ),
    # The same, soon over: for many first tokens in little time.
    b"brief": CannedResponse((_HEAD, *(_TOKEN,) * 5, _tail(5)), events=5, tokens=5, pace=0.005),
    # The same, each token at the order to send it.
    b"stepped": CannedResponse(
        (_HEAD, *(_TOKEN,) * 100, _tail(100)), events=100, tokens=100, held=True
    ),
    # As Cerebras does it: 200 events a second, four at a time, of several tokens each.
    b"wafer": CannedResponse(
        (_HEAD, *(_FIVE_TOKENS * 4,) * 25, _tail(500)), events=100, tokens=500, pace=0.02
    ),
    b"stepped-four": CannedResponse(
        (_HEAD, *(_FIVE_TOKENS * 4,) * 25, _tail(500)), events=100, tokens=500, held=True
    ),
    # An open stream of which nothing more comes, and a plain reply that is waited for.
    b"stuck": CannedResponse((_HEAD + _TOKEN, _tail(1)), events=1, tokens=1, held=True),
    b"awaited": CannedResponse((b"", _PLAIN), events=1, tokens=100, held=True),
}
