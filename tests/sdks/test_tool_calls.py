"""Tool calls in pieces, reassembled as the accumulators of OpenAI's SDKs do; pieces that these give
up on are reassembled all the same."""

import subprocess
from copy import deepcopy
from importlib import import_module
from typing import Any, NamedTuple

import orjson
import pytest
from sdks import JAVASCRIPT, node
from server_process import environment

from ape_cerebras.chat.assembly import Assembly

A, B = {"id": "a", "type": "function"}, {"id": "b", "type": "function"}


class Pieces(NamedTuple):
    """``calls``: name and arguments of each, as they are reassembled here. ``python``, ``node``:
    whether that SDK does the same."""

    pieces: list[dict[str, Any]]
    calls: list[tuple[str, str]]
    python: bool
    node: bool


def piece(name: str | None = None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: text for key, text in function.items() if text is not None}}


ONE = [("bash", '{"a":1}')]
TWO = [("bash", '{"a":1}'), ("ls", "{}")]
CASES = {
    "in order": Pieces(
        [
            piece("bash", "", index=0, **A),
            piece(None, '{"a"', index=0),
            piece(None, ":1}", index=0),
        ],
        ONE,
        python=True,
        node=True,
    ),
    "two at once": Pieces(
        [
            *(piece("bash", "", index=0, **A), piece("ls", "", index=1, **B)),
            *(piece(None, "{}", index=1), piece(None, '{"a":1}', index=0)),
        ],
        TWO,
        python=True,
        node=True,
    ),
    "the name in pieces": Pieces(
        [piece("ba", "", index=0, **A), piece("sh", '{"a":1}', index=0)],
        ONE,
        python=True,
        node=False,  # the last piece
    ),
    "the name and the id again": Pieces(
        [piece("bash", '{"a"', index=0, **A), piece("bash", ":1}", index=0, **A)],
        ONE,
        python=False,  # bashbash
        node=True,
    ),
    "no index": Pieces(
        [piece("bash", "", **A), piece(None, '{"a"'), piece(None, ":1}")],
        ONE,
        python=False,
        node=False,
    ),
    "index null": Pieces(
        [piece("bash", '{"a"', index=None, **A), piece(None, ":1}", index=None)],
        ONE,
        python=False,
        node=False,
    ),
    "index as text": Pieces(
        [piece("bash", '{"a"', index="0", **A), piece(None, ":1}", index="0")],
        ONE,
        python=False,
        node=True,
    ),
    "an index at first only": Pieces(
        [piece("bash", '{"a"', index=0, **A), piece(None, ":1}")], ONE, python=False, node=False
    ),
    "no index, the id in each": Pieces(
        [piece("bash", '{"a"', **A), piece(None, ":1}", **A)], ONE, python=False, node=False
    ),
    "no index, by id": Pieces(
        [
            *(piece("bash", '{"a"', **A), piece("ls", "{", **B)),
            *(piece(None, ":1}", **A), piece(None, "}", **B)),
        ],
        TWO,
        python=False,
        node=False,
    ),
    "no index, one after another": Pieces(
        [piece("bash", '{"a"', **A), piece(None, ":1}"), piece("ls", "", **B), piece(None, "{}")],
        TWO,
        python=False,
        node=False,
    ),
    "no index and no id, whole": Pieces(
        [piece("bash", '{"a":1}'), piece("ls", "{}")], TWO, python=False, node=False
    ),
    "no index and no id, in pieces": Pieces(
        [piece("ba", ""), piece("sh", '{"a"'), piece("bash", ":1}")], ONE, python=False, node=False
    ),
}


def chunks_of(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A piece to a chunk, as the API sends them, and the last one's finish. They are copies: the
    accumulator of Python adds to the pieces that it is given."""
    common = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    deltas += [{"tool_calls": [each]} for each in deepcopy(pieces)]
    chunks = [{**common, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    end = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    return [*chunks, {**common, "choices": [end]}]


def named(calls: list[dict[str, Any]] | None) -> list[tuple[str, str]]:
    found = [call["function"] for call in calls or ()]
    return [(each.get("name", ""), each.get("arguments", "")) for each in found]


@pytest.mark.parametrize("kind", CASES)
def test_pieces_become_calls(kind: str) -> None:
    assembly = Assembly()
    for chunk in chunks_of(CASES[kind].pieces):
        assembly.feed(b"data: %s\n\n" % orjson.dumps(chunk))
    assembly.feed(b"data: [DONE]\n\n")
    message = orjson.loads(assembly.reply().body)["choices"][0]["message"]
    assert named(message["tool_calls"]) == CASES[kind].calls
    assert not [call for call in message["tool_calls"] if "index" in call]


@pytest.mark.parametrize("kind", CASES)
def test_python_does_the_same_or_gives_up(kind: str) -> None:
    accumulate_delta = import_module("openai.lib.streaming._deltas").accumulate_delta
    message: Any = {}
    try:
        for chunk in chunks_of(CASES[kind].pieces):
            message = accumulate_delta(message, chunk["choices"][0]["delta"])
        made = named(message["tool_calls"])
    except (RuntimeError, TypeError):
        made = []
    assert (made == CASES[kind].calls) is CASES[kind].python


def test_node_does_the_same_or_gives_up() -> None:
    streams = [chunks_of(case.pieces) for case in CASES.values()]
    done = subprocess.run(
        (node(), str(JAVASCRIPT / "accumulate.mjs")),
        input=orjson.dumps(streams),
        env=environment(),
        capture_output=True,
        timeout=30.0,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    made = [named(calls) for calls in orjson.loads(done.stdout)]
    same = {kind: calls == CASES[kind].calls for kind, calls in zip(CASES, made, strict=True)}
    assert same == {kind: case.node for kind, case in CASES.items()}
