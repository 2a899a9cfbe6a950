"""Slow and plain, or somebody else's: what our parsers are compared with."""

import h11

from ape_cerebras.grammar import HEAD_END
from ape_cerebras.request import Headers

__all__ = (
    "BOM",
    "assert_h11_frames_alike",
    "assert_h11_reads_the_same",
    "dispatched_by_the_standard",
    "in_lower_case",
    "read_by_h11",
)

BOM = b"\xef\xbb\xbf"
_CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


# Request heads


def in_lower_case(fields: Headers) -> list[tuple[bytes, bytes]]:
    """Of codings, which h11 gives in lower case, the values too."""
    coding = b"transfer-encoding"
    return [
        (name.lower(), value.lower() if name.lower() == coding else value) for name, value in fields
    ]


def assert_h11_frames_alike(raw: bytes, framing: bytes) -> None:
    """What it is told is enough: bodies and connections end where they did."""
    states = []
    for told in (raw, framing):
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
        server.receive_data(told + b"0" * 2000)
        server.next_event()
        body = server.next_event() if server.their_state is h11.SEND_BODY else None
        read = server.their_state, server.they_are_waiting_for_100_continue
        # Not 200: to CONNECT that would be a tunnel, which there is none of.
        server.send(h11.Response(status_code=405, headers=[]))
        server.send(h11.EndOfMessage())
        states.append((repr(body), *read, server.our_state))
    assert states[0] == states[1]


def assert_h11_reads_the_same(raw: bytes) -> h11.Request:
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
    server.receive_data(raw)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    line, *lines = raw[: -len(HEAD_END)].split(b"\r\n")
    assert [event.method, event.target, b"HTTP/" + event.http_version] == line.split(b" ")
    fields = [each.partition(b":") for each in lines]
    assert list(event.headers) == in_lower_case(
        tuple((name, value.strip(b" \t")) for name, _, value in fields)
    )
    return event


# Bodies in chunks


def read_by_h11(body: bytes) -> tuple[bytes, bytes]:
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
    server.receive_data(_CHUNKED + body)
    server.next_event()
    data = b""
    while isinstance(event := server.next_event(), h11.Data):
        data += event.data
    assert isinstance(event, h11.EndOfMessage)
    return data, server.trailing_data[0]


# Server-sent events


def _lines_of(stream: bytes) -> tuple[list[bytes], bytes]:
    """The lines that have ended, and what stands after the last end of line."""
    lines, line, at = [], b"", 0
    while at < len(stream):
        if stream[at : at + 2] == b"\r\n":
            lines.append(line)
            line, at = b"", at + 2
        elif stream[at : at + 1] in (b"\r", b"\n"):
            lines.append(line)
            line, at = b"", at + 1
        else:
            line, at = line + stream[at : at + 1], at + 1
    return lines, line


def dispatched_by_the_standard(stream: bytes) -> tuple[list[bytes], bool]:
    """What the standard dispatches, and whether the stream then stands between two events."""
    lines, rest = _lines_of(stream[3:] if stream[:3] == BOM else stream)
    dispatched, data_buffer, open_ = [], b"", False
    for line in lines:
        if line == b"":
            if data_buffer != b"":
                dispatched.append(data_buffer[:-1])
            data_buffer, open_ = b"", False
            continue
        if line[:1] == b":":
            continue
        open_ = True
        field, value = line, b""
        if b":" in line:
            field, value = line[: line.index(b":")], line[line.index(b":") + 1 :]
            if value[:1] == b" ":
                value = value[1:]
        if field == b"data":
            data_buffer += value + b"\n"
    unfinished = rest != b"" or stream == BOM
    return dispatched, not (open_ or unfinished)
