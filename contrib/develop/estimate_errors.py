"""Measure the error of estimated usage against the simulator.

    python contrib/develop/estimate_errors.py [--requests 400] [--seed 1]

A proxy with the simulator behind it (``serve --demo``) gets pairs of requests: a stream that comes
to its end, and one that the simulator cuts behind an event drawn at random. What the log line says
of the cut one is compared with the tokens that had been sent by then. An error is the estimate by
the truth, less one; the last row is that of the sum, which is what a budget sees.

The simulator counts prompts as the estimate does, by four characters of the messages, so the
error of prompts is only that of what stands around the messages.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, NamedTuple

from ape_cerebras.simulator.completion import Completion, Timing
from ape_cerebras.simulator.request import parse_completion_request

MODELS = {"gpt-oss-120b": 16, "gemma-4-31b": 0}  # and their tokens of reasoning
NO_TIME = Timing(0.0, 0.0, 0.0, 0.0, 0.0)


class Pair(NamedTuple):
    """What was estimated and what was true."""

    estimated: int
    true: int


class Kind(NamedTuple):
    """A kind of traffic: the tokens that an event has at most, drawn for each stream, and whether a
    stream ends before each cut one."""

    name: str
    tokens_per_event: tuple[int, int]
    learns: bool


KINDS = (
    Kind("events of 8 tokens", (8, 8), True),
    Kind("events of 4 to 12 tokens, by stream", (4, 12), True),
    Kind("no stream has ended yet, 8 tokens", (8, 8), False),
)


def serve() -> subprocess.Popen[str]:
    """A proxy and its simulator. Both write to the same pipe."""
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": "0", "METRICS_ENABLED": "off"}
    command = (sys.executable, "-m", "ape_cerebras", "serve", "--demo")
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def line_with(lines: IO[str], **wanted: Any) -> dict[str, Any]:
    """The next log line that has these values."""
    for text in lines:
        line: dict[str, Any] = json.loads(text)
        if all(line.get(name) == value for name, value in wanted.items()):
            return line
    raise SystemExit("the proxy has ended")


def play(port: int, body: bytes, simulate: str) -> None:
    """Send a request, and read what comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json", "X-Simulate": f"ttft=0, rate=0, {simulate}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    with suppress(http.client.IncompleteRead, ConnectionResetError):  # as it was cut
        connection.getresponse().read()
    connection.close()


def measure(kind: Kind, requests: int, dice: random.Random) -> tuple[list[Pair], list[Pair]]:
    """The prompts and the completions of so many streams that were cut."""
    prompts, completions = [], []
    process = serve()
    assert process.stdout is not None
    address: str = line_with(process.stdout, message="Listening")["address"]
    port = int(address.rpartition(":")[2])
    for _ in range(requests):
        model = dice.choice(list(MODELS))
        words = int(10 ** dice.uniform(0.5, 4))
        content = " ".join(dice.choices(("a", "word", "sentences", "of", "model,"), k=words))
        messages = [{"role": "user", "content": content}]
        request = {"model": model, "messages": messages, "stream": True}
        tokens, size = dice.randint(20, 600), dice.randint(*kind.tokens_per_event)
        simulate = f"tokens={tokens}, tokens_per_chunk={size}"
        body = json.dumps(request).encode()
        if kind.learns:
            play(port, body, simulate)
        completion = Completion(
            parse_completion_request(request),
            tokens=tokens,
            reasoning_tokens=MODELS[model],
            tokens_per_event=size,
        )
        events = completion.events(NO_TIME)[:-2]  # less the finish event and the end marker
        at = dice.randint(2, len(events))
        play(port, body, f"{simulate}, fault=cut, at={at}")
        line = line_with(process.stdout, outcome="upstream_truncated")
        prompts.append(Pair(line["prompt_tokens"], completion.usage()["prompt_tokens"]))
        completions.append(Pair(line["completion_tokens"], events[at - 1].made))
    process.terminate()
    process.wait()
    return prompts, completions


def described(pairs: list[Pair]) -> str:
    errors = sorted(pair.estimated / pair.true - 1 for pair in pairs)
    cuts = statistics.quantiles(errors, n=20)
    total = sum(pair.estimated for pair in pairs) / sum(pair.true for pair in pairs) - 1
    return "".join(f"{error:>+8.1%}" for error in (cuts[0], cuts[9], cuts[-1], total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=400, help="cut streams of each kind")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{'error of the estimate':<46}{'p5':>8}{'p50':>8}{'p95':>8}{'sum':>8}")
    for kind in KINDS:
        dice = random.Random(options.seed)
        prompts, completions = measure(kind, options.requests, dice)
        print(f"{'completion: ' + kind.name:<46}{described(completions)}", flush=True)
    print(f"{'prompt':<46}{described(prompts)}")


if __name__ == "__main__":
    main()
