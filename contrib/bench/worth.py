"""Benefit of two settings for TTFT, behind a link as long or as narrow as real ones.

    python worth.py warm    # WARM_CONNECTIONS: first requests after a quiet minute, 40 ms away
    python worth.py gzip    # UPSTREAM_GZIP_MIN_BYTES: long prompts over 20 Mbit/s

Our proxy runs with and without the setting, side by side, with TLS to the raw mock upstream and a
link (``link.py``) before that. In a round each gets a request, in an order that changes from round
to round. Times are the client's: request sent → first token. The mock's first token comes 5 ms
after the request.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from load import Load, Result, request_of, request_with_text
from measures import Rig
from peers import CLIENT_KEY, HERE, Running, Setting, ours_with, start
from processes import OTHER_CORE, free_port, listening, settle_down_here, started
from report import Column, aligned, formatted
from runs import Plan, mock

SIZES = {"10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
WORD = "brief"  # a short stream
MILLISECONDS = Column("", "", 1)


@dataclass
class Outcome:
    """``what`` was measured, the ``rows`` of its table, and every round by name."""

    what: str
    rows: list[list[str]]
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, milliseconds: float) -> None:
        self.rounds.setdefault(name, []).append(milliseconds)

    def formatted(self, name: str) -> str:
        return formatted(self.rounds[name], MILLISECONDS)

    def median(self, name: str) -> float:
        return median(self.rounds[name])


@contextmanager
def behind(rig: Rig, *link: str) -> Iterator[Setting]:
    """The mock upstream at the far end of a link, as proxies see it."""
    port = free_port()
    command = [sys.executable, str(HERE / "link.py"), str(port), str(rig.setting.upstream_port)]
    with started([OTHER_CORE], [*command, *link], {}, rig.setting.directory / "link") as process:
        listening(port, process, 10)
        yield replace(rig.setting, upstream_port=port)


@contextmanager
def ours(
    setting: Setting, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[list[Running]]:
    """Our proxy, once with each of these settings, under their names."""
    with ExitStack() as stack:
        targets = []
        for name, more in environments.items():
            targets.append(start(ours_with(more, name), setting))
            stack.callback(targets[-1].process.stop)
        yield targets


def first_token(target: Running, request: bytes) -> float:
    """Milliseconds to the first token of one response, which is read to its end."""
    result = Result()
    with Load(target.port, request, 1) as load:
        load.send()
        load.gather(result)
    return result.first[0] * 1e3


def alternating(targets: Sequence[Running], number: int) -> Sequence[Running]:
    return targets if number % 2 == 0 else targets[::-1]


def warm(options: argparse.Namespace) -> Outcome:
    # So that without warm connections none is left by the end of the quiet time.
    limit = {"UPSTREAM_KEEP_ALIVE_TIMEOUT": str(options.quiet - 1)}
    arms = {f"WARM_CONNECTIONS={n}": {**limit, "WARM_CONNECTIONS": str(n)} for n in (0, 1)}
    request = request_of(WORD, CLIENT_KEY)
    outcome = Outcome(
        f"After {options.quiet} s without a request, {options.round_trip_ms:g} ms of round trip to "
        "upstream: TTFT in ms of the first request, and of the next",
        [["", "its connection", "first TTFT", "next TTFT"]],
    )
    with (
        mock("https", Plan((), (), options.backend)) as rig,
        behind(rig, "--delay-ms", str(options.round_trip_ms / 2)) as setting,
        ours(setting, arms) as targets,
    ):
        for number in range(options.rounds):
            time.sleep(options.quiet)
            for target in alternating(targets, number):
                for which in ("first", "next"):
                    outcome.note(f"{target.peer.name} {which}", first_token(target, request))
        for target in targets:
            name, found = target.peer.name, connections_of_first_requests(target)
            times = [outcome.formatted(f"{name} {which}") for which in ("first", "next")]
            outcome.rows.append([name, found, *times])
    return outcome


def connections_of_first_requests(target: Running) -> str:
    """By its log: warm, reused or new. Every other request was a first one."""
    lines = map(json.loads, target.process.output.read_text("utf-8").splitlines())
    found = [line["connection"] for line in lines if "connection" in line][::2]
    return ", ".join(f"{count} {kind}" for kind, count in Counter(found).items())


def prompt(size: int) -> str:
    """So many characters of what an agent would send: this project's code and prose."""
    root = HERE.parent.parent
    folders = ("ape_cerebras", "tests", "contrib")
    paths = [path for folder in folders for path in sorted((root / folder).glob("*/*.py"))]
    text = "\n".join(path.read_text("utf-8") for path in paths)
    return (text * (size // len(text) + 1))[:size]


def gzip(options: argparse.Namespace) -> Outcome:
    arms = {"plain": {}, "gzip": {"UPSTREAM_GZIP_MIN_BYTES": "1000"}}
    outcome = Outcome(
        f"Over {options.rate_mbit:g} Mbit/s to upstream: size of the body, TTFT in ms",
        [["prompt", "KB plain", "KB gzip", "TTFT plain", "TTFT gzip", "difference"]],
    )
    with (
        mock("https", Plan((), (), options.backend)) as rig,
        behind(rig, "--rate-mbit", str(options.rate_mbit)) as setting,
        ours(setting, arms) as targets,
    ):
        for title, size in SIZES.items():
            request, sent = request_with_text(WORD, prompt(size), CLIENT_KEY), {}
            for number in range(options.rounds):
                for target in alternating(targets, number):
                    name = target.peer.name
                    outcome.note(f"{title} {name}", first_token(target, request))
                    sent[name] = f"{rig.query_mock('/count')['body'] / 1e3:.1f}"
            saved = outcome.median(f"{title} gzip") - outcome.median(f"{title} plain")
            times = [outcome.formatted(f"{title} {name}") for name in arms]
            outcome.rows.append([title, *(sent[name] for name in arms), *times, f"{saved:+.1f}"])
    return outcome


EXPERIMENTS = {"warm": warm, "gzip": gzip}


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--quiet", type=int, default=61, help="seconds before a round of warm")
    parser.add_argument("--round-trip-ms", type=float, default=40.0, help="of warm's link")
    parser.add_argument("--rate-mbit", type=float, default=20.0, help="of gzip's link, each way")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    outcome = EXPERIMENTS[options.experiment](options)
    print(f"{outcome.what}; median (lowest–highest) of {options.rounds} rounds, {options.backend}")
    print("\n".join(aligned(outcome.rows)))
    path = options.json or HERE / "results" / f"{options.experiment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(outcome.rounds, indent=1) + "\n", "utf-8")
    print(f"every round: {path}")


if __name__ == "__main__":
    main()
