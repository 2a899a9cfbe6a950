"""Our proxy with a note of the time where an exchange passes from stage to stage.

    python staged.py FILE serve

The functions of ``PROBES`` are wrapped from outside; nothing of this is in the package. At the end
FILE has, for each chat exchange, what was noted since the one before: ``[label, time, more …]``.
On asyncio's loops.
"""

import inspect
import json
import sys
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import ape_cerebras
from ape_cerebras.commands import run_command
from ape_cerebras.net.event_loop import loop_clock


class Probe(NamedTuple):
    """A function, and the labels of its beginning and its end, empty for none."""

    module: str
    name: str
    enter: str = ""
    leave: str = ""


PROBES = (
    Probe("net.readiness", "EdgePoller.poll", enter="woke"),
    Probe("net.socket_stream", "SocketStream._read_arrived", leave="read"),
    Probe("net.socket_stream", "SocketStream.send", enter="sends", leave="sent"),
    Probe("net.socket_stream", "SocketStream.send_now", enter="sends", leave="sent"),
    Probe("proxy", "Proxy._serve", enter="begins"),
    Probe("downstream.connection", "Downstream.read_head", leave="head"),
    Probe("proxy", "identify", leave="ids"),
    Probe("chat.completions", "Relay.handle", enter="handled"),
    Probe("chat.completions", "_headers_up", enter="headers"),
    Probe("upstream.client", "UpstreamClient.send", enter="leases"),
    Probe("upstream.client", "UpstreamResponse.begin", enter="leased"),
)
Note = tuple[object, ...]
notes: list[Note] = []  # of the exchange under way
exchanges: list[list[Note]] = []


def note(label: str, subject: object) -> None:
    """With a stream's identity, and when what it read last had arrived."""
    if label:
        notes.append((label, loop_time(), id(subject), getattr(subject, "arrived_at", None)))


def loop_time() -> float:
    return _clock()


_clock: Callable[[], float] = float


def wrapped(function: Callable[..., Any], enter: str, leave: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        note(enter, arguments[0])
        try:
            return function(*arguments, **named)
        finally:
            note(leave, arguments[0])

    async def await_(*arguments: Any, **named: Any) -> Any:
        note(enter, arguments[0])
        try:
            return await function(*arguments, **named)
        finally:
            note(leave, arguments[0])

    return await_ if inspect.iscoroutinefunction(function) else call


def install(probe: Probe, replace: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    *path, name = probe.name.split(".")
    holder = reduce(getattr, path, import_module(f"{ape_cerebras.__name__}.{probe.module}"))
    function = getattr(holder, name, None)
    if function is None:
        raise SystemExit(f"{probe.module} has no {probe.name} to be noted: adapt {__file__}")
    setattr(holder, name, replace(function))


def with_clock(function: Callable[..., Any]) -> Callable[..., Any]:
    def initialize(*arguments: Any, **named: Any) -> None:
        global _clock
        _clock = loop_clock()
        function(*arguments, **named)

    return initialize


def with_end(function: Callable[..., Any]) -> Callable[..., Any]:
    """An exchange's end: what has been noted since the last one is its own."""

    def account_for(proxy: Any, exchange: Any) -> None:
        times = ("started", exchange.started_at), ("token", exchange.first_token_at)
        exchanges.append([*times, *notes])
        notes.clear()
        function(proxy, exchange)

    return account_for


def main(file: str, *arguments: str) -> int:
    for probe in PROBES:
        install(probe, lambda function, probe=probe: wrapped(function, probe.enter, probe.leave))
    install(Probe("proxy", "Proxy.__init__"), with_clock)
    install(Probe("proxy", "Proxy._account_for"), with_end)
    status = run_command(list(arguments))
    Path(file).write_text(json.dumps(exchanges), "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
