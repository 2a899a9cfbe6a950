"""The SDKs retry after the API's 429, after the time in its header, and get their response."""

import anyio
import pytest
from end_to_end import Conversation, running_proxy, running_upstream
from sdks import CEREBRAS, OPENAI, Sdk, SdkClient

from ape_cerebras.net.event_loop import current_backend
from ape_cerebras.simulator.completion import Completion, Timing
from ape_cerebras.simulator.replies import ERRORS
from ape_cerebras.simulator.request import CompletionRequest

pytestmark = pytest.mark.anyio

REPLY = Completion(
    CompletionRequest("gpt-oss-120b"), tokens=3, reasoning_tokens=1, tokens_per_event=1
)
BODY = REPLY.plain(Timing(0.0, 0.0, 0.0, 0.0, 0.0)).data


async def busy_at_first(conversation: Conversation) -> None:
    for number in range(2):
        await conversation.request()
        if number == 0:
            body = ERRORS["queue"].body
            headers = b"Retry-After: 0.05\r\n"
            await conversation.respond(body, status="429 Too Many Requests", headers=headers)
        else:
            await conversation.respond(BODY)
    await conversation.until_disconnected()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("sdk", [OPENAI, CEREBRAS])
async def test_a_429_is_retried(sdk: Sdk, is_async: bool) -> None:
    async with running_upstream(busy_at_first) as upstream, running_proxy(upstream.port) as running:
        backend = current_backend() if is_async else None
        client = SdkClient(sdk, running.port, backend, {"max_retries": 1})
        response = await anyio.to_thread.run_sync(client.whole)
        await running.lines.exchange(2)
        lines = [line for line in running.lines.exchanges() if line["trace_id"] == client.trace_id]
    assert response.usage.completion_tokens == 3
    assert [line["outcome"] for line in lines] == ["upstream_rate_limited", "completed"]
    assert [line["status_code"] for line in lines] == [429, 200]
    assert upstream.connections == 1
