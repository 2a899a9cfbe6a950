"""Where the first token of a stream spends its time in our proxy, stage by stage.

    python stages.py    # medians of 500 exchanges of one client

The proxy runs with a note of the time at the borders of the stages (``configs/staged.py``), each of
which adds a microsecond or less. An arrival is the kernel's; our own work begins when the event
loop wakes.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from load import Failed, Load, request_of
from measures import Rig, first_response
from peers import CLIENT_KEY, HERE, ours_with, start
from processes import settle_down_here
from report import aligned
from runs import Plan, mock

UP = (
    ("request arrived → loop woke", "woke"),
    ("read", "read"),
    ("exchange begins", "begins"),
    ("head cut, checked, read", "head"),
    ("ids", "ids"),
    ("route, key, body", "handled"),
    ("body read, disconnect watched", "headers"),
    ("headers up", "leases"),
    ("lease, response object", "leased"),
    ("request head built", "sends"),
    ("send", "sent"),
)
DOWN = (
    ("token arrived → loop woke", "woke"),
    ("read", "read"),
    ("dechunked, framed", "sends"),
    ("send", "sent"),
)
Stages = dict[str, float]  # seconds, by the label that ends them


class Note(NamedTuple):
    label: str
    at: float
    stream: int = 0
    arrived_at: float | None = None


def stages_of(exchange: Sequence[Sequence[Any]]) -> tuple[Stages, Stages] | None:
    """The stages up and down of an exchange as noted; None for one that has no token."""
    (_, started_at), (_, token_at), *rest = exchange
    if token_at is None:
        return None
    notes = [Note(*each) for each in rest]
    begins = _find(notes, 0, "begins")
    request = _find_back(notes, begins, "read")
    client = notes[request].stream
    sends = _find(notes, begins, "sends", not_of=client)
    between = [notes[_find(notes, begins, label)] for _, label in UP[2:-2]]
    up = [*_woken(notes, request), *between, *_written(notes, sends)]
    token = _find(notes, sends, "read", not_of=client, arrived_at=token_at)
    out = _find(notes, token, "sends", of=client)
    if any(note.label == "read" and note.stream != client for note in notes[token + 1 : out]):
        raise Failed("that the first token was sent was not noted, only what came later")
    down = [*_woken(notes, token), *_written(notes, out)]
    return _differences(started_at, up), _differences(token_at, down)


def _find(
    notes: Sequence[Note],
    start: int,
    label: str,
    *,
    of: int | None = None,
    not_of: int | None = None,
    arrived_at: float = 0.0,
) -> int:
    """The first note of that label, stream and arrival, or a later one."""
    for at, note in enumerate(notes[start:], start):
        fits = note.stream != not_of and of in (None, note.stream)
        if note.label == label and fits and (note.arrived_at or 0.0) >= arrived_at:
            return at
    raise Failed(f"no stage {label!r} was noted")


def _find_back(notes: Sequence[Note], start: int, label: str) -> int:
    for at in range(start, -1, -1):
        if notes[at].label == label:
            return at
    raise Failed(f"no stage {label!r} was noted")


def _woken(notes: Sequence[Note], read: int) -> list[Note]:
    return [notes[_find_back(notes, read, "woke")], notes[read]]


def _written(notes: Sequence[Note], sends: int) -> list[Note]:
    return [notes[sends], notes[_find(notes, sends, "sent", of=notes[sends].stream)]]


def _differences(began_at: float, notes: Sequence[Note]) -> Stages:
    found = {}
    for note in notes:
        found[note.label] = note.at - began_at
        began_at = note.at
    return found


def noted(rig: Rig, exchanges: int, rest: float) -> list[Any]:
    """What was noted of each exchange of one client, which rests in between."""
    file = rig.setting.directory / "notes"
    command = ("@PYTHON@", "@CONFIGS@/staged.py", str(file), "serve")
    target = start(replace(ours_with({}), command=command), rig.setting)
    try:
        first_response(target)
        with Load(target.port, request_of("brief", CLIENT_KEY), 1) as load:
            for _ in range(exchanges):
                load.exchange(1)
                time.sleep(rest)
    finally:
        target.process.stop()
    if not file.exists():
        raise Failed(
            "nothing was noted: " + target.process.output.read_text(errors="replace")[-300:]
        )
    return list(json.loads(file.read_text("utf-8")))


def table(found: Sequence[tuple[Stages, Stages]]) -> Iterator[list[str]]:
    yield ["stage", "µs, median"]
    for way, (title, stages) in enumerate((("up", UP), ("down", DOWN))):
        for name, label in stages:
            yield [name, f"{median(each[way][label] for each in found) * 1e6:.0f}"]
        yield [f"our own work {title}", f"{own_work(found, way):.0f}"]


def own_work(found: Sequence[tuple[Stages, Stages]], way: int) -> float:
    """µs from the loop's waking to the end of the send; the median."""
    return median(sum(each[way].values()) - each[way]["woke"] for each in found) * 1e6


def measured(backend: str, exchanges: int, rest: float) -> list[tuple[Stages, Stages]]:
    with mock("http", Plan((), (), backend)) as rig:
        stages = map(stages_of, noted(rig, exchanges, rest))
        return [each for each in stages if each is not None]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--exchanges", type=int, default=500)
    parser.add_argument("--rest", type=float, default=0.0, help="seconds between two exchanges")
    parser.add_argument("--backend", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "stages.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    found = measured(options.backend, options.exchanges, options.rest)
    print(f"{len(found)} exchanges of one client, {options.backend}")
    print("\n".join(aligned(list(table(found)))))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
