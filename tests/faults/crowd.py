"""Clients that ask for all kinds of answers, stay or leave, and note down what they saw."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson
from stages import Plan
from support import Client, Response, chat

from ape_cerebras.outcomes import OUTCOMES, outcome_of_status

__all__ = ("Asked", "Crowd", "assert_accounts_agree")

_PATIENCE = 60.0  # seconds for an answer; a machine may be busy with others
_LEAVES_WITHIN = 1.0  # seconds
_LEAVE = 1 / 3  # of the requests
_CUT = {"upstream_truncated", "upstream_stalled", "upstream_invalid"}


@dataclass
class Asked:
    """A request, and what its client saw: nothing, if it left."""

    trace_id: str
    plan: Plan
    left: bool = False
    response: Response | None = None

    @property
    def code(self) -> str:
        """Of the error that the client was told, "" where it was told none."""
        if self.response is None:
            return ""
        if self.response.status != 200:
            return str(self.response.json().get("code", ""))
        event = self.response.body.rpartition(b'data: {"status_code"')
        return str(orjson.loads(b'{"status_code"' + event[2])["code"]) if event[1] else ""

    def may_have_ended(self, line: dict[str, Any]) -> bool:
        """Whether what the line tells can be what the client saw."""
        outcome, response = str(line["outcome"]), self.response
        if self.left:
            return outcome in OUTCOMES and outcome != "internal_error"
        if response is None:  # a reset takes along what was sent
            return outcome in _CUT
        if line["status_code"] != response.status:
            return False
        if self.plan.end == "refuse" and response.status in (400, 429, 500):  # upstream's own
            return outcome == outcome_of_status(response.status)
        if self.code != line.get("error", "") and (self.code or response.complete):
            return False  # where an answer is cut there may be no place to tell why
        if response.status == 200 and response.complete:
            return outcome == "completed" and self.plan.completes
        return outcome != "completed"


@dataclass
class Crowd:
    """``enter`` makes a connection. ``trace`` is what all trace ids begin with."""

    enter: Callable[[], Awaitable[Client]]
    trace: str
    asked: list[Asked] = field(default_factory=list)

    async def visit(self, dice: random.Random, requests: int) -> None:
        """One client's stay: so many requests, over as few connections as it takes."""
        client = None
        for _ in range(requests):
            client = client or await self.enter()
            asked = Asked(f"{self.trace}-{len(self.asked)}", Plan.of_dice(dice))
            self.asked.append(asked)
            stays = await self._ask(client, asked, dice)
            if not stays:
                client.stream.close()
                client = None
        if client is not None:
            client.stream.close()

    async def _ask(self, client: Client, asked: Asked, dice: random.Random) -> bool:
        """Whether the connection is good for another request."""
        await client.send(chat(asked.plan.body(), b"X-Trace-ID: " + asked.trace_id.encode()))
        asked.left = dice.random() < _LEAVE
        if asked.left:
            await _leave(client, dice)
            return False
        with suppress(anyio.EndOfStream):
            asked.response = await client.response(patience=_PATIENCE)
        response = asked.response
        return response is not None and response.complete and "connection" not in response.headers


async def _leave(client: Client, dice: random.Random) -> None:
    with anyio.move_on_after(dice.random() * _LEAVES_WITHIN):
        await client.until_closed()
    client.stream.reset() if dice.random() < 0.5 else client.stream.close()


def assert_accounts_agree(
    asked: list[Asked], lines: list[dict[str, Any]], counted: Counter[str]
) -> None:
    """What clients saw, the log, and the counters: ``counted`` are the latter by outcome. Who left
    may have done so before the proxy knew that there was a request."""
    by_trace = {line["trace_id"]: line for line in lines}
    assert len(by_trace) == len(lines)
    assert set(by_trace) <= {each.trace_id for each in asked}
    assert Counter(line["outcome"] for line in lines) == counted
    for each in asked:
        line = by_trace.get(each.trace_id)
        assert each.left if line is None else each.may_have_ended(line), (each, line)
