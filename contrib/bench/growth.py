"""CPU of a request beside many open connections: idle ones, as many to upstream as from clients; or
streams in their middle.

    python growth.py    # our proxy: CPU of a plain request of 32 clients, beside so many

Each figure gets a new proxy, and each round measures every number, so that drift affects all of
them equally. An open connection takes two descriptors of the proxy, so the largest number is
limited to what the process may open.
"""

import argparse
import json
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import plot
from measures import Figures, Rig, beside_idle, beside_streams
from peers import HERE, Peer, Running, ours_with, start
from processes import settle_down_here
from report import Column, aligned, formatted
from runs import Plan, mock

CLIENTS = 32
NUMBERS = (0, 100, 320, 1000, 3200, 10_000)
SPARE = 500  # descriptors for everything else
MICROSECONDS = Column("", "", 0)
Measure = Callable[[Rig, Running, int], Figures]
BESIDE: dict[str, tuple[str, Measure]] = {
    "connections": ("idle", beside_idle),
    "streams": ("streams", beside_streams),
}
Rounds = dict[
    str, dict[int, list[float]]
]  # CPU in µs, by the kind of open connection and the number


def possible(numbers: Sequence[int]) -> list[int]:
    """The numbers, each lowered to the connections for which there are descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sorted({min(number, (most - SPARE) // 2) for number in numbers})


def ours_with_room(number: int) -> Peer:
    """For so many connections, which may all be opened before the first is used."""
    names = ("CONNECTION_POOL_SIZE", "KEEP_ALIVE_CONNECTIONS", "MAX_CONNECTIONS")
    room = dict.fromkeys(names, str(number + 2 * CLIENTS))
    return ours_with({**room, "CLIENT_HEAD_TIMEOUT": "300"})


def cost(rig: Rig, peer: Peer, what: str, number: int) -> float:
    """CPU in µs of a plain request beside so many open connections."""
    size, measure = BESIDE[what]
    target = start(peer, rig.setting)
    try:
        return measure(replace(rig, **{size: number}), target, CLIENTS)["request_cpu_us"]
    finally:
        target.process.stop()


def measured(options: argparse.Namespace) -> Rounds:
    numbers = possible(options.numbers)
    peer = ours_with_room(numbers[-1])
    rounds: Rounds = {what: {number: [] for number in numbers} for what in BESIDE}
    with mock("http", Plan((), (), options.backend, seconds=options.seconds)) as rig:
        for number_of_round in range(options.rounds):
            for what in BESIDE:
                for number in numbers if number_of_round % 2 == 0 else reversed(numbers):
                    rounds[what][number].append(cost(rig, peer, what, number))
    return rounds


def table(rounds: Rounds) -> list[str]:
    rows = [["open beside 32 clients", *(f"{what}: CPU µs/request" for what in rounds)]]
    rows += [
        [f"{number:,}", *(_cell(counts, number) for counts in rounds.values())]
        for number in next(iter(rounds.values()))
    ]
    return aligned(rows)


def _cell(counts: dict[int, list[float]], number: int) -> str:
    """The figure, and its ratio to the figure with nothing open in the same rounds."""
    pairs = zip(counts[number], counts[min(counts)], strict=True)
    times = median(here / alone for here, alone in pairs)
    return f"{formatted(counts[number], MICROSECONDS)}, {times:.2f} times"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, default=NUMBERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "growth.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    rounds = measured(options)
    print(f"median (lowest–highest) of {options.rounds} rounds, {options.backend}")
    print("\n".join(table(rounds)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")
    print(f"every round: {options.json}")
    plot(options.json, "plot_growth.py")


if __name__ == "__main__":
    main()
