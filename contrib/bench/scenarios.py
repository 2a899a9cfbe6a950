"""The scenarios: a row each. Add a row to measure something else."""

from collections.abc import Callable
from dataclasses import dataclass

from measures import (
    Figures,
    Rig,
    beside_idle,
    busy,
    idle_connections,
    import_time,
    just_started,
    open_streams,
    resident_after,
)
from peers import Running
from workers import spread, two_workers

Measure = Callable[[Rig, Running], Figures]


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    table: str  # which columns of the report it has
    measure: Measure
    scheme: str = "http"  # of the upstream
    rounds: int = 0  # at least so many
    once: int = 0  # if not zero, so many rounds and no more
    direct: bool = (
        False  # measures the mock as well, in the same rounds: the difference is reported
    )
    fresh: bool = False  # each round has a process of its own, just started


def _busy(word: str, clients: int, share: float = 1.0, prompt: int = 0) -> Measure:
    return lambda rig, target: busy(rig, target, word, clients, share, prompt)


def _two_workers(word: str, clients: int) -> Measure:
    return lambda rig, target: two_workers(rig, target, word, clients)


_PLAIN_32 = _busy("plain", 32)
_BURST_16 = _busy("burst", 16)

SCENARIOS = (
    Scenario("start", "from start to first response; memory", "start", just_started, fresh=True),
    Scenario("import", "of the module, in a new Python", "import", import_time),
    Scenario(
        "idle connections",
        "memory for each of 1,000 clients that stay connected after a response",
        "connections",
        idle_connections,
        fresh=True,
    ),
    Scenario(
        "open streams",
        "memory for each of 200 streams in their middle",
        "streams",
        open_streams,
        fresh=True,
    ),
    Scenario(
        "plain, 1",
        "plain responses, one client: added to the total time",
        "added plain",
        _busy("plain", 1, share=0.5),
        rounds=7,
        direct=True,
    ),
    Scenario(
        "stream, 1",
        "streams of five tokens, one client: added to TTFT and total time",
        "added stream",
        _busy("brief", 1, share=0.5),
        rounds=7,
        direct=True,
    ),
    Scenario("plain, 32", "plain responses, 32 connections", "plain", _PLAIN_32, direct=True),
    Scenario("plain, 256", "plain responses, 256 connections", "plain", _busy("plain", 256)),
    Scenario("burst, 16", "100 tokens at once, 16 streams", "stream", _BURST_16, direct=True),
    Scenario("paced, 1", "200 tokens a second, one stream", "stream", _busy("paced", 1)),
    Scenario("paced, 16", "200 tokens a second, 16 streams", "stream", _busy("paced", 16)),
    Scenario("paced, 64", "200 tokens a second, 64 streams", "stream", _busy("paced", 64)),
    Scenario(
        "wafer, 16",
        "200 events a second, four at a time, five tokens each: as Cerebras does it",
        "stream",
        _busy("wafer", 16),
    ),
    Scenario(
        "100 KB, 4", "prompts of 100 KB, 4 clients", "plain", _busy("plain", 4, prompt=100_000)
    ),
    Scenario("1 MB, 4", "prompts of 1 MB, 4 clients", "plain", _busy("plain", 4, prompt=1_000_000)),
    Scenario(
        "plain, 32, 1000 idle",
        "beside 1,000 idle connections on both sides",
        "beside idle",
        lambda rig, target: beside_idle(rig, target, 32),
        fresh=True,
    ),
    Scenario(
        "plain, 32, two workers",
        "two workers with two cores, and one: how many times its rate",
        "workers",
        _two_workers("plain", 32),
        rounds=7,
    ),
    Scenario(
        "burst, 16, two workers",
        "the same with 100 tokens at once, 16 streams",
        "workers",
        _two_workers("burst", 16),
        rounds=7,
    ),
    Scenario(
        "4 clients, two workers",
        "of 80 times, how often four keep-alive clients were two and two on two workers",
        "spread",
        spread,
        once=1,
    ),
    Scenario("memory after", "resident after all that", "after", resident_after, once=1),
    Scenario("plain, 32, TLS", "with TLS to upstream", "plain", _PLAIN_32, scheme="https"),
    Scenario("burst, 16, TLS", "with TLS to upstream", "stream", _BURST_16, scheme="https"),
)
