"""Other readers, slow and plain or of a library, with which our parsers are compared."""

import h11
import orjson

from ape_cerebras.downstream.request_reader import request_of
from ape_cerebras.errors import BadRequest
from ape_cerebras.http1.body import keeps_alive, response_reader
from ape_cerebras.http1.messages import HEAD_END, Headers, Request
from ape_cerebras.http1.request_head import HeadLimits, check_head

__all__ = (
    "BOM",
    "assert_responses_end_alike",
    "assert_h11_reads_the_same",
    "dispatched_by_the_standard",
    "in_lower_case",
    "read_by_h11",
    "read_head",
    "response_of_h11",
)

BOM = b"\xef\xbb\xbf"
_BODY = b"0\r\n\r\n" + b"0" * 2000  # of any length up to that, or in chunks, of which it has none
_CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


# Request heads


def in_lower_case(fields: Headers) -> list[tuple[bytes, bytes]]:
    """Of codings, which h11 gives in lower case, the values too."""
    coding = b"transfer-encoding"
    return [
        (name.lower(), value.lower() if name.lower() == coding else value) for name, value in fields
    ]


def read_head(raw: bytes, limits: HeadLimits) -> Request:
    """A complete head as a client's connection reads it: by the guard, then by h11. Raises what the
    guard raises, and BadRequest where h11 refuses."""
    check_head(raw, limits)
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        raise BadRequest("malformed", keeps=False) from None
    assert isinstance(event, h11.Request)
    return request_of(event)


def response_of_h11(raw: bytes) -> tuple[h11.Connection, h11.Response] | None:
    """The response in ``raw``, behind interim ones, and the client that read it; None where h11
    refuses it."""
    client = _requesting()
    client.receive_data(raw + _BODY)
    try:
        while isinstance(event := client.next_event(), h11.InformationalResponse):
            pass
    except h11.RemoteProtocolError:
        return None
    assert isinstance(event, h11.Response)
    return client, event


def assert_responses_end_alike(raw: bytes) -> None:
    """A head that the guard has passed is refused by h11, or read as it stands; then its body ends
    where h11 ends it, and so does its connection."""
    read = response_of_h11(raw)
    if read is None:
        return
    client, event = read
    *interim, head = raw[: -len(HEAD_END)].split(HEAD_END)
    line, *lines = head.split(b"\r\n")
    assert line.startswith(b"HTTP/%b %d" % (event.http_version, event.status_code))
    fields = [each.partition(b":") for each in lines]
    headers = tuple(event.headers)
    assert list(headers) == in_lower_case(
        tuple((name, value.strip(b" \t")) for name, _, value in fields)
    )
    body, reader = _body_by_h11(client), response_reader(event.status_code, dict(headers))
    if reader is None:
        assert body == (_BODY, False)
        return
    assert body == (reader.take(bytearray(_BODY)), reader.ended)
    # By h11's rule an interim response ends a connection, too. No server has that in mind.
    if reader.ended and not any(b"close" in each.lower() for each in interim):
        goes_on = keeps_alive(b"HTTP/" + event.http_version, headers)
        assert goes_on == (client.their_state is h11.DONE)


def _requesting() -> h11.Connection:
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=10**6)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    return client


def _body_by_h11(connection: h11.Connection) -> tuple[bytes, bool]:
    """The data of the body that comes, and whether it has ended."""
    data = b""
    while isinstance(event := connection.next_event(), h11.Data):
        data += event.data
    return data, isinstance(event, h11.EndOfMessage)


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
    """The lines that have ended, and the bytes after the last end of line."""
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


def dispatched_by_the_standard(stream: bytes, most: int = 4 * 2**20) -> tuple[list[bytes], bool]:
    """The data of the events that the standard dispatches, those longer than ``most`` left out, and
    whether the stream ends between two events. Events of type error are wrapped, also those without
    data, or whose data is left out."""
    lines, rest = _lines_of(stream[3:] if stream[:3] == BOM else stream)
    dispatched, data_buffer, type_buffer, open_ = [], b"", b"", False
    for line in lines:
        if line == b"":
            data = data_buffer[:-1] if len(data_buffer) <= most + 1 else b""
            data = _wrapped(data) if type_buffer == b"error" else data
            if data != b"":
                dispatched.append(data)
            data_buffer, type_buffer, open_ = b"", b"", False
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
        if field == b"event":
            type_buffer = value
    unfinished = rest != b"" or stream == BOM
    return dispatched, not (open_ or unfinished)


def _wrapped(data: bytes) -> bytes:
    try:
        content = orjson.loads(data)
    except ValueError:
        content, data = data, orjson.dumps(data.decode("utf-8", "replace"))
    if isinstance(content, dict) and content.get("error"):
        return data
    return b'{"error":%s}' % (data if content else b'"error"')
