"""h11 reads and frames the client's side for real: the connection's own object gets the true bytes
of a chat request, and makes all the bytes that the client gets."""

from typing import Any

import h11
import pytest
from end_to_end import FINISH, KEY, TOKEN, chat, events, running_proxy, running_upstream
from upstream_scripts import streams

pytestmark = pytest.mark.anyio

HEAD = chat(b"", b"Authorization: Bearer mine", b"X-Any: Thing", b"User-Agent: a test")
BODY = b'{"model":"gpt-oss-120b","messages":[],"stream":true}'


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[h11.Connection, tuple[list[Any], list[bytes]]]:
    """Of each connection as a server: what it read, raw and as events, and the bytes it made."""
    connections: dict[h11.Connection, tuple[list[Any], list[bytes]]] = {}
    receive, read, send = (
        h11.Connection.receive_data,
        h11.Connection.next_event,
        h11.Connection.send,
    )

    def of(connection: h11.Connection) -> tuple[list[Any], list[bytes]]:
        return connections.setdefault(connection, ([], []))

    def receive_data(self: h11.Connection, data: bytes) -> None:
        if self.our_role is h11.SERVER:
            of(self)[0].append(bytes(data))
        receive(self, data)

    def next_event(self: h11.Connection) -> Any:
        event = read(self)
        if self.our_role is h11.SERVER:
            of(self)[0].append(event)
        return event

    def send_event(self: h11.Connection, event: Any) -> bytes | None:
        data: bytes | None = send(self, event)
        if self.our_role is h11.SERVER:
            of(self)[1].append(data or b"")
        return data

    monkeypatch.setattr(h11.Connection, "receive_data", receive_data)
    monkeypatch.setattr(h11.Connection, "next_event", next_event)
    monkeypatch.setattr(h11.Connection, "send", send_event)
    return connections


async def test_one_connection_of_h11_reads_and_frames_all_that_a_client_says_and_gets(
    seen: dict[h11.Connection, tuple[list[Any], list[bytes]]],
) -> None:
    request = HEAD.replace(b"Content-Length: 0", b"Content-Length: %d" % len(BODY)) + BODY
    async with (
        running_upstream(streams(events(TOKEN, FINISH, b"[DONE]"))) as upstream,
        running_proxy(upstream.port, CEREBRAS_API_KEY=KEY) as running,
    ):
        client = await running.client()
        await client.send(request)
        sent = await client.until(b"0\r\n\r\n")
        await client.send(request)
        sent += await client.until(b"0\r\n\r\n")
        await client.stream.send_eof()
        sent += await client.until_closed()
    [(read, framed)] = seen.values()
    raw = b"".join(each for each in read if isinstance(each, bytes))
    assert raw == request * 2
    heads = [each for each in read if isinstance(each, h11.Request)]
    fields = [tuple(line.split(b": ")) for line in HEAD.split(b"\r\n")[1:-2]]
    for head in heads:
        assert (head.method, head.target) == (b"POST", b"/v1/chat/completions")
        assert [name for name, _ in head.headers.raw_items()] == [name for name, _ in fields]
        assert dict(head.headers)[b"x-any"] == b"Thing"
    bodies = [bytes(each.data) for each in read if isinstance(each, h11.Data)]
    assert (len(heads), bodies) == (2, [BODY, BODY])
    assert [
        type(each) for each in read if isinstance(each, h11.EndOfMessage | h11.ConnectionClosed)
    ] == [
        h11.EndOfMessage,
        h11.EndOfMessage,
        h11.ConnectionClosed,
    ]
    assert b"".join(framed) == sent
