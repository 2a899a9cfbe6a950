"""An agent's intended start is logged, and is not sent upstream."""

import time

import pytest
from end_to_end import chat, running_proxy, running_upstream
from upstream_scripts import responds

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]


async def test_a_request_that_began_late_logs_how_late() -> None:
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        before = time.time()
        await client.request(
            chat(b'{"messages":[]}', b"X-Request-Timestamp: %.6f" % (before - 100))
        )
        after = time.time()
        line = await running.lines.exchange()
    assert 100 <= line["intended_start_lag_seconds"] <= 100 + after - before + 1e-5
    assert b"timestamp" not in upstream.requests[0].lower()


@pytest.mark.parametrize("value", [b"", b"soon", b"9999999999", b"-5", b"1e9", b"\xff"])
async def test_nonsense_is_ignored(value: bytes) -> None:
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        response = await client.request(chat(b'{"messages":[]}', b"X-Request-Timestamp: " + value))
        line = await running.lines.exchange()
    assert response.status == 200
    assert "intended_start_lag_seconds" not in line
