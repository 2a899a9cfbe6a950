"""Benchmark of quota pacing: a fleet of agents whose account has a quota of tokens.

    python quota.py    # 100 agents with five keys, 30,000 tokens a minute, twice four minutes

Each arm has a proxy of ours, a simulator that keeps its account to the quota, and a fleet of agents
(``fleet.py``) in a process of its own; all arms run side by side, so that other load on the machine
affects all of them equally. It is not known whether the real account gets unused reservations back
(settled) or not (kept): both are measured.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fleet import Found, Key, play
from peers import HERE, OURS, PEERS, Running, Setting, start
from processes import OTHER_CORE, free_port, listening, settle_down_here, started
from report import aligned

KEYS = (Key("anna", 40), Key("ben", 30), Key("cleo", 15), Key("dina", 10), Key("emil", 5))
SETTLING = ("settled", "kept")
MODEL = "gpt-oss-120b"
PACED = {"QUOTA_PACING": "true", "MAX_CONCURRENT_REQUESTS": "100", "MAX_QUEUE_SECONDS": "300"}
LOWERED = {"MAX_COMPLETION_TOKENS_DEFAULT": "400", "MAX_COMPLETION_TOKENS_CAP": "400"}
ARMS = {"without": {}, "lowered": LOWERED, "paced": PACED, "both": {**PACED, **LOWERED}}
"""The settings by which the arms differ."""


class Figure(NamedTuple):
    """A row of the table."""

    title: str
    name: str
    digits: int = 0


FIGURES = (
    Figure("responses a minute", "responses_per_minute", 1),
    Figure("429 seen by agents", "refused_429"),
    Figure("other refusals seen", "refused_other"),
    Figure("calls given up by the SDK", "given_up"),
    Figure("wait p50, s", "wait_p50_seconds", 1),
    Figure("wait p99, s", "wait_p99_seconds", 1),
    Figure("Jain's index over the keys", "fairness", 3),
    Figure("fewest responses of an agent", "fewest_responses"),
    Figure("agents without a response", "agents_without"),
    Figure("quota used by responses, %", "quota_percent", 1),
)


@contextmanager
def simulated(options: argparse.Namespace, settling: str, directory: Path) -> Iterator[int]:
    """A simulator that keeps its account to the quota; its port."""
    port = free_port()
    flags = {
        "tokens-per-minute": options.tokens_per_minute,
        "reservations": settling,
        "ttft": 0.2,
        "tokens": options.tokens,
        "port": port,
    }
    command = [sys.executable, "-m", "ape_cerebras", "simulate"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    with started([OTHER_CORE], command, {}, directory / f"cerebras-{port}") as process:
        listening(port, process, 10)
        yield port


@contextmanager
def arm(
    name: str, options: argparse.Namespace, settling: str, directory: Path
) -> Iterator[Running]:
    """A proxy with the settings of an arm, and its Cerebras."""
    [peer] = (peer for peer in PEERS if peer.name == OURS)
    keys = ",".join(f"{key.name}:{key.secret}" for key in KEYS)
    # A request may wait longer for the quota than the other benches let a request take.
    common = {"APE_API_KEY": keys, "REQUEST_TIMEOUT": "", "UPSTREAM_FIRST_BYTE_TIMEOUT": "60"}
    environment = {**peer.environment, **common, **ARMS[name]}
    with simulated(options, settling, directory) as port:
        setting = Setting("http", port, "", options.backend, directory)
        target = start(replace(peer, environment=environment), setting)
        try:
            yield target
        finally:
            target.process.stop()


def compared(options: argparse.Namespace, settling: str) -> dict[str, Found]:
    """The result of each arm; all of them run at the same time."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        targets = {
            title: stack.enter_context(arm(title, options, settling, Path(name)))
            for title in options.arms
        }
        fleets = stack.enter_context(ProcessPoolExecutor(len(targets)))
        keys = keys_of(options)
        under_way = {
            title: fleets.submit(play, target.port, keys, options.seconds, model=MODEL)
            for title, target in targets.items()
        }
        return {title: future.result() for title, future in under_way.items()}


def keys_of(options: argparse.Namespace) -> list[Key]:
    return [Key(key.name, max(1, key.agents // options.fewer)) for key in KEYS]


def figures(found: Found, options: argparse.Namespace) -> dict[str, float]:
    had = options.tokens_per_minute * (1 + found.seconds / 60)  # the bucket started full
    return {**found.figures(), "quota_percent": 100 * found.tokens / had}


def table(title: str, all_figures: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = [[title, *all_figures]]
    for heading, name, digits in FIGURES:
        rows.append([heading, *(f"{each[name]:.{digits}f}" for each in all_figures.values())])
    return rows


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--tokens-per-minute", type=int, default=30_000)
    parser.add_argument("--tokens", type=int, default=150, help="of a completion")
    parser.add_argument("--reservations", nargs="+", choices=SETTLING, default=SETTLING)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--fewer", type=int, default=1, help="times fewer agents")
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "quota.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    agents = sum(key.agents for key in keys_of(options))
    print(
        f"{agents} agents with {len(KEYS)} keys, {options.tokens_per_minute} tokens a minute, "
        f"{options.seconds:g} s, {options.backend}"
    )
    found = {}
    for settling in options.reservations:
        arms = compared(options, settling)
        found[settling] = {title: figures(each, options) for title, each in arms.items()}
        print("\n".join(aligned(table(f"reservations {settling}", found[settling]))), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"all figures: {options.json}")


if __name__ == "__main__":
    main()
