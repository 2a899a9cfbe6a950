"""A fleet of agents that share an account: each a client of the OpenAI SDK with its default two
retries, its backoff and its handling of Retry-After.

An agent does one task after another: a chat request that has to succeed. Where the SDK gives up,
the agent waits a second and tries again, so that a task's wait is all the time from its start to
its response. A task that is unfinished at the end counts with the wait it had by then.
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import openai

__all__ = ("Found", "Key", "play")

_PAUSE = 1.0  # seconds after the SDK has given up
_PROMPT = "Say what the wafer does while light crosses half a room. " * 7  # about 100 tokens
_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the SDK would read a hundred


@dataclass(frozen=True)
class Key:
    """A named key, and how many agents have it."""

    name: str
    agents: int

    @property
    def secret(self) -> str:
        return f"sk-bench-{self.name}"


@dataclass
class Found:
    """The result of a fleet that ran for ``seconds``."""

    keys: Sequence[Key]
    seconds: float = 0.0
    responses: Counter[str] = field(default_factory=Counter)  # by key
    tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # attempts, by the status
    given_up: int = 0  # calls that failed after the SDK's retries
    waits: list[float] = field(default_factory=list)
    by_agent: list[int] = field(default_factory=list)  # responses
    events: int = 0  # of streams

    def figures(self) -> dict[str, float]:
        return {
            "responses_per_minute": self.responses.total() * 60 / self.seconds,
            "refused_429": float(self.refused["429"]),
            "refused_other": float(self.refused.total() - self.refused["429"]),
            "given_up": float(self.given_up),
            "wait_p50_seconds": _quantile(self.waits, 50),
            "wait_p99_seconds": _quantile(self.waits, 99),
            "fairness": jain([self.responses[key.name] for key in self.keys]),
            "fewest_responses": float(min(self.by_agent)),
            "agents_without": float(self.by_agent.count(0)),
            "tokens": float(self.tokens),
        }


def jain(shares: Sequence[int]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all."""
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 0.0


def _quantile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else 0.0


class _Fleet:
    def __init__(self, port: int, keys: Sequence[Key], more: Mapping[str, Any]) -> None:
        self.found = Found(keys)
        self._url = f"http://127.0.0.1:{port}/v1"
        messages = [{"role": "user", "content": _PROMPT}]
        self._request = {"messages": messages, **more}

    async def run(self, seconds: float) -> None:
        hooks = {"response": [self._note_status]}
        async with openai.DefaultAsyncHttpxClient(
            verify=_NO_CERTIFICATES, event_hooks=hooks
        ) as http:
            began_at = time.monotonic()
            tasks = [
                asyncio.create_task(self._agent(key, http))
                for key in self.found.keys
                for _ in range(key.agents)
            ]
            await asyncio.wait(tasks, timeout=seconds)
            self.found.seconds = time.monotonic() - began_at
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _note_status(self, response: Any) -> None:
        if response.status_code >= 400:
            self.found.refused[str(response.status_code)] += 1

    async def _agent(self, key: Key, http: Any) -> None:
        client = openai.AsyncOpenAI(base_url=self._url, api_key=key.secret, http_client=http)
        responses = 0
        with suppress(asyncio.CancelledError):
            while True:
                await self._task(client)
                self.found.responses[key.name] += 1
                responses += 1
        self.found.by_agent.append(responses)

    async def _task(self, client: openai.AsyncOpenAI) -> None:
        began_at = time.monotonic()
        try:
            while True:
                if await self._call(client):
                    return
                await asyncio.sleep(_PAUSE)
        finally:
            self.found.waits.append(time.monotonic() - began_at)

    async def _call(self, client: openai.AsyncOpenAI) -> bool:
        """Whether the SDK got a response, its retries included."""
        try:
            response = await client.chat.completions.create(**self._request)
        except openai.APIError:
            self.found.given_up += 1
            return False
        if self._request.get("stream"):
            async for _ in response:
                self.found.events += 1
        else:
            self.found.tokens += response.usage.total_tokens
        return True


def play(port: int, keys: Sequence[Key], seconds: float, **more: Any) -> Found:
    """Run a fleet against the proxy on ``port``; ``more`` are further fields of its requests."""
    fleet = _Fleet(port, keys, more)
    asyncio.run(fleet.run(seconds))
    return fleet.found
