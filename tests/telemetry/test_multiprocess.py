"""The metrics of several workers in one scrape: sums, and combined gauges."""

import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from exchanges import chat_exchange, plain_exchange, stream_exchange, with_timings
from prometheus_client import values
from prometheus_client.metrics_core import Metric
from scraped_metrics import OPENMETRICS, config_with, families, live, new_metrics, value

from ape_cerebras.errors import ClientGone
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.multiprocess import Scoreboard, WorkerSlot, forget_worker, share_values
from ape_cerebras.upstream.client import read_quota

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
EXCHANGES = (
    *(stream_exchange(), stream_exchange(model="new", cost=None), plain_exchange()),
    *(chat_exchange(error=ClientGone()), stream_exchange(connection="new", usage=None)),
    *(chat_exchange(route="/health"), stream_exchange(first_token_sent_at=100.9)),
)
WORKERS = {"workers_up", "workers_configured", "worker_restarts"}


class WorkerService:
    """Workers in one process, used one after another: prometheus_client keeps the values of a whole
    process in the file of one worker."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scoreboard = Scoreboard(2)

    def worker(self, number: int, in_flight: int = 3, reachable: bool = True) -> Metrics:
        share_values(str(self.directory), number)
        slot = WorkerSlot(number, self.scoreboard, str(self.directory))
        state = live(in_flight)._replace(upstream_reachable=reachable)
        return Metrics(config_with(TTFT_TARGET_MS="500"), "trio", slot, lambda: state)

    def forget(self, number: int) -> None:
        forget_worker(str(self.directory), number)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerService]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    yield WorkerService(tmp_path)
    values.close_all_multiprocess_files()  # type: ignore[no-untyped-call]


def sums(metrics: Metrics, accept: bytes = b"") -> Samples:
    """The samples of counters and histograms, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for metric in families(metrics, accept).values()
        for sample in metric.samples
        if metric.type in ("counter", "histogram")
        and not metric.name.startswith(("cerebras_proxy_worker", "process_"))
    }


@pytest.mark.parametrize("there", [True, False])
def test_one_process_has_nothing_of_another_programs_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """PROMETHEUS_MULTIPROC_DIR is read when the library is imported: the class of values is what
    it decides."""
    directory = tmp_path if there else tmp_path / "missing"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    others = values.MultiProcessValue()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(values, "ValueClass", others)
    alone = Metrics(config_with(TTFT_TARGET_MS="500"), "trio", read_state=live)
    for exchange in EXCHANGES:
        alone.observe(*with_timings(exchange))
    alone.refresh()
    text, _ = alone.render(OPENMETRICS)
    assert b"# {trace_id=" in text
    assert value(alone, "requests_total", model="gpt-oss-120b")
    assert values.ValueClass is others
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("accept", [b"", OPENMETRICS])
def test_two_workers_count_the_same_as_one_process(workers: WorkerService, accept: bytes) -> None:
    read_state = partial(live, lines_dropped=2 * 7, spans_lost=2 * 9)
    alone = Metrics(config_with(TTFT_TARGET_MS="500"), "trio", read_state=read_state)
    for exchange in EXCHANGES:
        alone.observe(*with_timings(exchange))
    first = workers.worker(1)
    for exchange in EXCHANGES[:3]:
        first.observe(*with_timings(exchange))
    first.refresh()
    second = workers.worker(2)
    for exchange in EXCHANGES[3:]:
        second.observe(*with_timings(exchange))
    together = sums(second, accept)
    assert together == pytest.approx(sums(alone, accept))
    assert together == sums(first, accept)


def test_every_metric_has_the_same_type_and_help_as_in_one_process(workers: WorkerService) -> None:
    quota = ((b"x-ratelimit-limit-tokens-day", b"5"), (b"x-ratelimit-remaining-tokens-day", b"4"))
    alone, worker = new_metrics(), workers.worker(1)
    for metrics in (alone, worker):
        metrics.observe(*with_timings(stream_exchange(quota=read_quota(quota))))
    of_alone, found = families(alone), families(worker)
    assert {name.removeprefix("cerebras_proxy_") for name in found.keys() - of_alone} == WORKERS
    for name, metric in of_alone.items():
        if metric.samples:
            assert (found[name].type, found[name].documentation) == (
                metric.type,
                metric.documentation,
            )
            assert {s.name for s in found[name].samples} == {s.name for s in metric.samples}


def test_metrics_are_sorted_by_name(workers: WorkerService) -> None:
    names = [each for each in families(workers.worker(1)) if not each.startswith("process_")]
    assert names[: -len(WORKERS)] == sorted(names[: -len(WORKERS)])


def test_what_the_processes_take_is_summed_and_stays_counted(workers: WorkerService) -> None:
    """Both "workers" are this process."""
    first = workers.worker(1)
    second = workers.worker(2)
    before = resource.getrusage(resource.RUSAGE_SELF)
    first.refresh_process()
    second.refresh_process()
    alone, both = families(new_metrics()), families(first)

    def of(name: str, found: dict[str, Metric]) -> float:
        return found[f"process_{name}"].samples[0].value

    assert of("max_fds", both) == 2 * of("max_fds", alone)
    assert of("start_time_seconds", both) == of("start_time_seconds", alone)
    assert of("open_fds", both) > of("open_fds", alone)
    assert of("resident_memory_bytes", both) > 1.5 * of("resident_memory_bytes", alone)
    cpu = of("cpu_seconds", both)
    assert cpu >= 2 * (before.ru_utime + before.ru_stime) - 0.1
    workers.forget(2)
    left = families(first)
    assert of("cpu_seconds", left) == cpu
    assert of("max_fds", left) == of("max_fds", alone)


def test_gauges_are_summed_or_the_maximum_or_the_latest(workers: WorkerService) -> None:
    limit, left = b"x-ratelimit-limit-tokens-day", b"x-ratelimit-remaining-tokens-day"
    first = workers.worker(1, in_flight=5, reachable=False)
    first.refresh()
    first.set_degraded(("ttft",))
    first.observe(*with_timings(chat_exchange(quota=read_quota(((limit, b"100"), (left, b"90"))))))
    second = workers.worker(2, in_flight=8)
    second.set_degraded(())
    second.observe(*with_timings(chat_exchange(quota=read_quota(((left, b"95"),)))))
    assert value(second, "requests_in_flight") == 13
    assert value(second, "upstream_connections", state="idle") == 12
    assert value(second, "upstream_reachable") == 0
    assert value(second, "degraded", reason="ttft") == 1
    assert value(second, "degraded", reason="failures") == 0
    day = {"kind": "tokens", "window": "day"}
    assert value(second, "upstream_ratelimit_limit", **day) == 100
    assert value(second, "upstream_ratelimit_remaining", **day) == 95
    [build] = families(second)["cerebras_proxy_build_info"].samples
    assert (build.value, set(build.labels)) == (1, {"version", "python", "backend"})


def test_the_counters_of_a_dead_worker_stay(workers: WorkerService) -> None:
    left = b"x-ratelimit-remaining-tokens-day"
    first = workers.worker(1, in_flight=5)
    first.refresh()
    first.set_degraded(("ttft",))
    first.observe(*with_timings(stream_exchange(quota=read_quota(((left, b"90"),)))))
    second = workers.worker(2, in_flight=8)
    second.observe(*with_timings(stream_exchange()))
    workers.forget(1)
    model = {"model": "gpt-oss-120b"}
    assert value(second, "requests_in_flight") == 8
    assert value(second, "degraded", reason="ttft") == 0
    assert value(second, "upstream_ratelimit_remaining", kind="tokens", window="day") == 90
    assert value(second, "requests_total", **model) == 2
    assert value(second, "tpot_seconds_count", source="measured", **model) == 2
    successor = workers.worker(1, in_flight=1)
    successor.observe(*with_timings(stream_exchange()))
    assert value(successor, "requests_total", **model) == 3
    assert value(successor, "log_lines_dropped_total") == 7 * 3
    assert value(successor, "requests_in_flight") == 9
    assert len(list(workers.directory.glob("counter_*.db"))) == 2


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nothing")])
def test_a_file_being_created_or_deleted_does_not_hide_others(
    workers: WorkerService, make: Callable[[Path], None]
) -> None:
    worker = workers.worker(1)
    worker.observe(*with_timings(stream_exchange()))
    make(workers.directory / "gauge_livesum_2.db")
    assert value(worker, "requests_total", model="gpt-oss-120b") == 1


def test_workers_and_restarts_are_exported(workers: WorkerService) -> None:
    worker = workers.worker(1)
    workers.scoreboard.mark_up(1)
    for _ in range(3):
        workers.scoreboard.count_restart()
    assert value(worker, "workers_up") == 1
    assert value(worker, "workers_configured") == 2
    assert value(worker, "worker_restarts_total") == 3


def test_there_are_no_exemplars(workers: WorkerService) -> None:
    worker = workers.worker(1)
    worker.observe(*with_timings(stream_exchange()))
    assert not [
        sample
        for metric in families(worker, OPENMETRICS).values()
        for sample in metric.samples
        if sample.exemplar
    ]
