"""Measurements of one round: each function takes the rig and a target, and returns figures by name;
a name ends in the unit.
"""

import json
import os
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from statistics import quantiles

from load import TIMEOUT, Failed, Load, Result, request_of
from peers import CLIENT_KEY, Running, Setting
from processes import KEEP_BYTECODE, Process
from responses import MARK, RESPONSES

Figures = dict[str, float]
HELD_WITHIN = 60.0  # seconds in which requests to be held have to reach the mock
FAULTS = (Failed, OSError, HTTPException, ValueError, subprocess.CalledProcessError)


@dataclass(frozen=True)
class Rig:
    """The mock upstream, and the amounts of load."""

    mock: Process
    setting: Setting
    seconds: float = 2.0
    idle: int = 1000
    streams: int = 200
    trials: int = 80

    def short(self) -> "Rig":
        """The rig of a quick run."""
        return replace(self, seconds=0.3, idle=100, streams=20, trials=5)

    def query_mock(self, path: str) -> dict[str, int]:
        """The counters of the mock, as JSON from ``path``."""
        port = self.setting.upstream_port
        if self.setting.scheme == "https":
            context = ssl.create_default_context(cafile=self.setting.ca)
            connection: HTTPConnection = HTTPSConnection(
                "127.0.0.1", port, timeout=TIMEOUT, context=context
            )
        else:
            connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        connection.request("GET", path)
        counts: dict[str, int] = json.loads(connection.getresponse().read())
        connection.close()
        return counts

    def wait_held(self, count: int) -> None:
        until = time.monotonic() + HELD_WITHIN
        while self.query_mock("/count")["held"] < count:
            if time.monotonic() > until:
                self.query_mock("/release")
                raise Failed(f"{count} requests did not reach the mock in {HELD_WITHIN:.0f} s")
            time.sleep(0.02)


def _percentiles(name: str, values: list[float]) -> Figures:
    cuts = quantiles(values * 2, n=100, method="inclusive")  # of one value, too
    return {f"{name}_p50_ms": cuts[49] * 1e3, f"{name}_p99_ms": cuts[98] * 1e3}


def _figures(result: Result, word: str, cpu: float, mock_cpu: float) -> Figures:
    tokens = result.responses * RESPONSES[word.encode()].tokens
    return {
        "requests": result.responses,
        "request_cpu_us": cpu / result.responses * 1e6,
        "token_cpu_us": cpu / tokens * 1e6,
        "requests_per_second": result.responses / result.seconds,
        "tokens_per_second": tokens / result.seconds,
        "core_percent": cpu / result.seconds * 100,
        "rig_percent": (result.own_cpu + mock_cpu) / result.seconds * 100,
        **_percentiles("first", result.first),
        **_percentiles("total", result.total),
    }


def busy(
    rig: Rig, target: Running, word: str, clients: int, share: float = 1.0, prompt: int = 0
) -> Figures:
    """Load of so many clients, each of which sends its next request after its response."""
    request = request_of(word, CLIENT_KEY, target.headers, prompt)
    with Load(target.port, request, clients) as load:
        load.run(rig.seconds * share / 5)  # warm: connections are made, on both sides
        cpu, mock_cpu = target.process.cpu(), rig.mock.cpu()
        result = load.run(rig.seconds * share)
        cpu, mock_cpu = target.process.cpu() - cpu, rig.mock.cpu() - mock_cpu
    return _figures(result, word, cpu, mock_cpu)


def beside_idle(rig: Rig, target: Running, clients: int) -> Figures:
    """The same load beside idle connections: as many to upstream as from clients."""
    first_response(target)
    others = rig.query_mock("/count")["connections"]
    with Load(target.port, request_of("awaited", CLIENT_KEY, target.headers), rig.idle) as idle:
        idle.send()
        rig.wait_held(rig.idle)
        rig.query_mock("/release")
        idle.gather(Result())
        figures = busy(rig, target, "plain", clients)
        return {**figures, "upstream_connections": rig.query_mock("/count")["connections"] - others}


def beside_streams(rig: Rig, target: Running, clients: int) -> Figures:
    """The same load beside streams that stopped after their first token."""
    first_response(target)
    with Load(target.port, request_of("stuck", CLIENT_KEY, target.headers), rig.streams) as streams:
        streams.send()
        rig.wait_held(rig.streams)
        figures = busy(rig, target, "plain", clients)
        rig.query_mock("/release")
        streams.gather(Result())
        return figures


def first_response(target: Running) -> None:
    """Wait for the first response: some peers listen before they are ready."""
    until = time.monotonic() + target.peer.timeout
    while True:
        try:
            _whole(target, "plain")
            return
        except FAULTS:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def just_started(rig: Rig, target: Running) -> Figures:
    first_response(target)
    return {
        "responded_ms": (time.perf_counter() - target.process.started_at) * 1e3,
        "listening_ms": target.listening_after * 1e3,
        "idle_mib": target.process.resident() / 2**20,
    }


def _grown(target: Running, before: float, count: int) -> float:
    """KiB of growth for each of ``count``, once the memory has settled."""
    time.sleep(0.3)
    return (target.process.resident() - before) / count / 1024


def idle_connections(rig: Rig, target: Running) -> Figures:
    """Memory of clients that stay connected after one response each."""
    first_response(target)
    before = target.process.resident()
    with Load(target.port, request_of("plain", CLIENT_KEY, target.headers), rig.idle) as load:
        load.send_one_each(8)
        return {"connection_kib": _grown(target, before, rig.idle)}


def open_streams(rig: Rig, target: Running) -> Figures:
    """Memory of streams that stopped after their first token."""
    first_response(target)
    before = target.process.resident()
    request = request_of("stuck", CLIENT_KEY, target.headers)
    with Load(target.port, request, rig.streams) as load:
        load.send()
        rig.wait_held(rig.streams)
        grown = _grown(target, before, rig.streams)
        rig.query_mock("/release")
        load.gather(Result())
        return {"stream_kib": grown}


def resident_after(rig: Rig, target: Running) -> Figures:
    """Memory after all load has ended."""
    return {"after_mib": target.process.resident() / 2**20}


def import_time(rig: Rig, target: Running) -> Figures:
    python, module = target.imports
    if not module:
        return {}
    code = f"import time; b = time.perf_counter(); import {module}; print(time.perf_counter() - b)"
    command = (python, "-W", "ignore", "-c", code)
    environment = {**os.environ, **KEEP_BYTECODE}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {"import_ms": float(done.stdout.split()[-1]) * 1e3}


def check(target: Running) -> str:
    """Check that the target responds completely; return a remark about a known weakness, or ""."""
    first_response(target)
    for word in ("plain", "burst", "paced"):
        first, total, body = _whole(target, word)
        if body.count(MARK) != RESPONSES[word.encode()].events:
            raise Failed(f"{word}: {body.count(MARK)} events came through")
    return "" if first < total / 2 else "holds streams back until they end"


def _whole(target: Running, word: str) -> tuple[float, float, bytes]:
    """One response; the seconds to its first token and to its end."""
    body, began_at, first_at = b"", time.perf_counter(), 0.0
    with socket.create_connection(("127.0.0.1", target.port), timeout=TIMEOUT) as sock:
        sock.sendall(request_of(word, CLIENT_KEY, target.headers))
        response = HTTPResponse(sock)
        response.begin()
        if response.status != 200:
            raise Failed(f"responded {response.status}: {response.read(300).decode()}")
        while data := response.read1(65536):
            body += data
            if not first_at and MARK in body:
                first_at = time.perf_counter()
    return first_at - began_at, time.perf_counter() - began_at, body
