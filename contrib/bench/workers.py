"""Measurements of several workers: how many times one worker's rate two have, and how few clients
are spread over two."""

import json
import time
from collections import Counter

from load import Failed, Load, request_of
from measures import Figures, Rig, busy, first_response
from peers import CLIENT_KEY, Running, start
from processes import WORKER_CORES

_LOGGED_WITHIN = 20.0  # seconds in which a response has to be in the log
_CLIENTS, _REQUESTS = 4, 3


def two_workers(rig: Rig, target: Running, word: str, clients: int) -> Figures:
    """Two workers and one worker, both on two cores. A machine with no more cores shares them with
    the rig, so the rate that the CPU time would allow is reported as well."""
    if not target.peer.scales:
        return {}
    one, two = (_with_workers(rig, target, number, word, clients) for number in (1, 2))
    return {
        "speedup": two["requests_per_second"] / one["requests_per_second"],
        "speedup_by_cpu": 2 * one["request_cpu_us"] / two["request_cpu_us"],
        **{f"{name}_of_one": one[name] for name in ("requests_per_second", "request_cpu_us")},
        **two,
    }


def _with_workers(rig: Rig, target: Running, workers: int, word: str, clients: int) -> Figures:
    several = start(target.peer, rig.setting, workers, WORKER_CORES)
    try:
        return busy(rig, several, word, clients)
    finally:
        several.process.stop()


def spread(rig: Rig, target: Running) -> Figures:
    """Of how many trials the four clients were spread two and two over two workers. A trial has new
    clients, which keep their connections for three requests each."""
    if not target.peer.scales:
        return {}
    several = start(target.peer, rig.setting, 2, WORKER_CORES)
    try:
        first_response(several)
        trials = [_clients_by_worker(several) for _ in range(rig.trials)]
    finally:
        several.process.stop()
    even = sum(1 for clients in trials if clients == [2, 2])
    on_one = sum(1 for clients in trials if len(clients) == 1)
    return {
        "even_percent": 100 * even / len(trials),
        "on_one_percent": 100 * on_one / len(trials),
        "trials": len(trials),
    }


def _clients_by_worker(target: Running) -> list[int]:
    """Of a trial, the clients of each worker that has any."""
    output = target.process.output
    before = len(_chat_workers(output.read_bytes()))
    request = request_of("plain", CLIENT_KEY, target.headers)
    with Load(target.port, request, _CLIENTS) as load:
        for _ in range(_REQUESTS):
            load.send_one_each(_CLIENTS)
    until = time.monotonic() + _LOGGED_WITHIN
    while True:
        workers = _chat_workers(output.read_bytes())[before:]
        if len(workers) >= _CLIENTS * _REQUESTS:
            return [requests // _REQUESTS for requests in Counter(workers).values()]
        if time.monotonic() > until:
            raise Failed("a response is not in the log")
        time.sleep(0.005)


def _chat_workers(log: bytes) -> list[int]:
    """The workers of the chat requests in a log, line by line."""
    whole, _, _ = log.rpartition(b"\n")
    lines = (json.loads(line) for line in whole.split(b"\n") if line.startswith(b"{"))
    return [line["worker"] for line in lines if line.get("route") == "/v1/chat/completions"]
