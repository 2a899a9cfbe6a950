"""A model of what a machine carries, from measured costs, and its check with simulated agents.

    python scale.py                    # measures, checks with one and two workers, prints the model
    python scale.py --costs 373 373 45 0.95    # only the model, with these: see ``Costs``

The costs are CPU time of our proxy beside the mock: of a plain request, and of streams of 5 and of
100 tokens, whose difference is an event's. The check has another upstream, the simulator, and other
clients, a fleet of agents with the OpenAI SDK (``fleet.py``): the model has to predict the CPU time
that each of their completions takes. See contrib/docs/scale.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from fleet import Key, play
from measures import Rig, busy, first_response
from peers import OURS, PEERS, Running, Setting, start
from processes import (
    OTHER_CORE,
    PROXY_CORE,
    WORKER_CORES,
    free_port,
    listening,
    settle_down_here,
    started,
)
from quota import MODEL
from report import aligned
from runs import Plan, mock
from workers import two_workers

AGENTS, TTFT, TOKENS, RATE = 64, 0.05, 400, 2000.0  # of the check: 8 tokens an event, so 50 events
IN_USE = 0.6  # of each core, so that there is room for peaks
RESERVED = 2  # cores of a machine, for the kernel's network and everything else
MACHINES, CORES = 10, 16
BY_HAPROXY = (9.4, 6.0)  # ours by HAProxy's: a plain request, an event (benchmarks.md)
BY_REDIS = (45e-6, 150e-6)  # seconds of a script: one bucket, six (limits.md)


class Costs(NamedTuple):
    """Seconds of CPU: of a plain exchange, of a stream without its events, of an event. ``workers``
    is a worker's rate among several by that of one alone, by CPU."""

    plain: float
    stream: float
    event: float
    workers: float = 1.0

    def of(self, events: int) -> float:
        """An exchange; with no events a plain one."""
        return self.stream + events * self.event if events else self.plain


class Agent(NamedTuple):
    """An agent: one step after another, each of them a request; ``seconds`` of a step include the
    completion, and all that the agent does before it asks again."""

    name: str
    events: int
    seconds: float


FLEET = (
    Agent("plain, a step in 2 s", 0, 2.0),
    Agent("stream of 50 events, a step in 2 s", 50, 2.0),
    Agent("stream of 250 events, a step in 5 s", 250, 5.0),
)


# Measuring


def measured(rig: Rig) -> Costs:
    [ours] = (peer for peer in PEERS if peer.name == OURS)
    target = start(ours, rig.setting)
    try:
        first_response(target)
        plain = busy(rig, target, "plain", 32)["request_cpu_us"]
        short = busy(rig, target, "brief", 16)["request_cpu_us"]
        long = busy(rig, target, "paced", 16)["request_cpu_us"]
        scaling = two_workers(rig, target, "plain", 32)["speedup_by_cpu"] / 2
    finally:
        target.process.stop()
    event = (long - short) / 95
    return Costs(*(each / 1e6 for each in (plain, short - 5 * event, event)), scaling)


@contextmanager
def simulated(backend: str) -> Iterator[Setting]:
    """The simulator of the API, as the upstream of a setting."""
    port = free_port()
    flags = {"port": port, "ttft": TTFT, "tokens": TOKENS, "rate": RATE}
    command = [sys.executable, "-m", "ape_cerebras", "simulate"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with TemporaryDirectory() as name:
        directory = Path(name)
        with started([OTHER_CORE], command, {}, directory / "simulator") as process:
            listening(port, process, 20)
            yield Setting("http", port, "", backend, directory)


def checked(setting: Setting, workers: int, stream: bool, seconds: float) -> tuple[float, int]:
    """Seconds of CPU that a completion of the fleet took, and its events."""
    [ours] = (peer for peer in PEERS if peer.name == OURS)
    target = start(ours, setting, workers, [PROXY_CORE] if workers == 1 else WORKER_CORES)
    try:
        first_response(target)
        more = {"model": MODEL, "stream": stream}
        keys = (Key("key", AGENTS),)  # whose secret is CLIENT_KEY
        with ProcessPoolExecutor(1) as fleet:
            fleet.submit(settle_down_here).result()
            fleet.submit(play, target.port, keys, seconds / 4, **more).result()  # warm
            idle = idle_share(target)
            before = target.process.cpu()
            found = fleet.submit(play, target.port, keys, seconds, **more).result()
            cpu = target.process.cpu() - before
    finally:
        target.process.stop()
    responses = found.responses.total()
    return (cpu - idle * found.seconds) / responses, round(found.events / responses)


def idle_share(target: Running) -> float:
    """The share of a core that it takes without a request."""
    before, began_at = target.process.cpu(), time.monotonic()
    time.sleep(1.0)
    return (target.process.cpu() - before) / (time.monotonic() - began_at)


def check_rows(costs: Costs, backend: str, seconds: float) -> Iterator[list[str]]:
    yield [
        "agents' completions",
        "workers",
        "events",
        "µs by the model",
        "µs taken",
        "taken by model",
    ]
    with simulated(backend) as setting:
        for stream in (False, True):
            for workers in (1, 2):
                taken, events = checked(setting, workers, stream, seconds)
                model = costs.of(events) / (costs.workers if workers > 1 else 1.0)
                figures = f"{model * 1e6:.0f}", f"{taken * 1e6:.0f}", f"{taken / model:.2f}"
                name = "streams" if stream else "plain"
                yield [name, str(workers), str(events), *figures]


# The model


def steps_per_second(costs: Costs, agent: Agent, cores: int = CORES) -> float:
    """What one machine carries of an agent's exchanges."""
    return (cores - RESERVED) * IN_USE * costs.workers / costs.of(agent.events)


def haproxy_cores(costs: Costs, agent: Agent, steps: float) -> float:
    """Cores that HAProxy uses in front, all bytes of the streams included."""
    head, event = BY_HAPROXY
    return steps * (costs.plain / head + agent.events * costs.event / event)


def model_rows(costs: Costs) -> Iterator[list[str]]:
    yield [
        *("agents", "µs/exchange", "exchanges/s of a machine", "agents of a machine"),
        *("exchanges/s of ten", "agents of ten", "HAProxy's cores", "Redis's core, 1 bucket, 6"),
    ]
    for agent in FLEET:
        one = steps_per_second(costs, agent)
        ten = MACHINES * one
        redis = ", ".join(f"{ten * script:.1f}" for script in BY_REDIS)
        yield [
            *(agent.name, f"{costs.of(agent.events) * 1e6:.0f}", f"{one:,.0f}"),
            *(f"{one * agent.seconds:,.0f}", f"{ten:,.0f}", f"{ten * agent.seconds:,.0f}"),
            *(f"{haproxy_cores(costs, agent, ten):.1f}", redis),
        ]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    names = ("PLAIN", "STREAM", "EVENT", "WORKERS")
    parser.add_argument("--costs", nargs=4, type=float, metavar=names, help="µs, and a factor")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each fleet of the check")
    parser.add_argument("--backend", default="asyncio", help="of our proxy")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    if options.costs:
        plain, stream, event, workers = options.costs
        costs = Costs(plain / 1e6, stream / 1e6, event / 1e6, workers)
    else:
        with mock("http", Plan((), (), options.backend)) as rig:
            costs = measured(replace(rig, seconds=options.seconds / 5))
    head = ("plain µs", "stream µs", "event µs", "each of two workers")
    figures = *(f"{each * 1e6:.1f}" for each in costs[:3]), f"{costs.workers:.2f}"
    print("\n".join(aligned([head, figures])) + "\n", flush=True)
    if not options.costs:
        print("\n".join(aligned(list(check_rows(costs, options.backend, options.seconds)))) + "\n")
    for row in model_rows(costs):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
