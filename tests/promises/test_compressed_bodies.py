"""Requests as agents that save bandwidth send them: gzip, MessagePack, or both."""

import gzip
from secrets import token_hex

import httpx
import orjson
import pytest
from sdks import MESSAGE_PACK, NO_CERTIFICATES, REQUEST
from server_process import Served

JSON = orjson.dumps({**REQUEST, "stream": True})
GZIP = {"content-encoding": "gzip"}

BINARY = {
    "gzip": ("application/json", gzip.compress(JSON), GZIP),
    "MessagePack": ("application/msgpack", MESSAGE_PACK, {}),
    "both": ("application/vnd.msgpack", gzip.compress(MESSAGE_PACK), GZIP),
}


@pytest.mark.parametrize("kind", BINARY)
def test_a_binary_body_is_relayed(demo: Served, kind: str) -> None:
    media_type, body, coding = BINARY[kind]
    trace_id = token_hex(16)
    response = httpx.post(
        f"http://127.0.0.1:{demo.port}/v1/chat/completions",
        content=body,
        headers={"content-type": media_type, "x-trace-id": trace_id, **coding},
        verify=NO_CERTIFICATES,
    )
    line = demo.exchange(trace_id)
    assert response.status_code == 200
    assert response.text.endswith("data: [DONE]\n\n")
    assert (line["outcome"], line["stream"]) == ("completed", True)
    assert (line["ttft_source"], line["usage_source"]) == ("measured", "upstream")
    assert line["model"]  # the response's


def test_a_coding_that_is_not_known_is_refused(demo: Served) -> None:
    response = httpx.post(
        f"http://127.0.0.1:{demo.port}/v1/chat/completions",
        content=JSON,
        headers={"content-type": "application/json", "content-encoding": "br"},
        verify=NO_CERTIFICATES,
    )
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"
