"""Properties of our parsers that hold for any bytes, each compared with another reader. The first
byte of the input decides how the rest is cut into pieces."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import orjson
from oracles import (
    assert_h11_reads_the_same,
    assert_responses_end_alike,
    dispatched_by_the_standard,
    in_lower_case,
    read_by_h11,
    read_head,
)
from strict_parser import strictly_parsed

from ape_cerebras.chat.request import read_chat_request
from ape_cerebras.chat.sse import EventReader
from ape_cerebras.errors import BadRequest, InvalidResponse, ProxyError
from ape_cerebras.http1.body import ChunkedReader
from ape_cerebras.http1.messages import HEAD_END, Request
from ape_cerebras.http1.request_head import HeadLimits, check_part
from ape_cerebras.http1.response_head import ResponseGuard

__all__ = ("CHECKS", "SEEDS")

_LIMITS = HeadLimits(200, 5, 40, 1000)  # small, so that they are met
_DEFAULT, _ALIASES = "the-default", {"old": "new"}


def _ends(size: int, step: int) -> Iterator[int]:
    """The ends of pieces of that size."""
    yield from range(step, size, step)
    yield size


def check_request_head(step: int, data: bytes) -> None:
    """The guard and h11 accept together what a strict parser accepts, read it alike, and however it
    is cut."""
    whole = data + HEAD_END
    head = whole[: whole.index(HEAD_END) + len(HEAD_END)]
    strict = _read_or_refused(strictly_parsed, head)
    assert _read_or_refused(read_head, head) == strict
    if strict is None:
        return
    event = assert_h11_reads_the_same(head)
    assert (strict.method.encode(), strict.http_version) == (event.method, event.http_version)
    assert in_lower_case(strict.headers) == list(event.headers)
    checked = 0
    for end in _ends(len(head), step):
        check_part(head[:end], checked, _LIMITS)
        checked = end


def _read_or_refused(read: Callable[[bytes, HeadLimits], Request], head: bytes) -> Request | None:
    """The request, with codings in lower case as h11 gives them; None for a refusal."""
    try:
        request = read(head, _LIMITS)
    except ProxyError:
        return None
    return replace(request, headers=tuple(in_lower_case(request.headers)))


def check_chunks(step: int, data: bytes) -> None:
    """A body is read the same however it is cut; and as h11 reads it, if it is accepted."""
    read = _read_chunks(data, step)
    assert read == _read_chunks(data, len(data) + 1)
    if read is not None and read[0]:
        assert read[1:] == read_by_h11(data)


def _read_chunks(data: bytes, step: int) -> tuple[bool, bytes, bytes] | None:
    """Whether the body has ended, its data, and the bytes behind it; None for a refusal."""
    reader, arrived, body, begin = ChunkedReader(300, 100, 50), bytearray(), b"", 0
    for end in _ends(len(data), step):
        piece, begin = data[begin:end], end
        try:
            chunk = b"" if arrived else reader.take_only_chunk(piece)
            if not chunk:
                arrived += piece
                chunk = reader.take(arrived)
            body += chunk
        except ProxyError:
            return None
        if reader.ended:
            return True, body, bytes(arrived) + data[end:]
    return False, body, b""


def check_events(step: int, data: bytes) -> None:
    """The events that the standard dispatches, except those too long, however the stream is cut."""
    most = 1 + step % 50
    reader, got, begin = EventReader(max_event_bytes=most), [], 0
    for end in _ends(len(data), step):
        got += reader.feed(data[begin:end])
        begin = end
    dispatched, at_boundary = dispatched_by_the_standard(data, most)
    assert got == dispatched
    assert reader.at_boundary == at_boundary


class _Members(list[tuple[str, Any]]):
    """The members of a JSON object in their order, repeated ones too."""


def _parsed(body: bytes) -> Any:
    return json.loads(body, object_pairs_hook=_Members)


def check_edits(step: int, data: bytes) -> None:
    """A body is refused where it is ambiguous or no request; otherwise, as another parser reads it,
    only the intended values change."""
    convert = step % 2 == 1
    try:
        orjson.loads(data)
        before = _parsed(data)
    except orjson.JSONDecodeError:
        before = None
    except RecursionError:  # the other parser's
        return
    try:
        request = read_chat_request(
            data, b"application/json", b"", _DEFAULT, _ALIASES, convert=convert
        )
    except BadRequest:
        assert not _is_plain(before)
        return
    assert _is_plain(before)
    assert _parsed(request.body) == _edited(before, convert=convert)
    if before == _edited(before, convert=convert):
        assert request.body is data


def _is_plain(members: Any) -> bool:
    if not isinstance(members, _Members):
        return False
    models = [value for name, value in members if name == "model"]
    streams = [value for name, value in members if name == "stream"]
    return (
        max(len(models), len(streams)) < 2
        and all(isinstance(model, str) and model for model in models)
        and all(stream is None or isinstance(stream, bool) for stream in streams)
    )


def _edited(members: _Members, *, convert: bool) -> _Members:
    model = dict(members).get("model", _DEFAULT)
    values: dict[str, Any] = {}
    missing: dict[str, Any] = {}
    (values if "model" in dict(members) else missing)["model"] = _ALIASES.get(model, model)
    if convert and not dict(members).get("stream"):
        (values if "stream" in dict(members) else missing)["stream"] = True
        if "stream_options" not in dict(members):
            missing["stream_options"] = _Members([("include_usage", True)])
    kept = [(name, values.get(name, value)) for name, value in members]
    return _Members([*missing.items(), *kept])


def check_response_head(step: int, data: bytes) -> None:
    """A head ends at the same place however it is cut; and it is as h11 reads it."""
    end = _end_of_response_head(data, step)
    assert end == _end_of_response_head(data, len(data) + 1)
    if end:
        assert_responses_end_alike(data[:end])


def _end_of_response_head(data: bytes, step: int) -> int | None:
    """Where the head ends, 0 if it is not complete; None for a refusal."""
    guard, arrived, begin = ResponseGuard(), bytearray(), 0
    for end in _ends(len(data), step):
        arrived += data[begin:end]
        begin = end
        try:
            if behind := guard.end_of_head(arrived):
                return behind
        except InvalidResponse:
            return None
    return 0


CHECKS: dict[str, Callable[[int, bytes], None]] = {
    "request-head": check_request_head,
    "chunks": check_chunks,
    "events": check_events,
    "edits": check_edits,
    "response-head": check_response_head,
}
# Where a search may begin.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "request-head": (
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST http://a:8/x?y HTTP/1.1\r\nHost: a:8\r\nContent-Length: 5\r\n"
        b"Expect: 100-continue\r\n",
        b"OPTIONS * HTTP/1.0\r\nConnection: close\r\n",
        b"POST /a HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nX:\t y \t\r\n",
    ),
    "chunks": (
        b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        b'A;a;b=c;d="e \\" f"\r\nhello hell\r\n00;end\r\nX-A: 1\r\nY:\r\n\r\n',
        b"A;a=" + b"b" * 50 + b"\r\nhello",  # the most framing that the size allows
        b"1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n",
    ),
    "events": (
        b'data: {"a":1}\n\n: ping\n\nevent: x\ndata: b\ndata: c\n\ndata: [DONE]\n\n',
        b"\xef\xbb\xbfdata: a\r\n\r\ndata:b\r\rid: 7\nretry\n\n",
    ),
    "edits": (
        b'{"model":"old","messages":[{"role":"user","content":"hi"}],"stream":true}',
        b' {"stream" : null, "metadata":{"model":"\\"model\\":1"},"m\\u006fdel":"m"}',
        b'{"messages":[1,-1.5e3,true,null,"\\ud83d\\ude00"],"model":"\\u006fld"}\n',
        b"{}",
    ),
    "response-head": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No\r\nContent-Length: 0\r\nX:\t y\r\n\r\n",
    ),
}
