"""Where responses end: as h11 ends them that is given all of them."""

import h11
import pytest
from end_to_end import KEY
from memory_stream import MemoryStream, memory_pair

from ape_cerebras.config.config import Config
from ape_cerebras.downstream.connection import Downstream, Misframed
from ape_cerebras.http1.messages import PHRASES, Request
from ape_cerebras.telemetry.exchange import Exchange

pytestmark = pytest.mark.anyio


async def requested(request: bytes) -> tuple[MemoryStream, Downstream, Request]:
    client, server = memory_pair()
    downstream = Downstream(server, Config.from_environment({"CEREBRAS_API_KEY": KEY}))
    await client.send(request)
    await downstream.wait_for_request()
    read = await downstream.read_head()
    await downstream.read_body()
    return client, downstream, read


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("length", [None, 0, 3])
@pytest.mark.parametrize("status", [200, 204, 304, 404])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_response_is_framed_as_h11_frames_it(
    method: bytes, version: bytes, status: int, length: int | None, closing: bool
) -> None:
    request_head = b"%b / HTTP/%b\r\nHost: a\r\n\r\n" % (method, version)
    client, downstream, request = await requested(request_head)
    headers = () if length is None else ((b"content-length", b"%d" % length),)
    has_body = method == b"GET" and status in (200, 404)
    body = b"" if not has_body else b"abcde" if length is None else b"abcde"[:length]
    if closing:
        downstream.close_after_response()
    downstream.send_head(Exchange(started_at=0.0, request=request), status, headers)
    await downstream.send_chunk(body, hold=True)
    await downstream.send_end()
    oracle = h11.Connection(h11.SERVER)
    oracle.receive_data(request_head)
    assert [type(oracle.next_event()) for _ in range(2)] == [h11.Request, h11.EndOfMessage]
    close = ((b"connection", b"close"),) if closing else ()
    reason = PHRASES[status]
    events = (
        h11.Response(status_code=status, headers=[*headers, *close], reason=reason),
        h11.Data(data=body),
        h11.EndOfMessage(),
    )
    expected = b"".join(oracle.send(event) or b"" for event in events)
    got = await client.receive()
    assert _head_and_body(got) == _head_and_body(expected)
    assert downstream.keeps_alive == (oracle.our_state is not h11.MUST_CLOSE)


def _head_and_body(raw: bytes) -> tuple[bytes, set[bytes], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, {line.lower() for line in lines if not line.startswith(b"date: ")}, body


@pytest.mark.parametrize("body", [b"ab", b"abcd"])
async def test_a_body_of_another_length_than_announced_does_not_end_well(body: bytes) -> None:
    _, downstream, request = await requested(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    async def respond() -> None:
        headers = ((b"content-length", b"3"),)
        downstream.send_head(Exchange(started_at=0.0, request=request), 200, headers)
        await downstream.send_chunk(body)
        await downstream.send_end()

    with pytest.raises(Misframed):
        await respond()
    assert not downstream.ended
