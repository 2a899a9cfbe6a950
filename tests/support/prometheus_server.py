"""A real Prometheus that watches a proxy under load, and the files in ``contrib`` that it is set up
with."""

import http.client
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
import yaml
from end_to_end import free_port
from programs import tool
from scraped_metrics import config_with, live, rendered
from server_process import TIMEOUT, Served, serving

from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.multiprocess import Scoreboard, WorkerSlot

__all__ = (
    "CONTRIB",
    "Load",
    "Prometheus",
    "known_names",
    "names_in",
    "under_load",
    "until",
    "until_none_is_silent",
    "watching_prometheus",
)

CONTRIB = Path(__file__).parents[2] / "contrib"
TIMEOUT_WITH_IT = 4 * TIMEOUT  # seconds; it has to start, and to see everything twice
SCRAPE_EVERY = "1s"  # a scrape may not take longer either
_REQUESTS = (
    {"model": "llama3.1-8b", "stream": True},
    {"model": "gpt-oss-120b", "stream": True},
    {"model": "gpt-oss-120b", "stream": False},
    {"model": "gemma-4-31b", "stream": True},
)
_PRICES = '{"llama3.1-8b":{"input":1,"output":2},"gpt-oss-120b":{"input":3,"output":4}}'
_FAULTS = ("", "", "", "", "fault=cut, at=4", "fault=429", "fault=503", "fault=error_event, at=4")


# Known series


def known_names(directory: Path) -> set[str]:
    """The names of all series that a proxy, or one of several workers, can have."""
    found: set[str] = set()
    for slot in (None, WorkerSlot(1, Scoreboard(2), str(directory))):
        metrics = Metrics(config_with(), "asyncio", slot, live)
        text = rendered(metrics)[0].decode()
        for name, kind in re.findall(r"^# TYPE (\w+) (\w+)", text, re.MULTILINE):
            parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            found |= {name + part for part in parts}
    return found


def names_in(expression: str) -> set[str]:
    """The names of the proxy's series in an expression, those of its processes among them."""
    return set(re.findall(r"[\w:]*cerebras_proxy_[\w:]+|\bprocess_[a-z]+_\w+", expression))


# A load


class Load:
    """Sends various requests to a proxy, on several connections, until it is stopped."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopped = threading.Event()
        self._requests = [0] * 4
        self._threads: list[threading.Thread] = []
        self.start()

    def start(self) -> None:
        self._stopped.clear()
        self._threads = [
            threading.Thread(target=self._run, args=(number,))
            for number in range(len(self._requests))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """Pause it; the number of requests so far."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return sum(self._requests)

    def _run(self, number: int) -> None:
        faults = cycle(_FAULTS[number:] + _FAULTS[:number])
        for request, fault in zip(cycle(_REQUESTS), faults, strict=False):
            if self._stopped.is_set():
                return
            body = orjson.dumps({**request, "messages": [{"role": "user", "content": "Hello!"}]})
            headers = {"Content-Type": "application/json"}
            if fault:
                headers["X-Simulate"] = fault
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
            connection.request("POST", "/v1/chat/completions", body, headers)
            with suppress(http.client.IncompleteRead):
                connection.getresponse().read()
            connection.close()
            self._requests[number] += 1


# Prometheus


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


class Prometheus:
    """A running Prometheus, through its API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            connection.request("GET", path)
            return orjson.loads(connection.getresponse().read())
        finally:
            connection.close()

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/api/v1/targets")["data"]["activeTargets"])
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError):
            return False

    def query(self, expression: str) -> list[Sample]:
        """The samples of an expression now, without those that are not a number."""
        reported = self.get(f"/api/v1/query?query={quote(expression)}")
        assert reported["status"] == "success", f"{expression}: {reported.get('error')}"
        result = reported["data"]["result"]
        samples = [Sample(each["metric"], float(each["value"][1])) for each in result]
        return [sample for sample in samples if math.isfinite(sample.value)]

    def silent(self, expressions: set[str]) -> set[str]:
        """The expressions without a sample."""
        return {each for each in expressions if not self.query(each)}


def until(is_so: Callable[[], object], what: str) -> None:
    """Poll until ``is_so`` holds."""
    end = time.monotonic() + TIMEOUT_WITH_IT
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.05)  # between two queries, as everything shares one processor


def until_none_is_silent(server: Prometheus, expressions: set[str], what: str) -> None:
    """Poll until all expressions have a sample at once. Each is queried by itself before: all of a
    dashboard at each poll keep a core busy."""
    left = set(expressions)

    def is_so() -> bool:
        left.intersection_update(server.silent(left))
        return not left and not server.silent(expressions)

    until(is_so, what)


def _settings(target: str, directory: Path) -> Path:
    """The settings of ``contrib`` with another target, shorter intervals and no Alertmanager."""
    source = CONTRIB / "prometheus" / "prometheus.yml"
    reported = yaml.safe_load(source.read_text("utf-8"))
    reported["global"] = {"scrape_interval": SCRAPE_EVERY, "evaluation_interval": SCRAPE_EVERY}
    reported["rule_files"] = [str(source.parent / name) for name in reported["rule_files"]]
    [job] = reported["scrape_configs"]
    assert job["job_name"] == "cerebras-proxy"
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    del reported["alerting"]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(reported))
    return path


@contextmanager
def watching_prometheus(served: Served, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that watches the scrapers' port of a process."""
    line = served.line_where(lambda line: line["message"] == "Listening for scrapers")
    target = line["address"].removeprefix("http://")
    port = free_port()
    command = (
        tool("prometheus", "prometheus"),
        f"--config.file={_settings(target, directory)}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            server = Prometheus(port)
            until(server.is_ready, "Prometheus does not start")
            assert process.poll() is None, (directory / "log").read_text("utf-8")
            yield server
        finally:
            process.kill()
            process.wait()


@contextmanager
def under_load(backend: str, directory: Path) -> Iterator[tuple[Prometheus, Load]]:
    """A demo of two workers under load, and a Prometheus that watches it. TTFT is above its target,
    one model has no price, requests wait in the queue and are retried."""
    tool("prometheus", "prometheus")
    settings = {
        "METRICS_PORT": "0",
        "METRICS_ON_MAIN_PORT": "off",
        "TTFT_TARGET_MS": "10",
        "MODEL_PRICES": _PRICES,
        "RETRY_ATTEMPTS": "1",
        "RETRY_BACKOFF": "0.01",
        "CIRCUIT_FAILURES": "1000",
        "MAX_CONCURRENT_REQUESTS": "1",
        "MAX_QUEUE_SECONDS": "30",
    }
    command = ("serve", "--demo", "--workers", "2", "--backend", backend)
    with (
        serving(*command, TMPDIR=str(directory), **settings) as served,
        watching_prometheus(served, directory) as server,
    ):
        load = Load(served.port)
        try:
            yield server, load
        finally:
            load.stop()
