"""The two ways in which APE's agents reach the proxy: a LlamaIndex custom LLM over the Cerebras
SDK, and the MCP gateway over httpx. Each as it calls, without what it does around that."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import anyio
import httpx
from sdks import CEREBRAS, NO_CERTIFICATES

__all__ = ("ATTEMPTS", "RETRIED", "CerebrasLLM", "McpGateway", "trace")

RETRIED = (502, 503, 504, 408)
ATTEMPTS = 3
BACKOFF = 0.01  # seconds; the gateway's own is longer, and nothing here depends on it


def trace() -> str:
    return f"trace-{token_hex(8)}"


class CerebrasLLM:
    """The agents' LlamaIndex ``CustomLLM``: ``complete`` and ``stream_complete`` call the SDK
    with the proxy's root, without /v1, as base URL. With the SDK's own two retries."""

    def __init__(self, base_url: str, api_key: str) -> None:
        sdk = CEREBRAS.errors
        http_client = sdk.DefaultHttpxClient(verify=NO_CERTIFICATES)
        self.client = sdk.Cerebras(base_url=base_url, api_key=api_key, http_client=http_client)

    def complete(self, prompt: str, trace_id: str) -> str:
        reply: Any = self.client.chat.completions.create(**self._request(prompt, trace_id))
        return str(reply.choices[0].message.content)

    def stream_complete(self, prompt: str, trace_id: str) -> Iterator[str]:
        """The text so far, after each piece that arrives."""
        text = ""
        request = self._request(prompt, trace_id)
        events: Any = self.client.chat.completions.create(**request, stream=True)
        for event in events:
            text += event.choices[0].delta.content or "" if event.choices else ""
            yield text

    @staticmethod
    def _request(prompt: str, trace_id: str) -> dict[str, Any]:
        return {
            "model": "llama3.1-8b",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1000,
            "temperature": 0.7,
            "extra_headers": {"X-Trace-ID": trace_id},
        }


@dataclass
class McpGateway:
    """Routes an agent's call to the proxy, and retries temporary failures."""

    base_url: str
    api_key: str
    timeout: float | httpx.Timeout = 10.0
    client: httpx.AsyncClient = field(init=False)

    async def __aenter__(self) -> "McpGateway":
        self.client = httpx.AsyncClient(timeout=self.timeout, verify=NO_CERTIFICATES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def call(
        self, prompt: str, trace_id: str, *simulate: str
    ) -> tuple[httpx.Response, list[int]]:
        """The last response, and all statuses. ``simulate``: the fault of each attempt."""
        statuses: list[int] = []
        for attempt in range(ATTEMPTS):
            fault = {"X-Simulate": simulate[attempt]} if attempt < len(simulate) else {}
            response = await self._post(prompt, {**self._headers(trace_id), **fault})
            statuses.append(response.status_code)
            if response.status_code not in RETRIED:
                break
            await anyio.sleep(BACKOFF * 2**attempt)
        return response, statuses

    async def _post(self, prompt: str, headers: dict[str, str]) -> httpx.Response:
        request = {
            "model": "llama3.1-8b",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 1000,
            "temperature": 0.7,
        }
        url = f"{self.base_url}/v1/chat/completions"
        return await self.client.post(url, json=request, headers=headers)

    def _headers(self, trace_id: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.api_key}",
            "X-Trace-ID": trace_id,
            "X-API-Name": "cerebras",
            "X-MCP-Gateway": "true",
            "X-Request-Timestamp": str(time.time()),
        }
