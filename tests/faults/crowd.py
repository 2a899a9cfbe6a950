"""Clients that send all kinds of requests, stay or disconnect, and record their responses."""

import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import orjson
from end_to_end import Client, Response, chat
from failing_upstream import Plan

from ape_cerebras.telemetry.outcomes import OUTCOMES
from ape_cerebras.telemetry.timings import outcome_of_status

__all__ = ("TIMEOUT", "Accounts", "Crowd", "SentRequest", "outcomes_in")

TIMEOUT = 60.0  # seconds for a response; a machine may be busy with others
_DISCONNECTS_WITHIN = 1.0  # seconds
_DISCONNECT = 1 / 3  # of the requests
_CUT = {"upstream_truncated", "upstream_stalled", "upstream_invalid"}


@dataclass
class SentRequest:
    """A request and its response: none, if the client disconnected."""

    trace_id: str
    plan: Plan
    disconnected: bool = False
    response: Response | None = None

    @property
    def code(self) -> str:
        """The code of the error in the response, "" without one."""
        if self.response is None:
            return ""
        if self.response.status != 200:
            return str(self.response.json().get("code", ""))
        event = self.response.body.rpartition(b'data: {"status_code"')
        if not event[1]:
            return ""
        return str(orjson.loads(b'{"status_code"' + event[2])["error"]["code"])

    def may_have_ended(self, line: dict[str, Any]) -> bool:
        """Whether the log line fits what the client received."""
        outcome, response = str(line["outcome"]), self.response
        if self.disconnected:
            return outcome in OUTCOMES and outcome != "internal_error"
        if response is None:  # a reset takes along what was sent
            return outcome in _CUT
        if line["status_code"] != response.status:
            return False
        if self.plan.end == "refuse" and response.status in (400, 429, 500):  # upstream's own
            return outcome == outcome_of_status(response.status)
        if self.code != line.get("error", "") and (self.code or response.complete):
            return False  # a response that was cut may have no place for an error
        if response.status == 200 and response.complete:
            return outcome == "completed" and self.plan.completes
        return outcome != "completed"


class Accounts:
    """Three of them: what clients saw, the log, and the counters. They have to agree. Of lines of
    exchanges that none of these clients had, there are only the statuses, in ``others``."""

    def __init__(self, trace: str) -> None:
        self._trace = trace
        self._requests: dict[str, SentRequest] = {}
        self._logged: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self.outcomes: Counter[str] = Counter()
        self.others: Counter[int] = Counter()
        self.wrong: list[str] = []

    def ended(self, request: SentRequest) -> None:
        """A client has seen what there is to see for it."""
        self.requests += 1
        self._requests[request.trace_id] = request
        self._compare(request.trace_id)

    def logged(self, line: dict[str, Any]) -> None:
        """A line of an exchange."""
        self.outcomes[line["outcome"]] += 1
        trace_id = line["trace_id"]
        if not trace_id.startswith(self._trace):
            self.others[line.get("status_code", 0)] += 1
        elif trace_id in self._logged:
            self.wrong.append(f"two lines of one exchange: {line}")
        else:
            self._logged[trace_id] = line
            self._compare(trace_id)

    def _compare(self, trace_id: str) -> None:
        if trace_id in self._requests and trace_id in self._logged:
            request, line = self._requests.pop(trace_id), self._logged.pop(trace_id)
            if not request.may_have_ended(line):
                self.wrong.append(f"seen: {request}; logged: {line}")

    def settle(self, counted: Counter[str]) -> list[str]:
        """The differences. A client may have disconnected before the proxy knew of its request."""
        missing = [
            f"no line: {request}" for request in self._requests.values() if not request.disconnected
        ]
        nobodys = [f"nobody's line: {line}" for line in self._logged.values()]
        unequal = [f"logged: {self.outcomes}; counted: {counted}"] * (self.outcomes != counted)
        return self.wrong + missing + nobodys + unequal


def outcomes_in(metrics: str) -> Counter[str]:
    """The exchanges counted, but for scrapes."""
    counted: Counter[str] = Counter()
    for labels, value in re.findall(r"cerebras_proxy_outcomes_total\{(.*)\} (\S+)", metrics):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if of["route"] != "/metrics":
            counted[of["outcome"]] += int(float(value))
    return counted


@dataclass
class Crowd:
    """``enter`` makes a connection. ``trace`` is what all trace ids begin with, ``extra`` are
    header lines of each request."""

    enter: Callable[[], Awaitable[Client]]
    trace: str
    extra: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.trace)
        self._requests = 0

    async def visit(self, dice: random.Random, requests: int) -> None:
        """One client's stay: so many requests, over as few connections as it takes."""
        client = None
        try:
            for _ in range(requests):
                client = client or await self.enter()
                self._requests += 1
                request = SentRequest(f"{self.trace}-{self._requests}", Plan.of_dice(dice))
                stays = await self._request(client, request, dice)
                self.accounts.ended(request)
                if not stays:
                    client.stream.close()
                    client = None
        finally:  # a failure is reported once, not by the sockets it left in a later test too
            if client is not None:
                client.stream.close()

    async def _request(self, client: Client, request: SentRequest, dice: random.Random) -> bool:
        """Whether the connection is good for another request."""
        trace = b"X-Trace-ID: " + request.trace_id.encode()
        await client.send(chat(request.plan.body(), trace, *self.extra))
        request.disconnected = dice.random() < _DISCONNECT
        if request.disconnected:
            await _disconnect(client, dice)
            return False
        with suppress(anyio.EndOfStream):
            request.response = await client.response(timeout=TIMEOUT)
        response = request.response
        return response is not None and response.complete and "connection" not in response.headers


async def _disconnect(client: Client, dice: random.Random) -> None:
    with anyio.move_on_after(dice.random() * _DISCONNECTS_WITHIN):
        await client.until_closed()
    client.stream.reset() if dice.random() < 0.5 else client.stream.close()
