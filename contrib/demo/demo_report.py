"""Two minutes of a fleet of agents against the simulator, and a report: ``make demo-report``.

A proxy and the simulator run as processes. Agents work as theirs do: one thinks between a response
and the next request, another has a plan of starts, says it in ``X-Request-Timestamp``, and falls
behind where responses are slow. In the course of it upstream is slow, gone, and busy (429), as the
pictures of the report have to show.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpcore

KEYS = {"research": "demo-key-of-research", "support": "demo-key-of-support"}
MODELS = ("gpt-oss-120b", "gpt-oss-120b", "zai-glm-4.7")
COMMAND = (sys.executable, "-m", "ape_cerebras")
AFTER_FAILURE = 0.5  # seconds


class Phase(NamedTuple):
    """A part of the run; ``share`` of its length."""

    name: str
    share: float
    text: str


PHASES = (
    Phase("calm", 0.25, "all is well"),
    Phase("slow", 0.15, "Cerebras's queue grows by 0.6 s"),
    Phase("calm", 0.15, "all is well"),
    Phase("outage", 0.10, "the API is gone"),
    Phase("calm", 0.10, "all is well"),
    Phase("storm", 0.10, "three of four requests get 429"),
    Phase("calm", 0.15, "all is well"),
)


class Agent(NamedTuple):
    """``every``: seconds between planned starts, or 0 for one that thinks for ``think`` seconds
    between its requests."""

    name: str
    client: str
    think: float
    every: float
    prompt_tokens: int
    completion_tokens: int


FLEET = (
    *(Agent(f"planner-{n}", "research", 1.5, 0.0, 4000, 300) for n in range(1, 4)),
    *(Agent(f"coder-{n}", "research", 0.4, 0.0, 2000, 600) for n in range(1, 7)),
    *(Agent(f"critic-{n}", "research", 0.6, 0.0, 900, 200) for n in range(1, 5)),
    *(Agent(f"shopper-{n}", "support", 0.0, 0.5, 300, 100) for n in range(1, 8)),
)


class Now:
    """The phase that the run is in, and whether it is over."""

    phase, over = PHASES[0], False


def simulated(agent: Agent, drawn: random.Random) -> str:
    """How the simulator responds: a prompt takes its time, and a queue some."""
    prompt = 0.025 + agent.prompt_tokens * drawn.uniform(0.8, 1.2) * 9e-6
    queue = drawn.lognormvariate(-6.0, 0.8)
    if Now.phase.name == "slow":
        queue += drawn.uniform(0.35, 0.85)
    if Now.phase.name == "storm" and drawn.random() < 0.75:
        return "fault=queue"
    network = drawn.uniform(0.002, 0.006)
    tokens = max(8, round(drawn.gauss(1, 0.3) * agent.completion_tokens))
    cached = round(agent.prompt_tokens * drawn.choice((0.0, 0.5, 0.9)))
    return (
        f"ttft={queue + prompt + network:.4f}, queue_time={queue:.4f}, prompt_time={prompt:.4f}, "
        f"tokens={tokens}, rate={drawn.uniform(1500, 2500):.0f}, cached_tokens={cached}"
    )


async def work(agent: Agent, url: str, pool: httpcore.AsyncConnectionPool) -> None:
    """One request after another, to the end."""
    drawn, turn = random.Random(agent.name), 0
    planned = time.time() + drawn.uniform(0, 1)
    while not Now.over:
        await anyio.sleep(max(0.0, planned - time.time()))
        turn += 1
        succeeded = await request(agent, url, pool, planned, turn, drawn)
        if agent.every:
            planned += agent.every
        else:
            pause = drawn.expovariate(1 / agent.think)
            planned = time.time() + (pause if succeeded else max(pause, AFTER_FAILURE))


async def request(
    agent: Agent,
    url: str,
    pool: httpcore.AsyncConnectionPool,
    planned: float,
    turn: int,
    drawn: random.Random,
) -> bool:
    """Whether it was completed."""
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {KEYS[agent.client]}",
        "X-Agent-Id": agent.name,
        "X-Session-Id": f"{agent.name}-task-{1 + turn // 20}",
        "X-Simulate": simulated(agent, drawn),
    }
    if agent.every:
        headers["X-Request-Timestamp"] = f"{planned:.6f}"
    prompt = "wafer " * round(agent.prompt_tokens * drawn.uniform(0.6, 1.4))
    body: dict[str, Any] = {
        "model": drawn.choice(MODELS),
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_completion_tokens": 2 * agent.completion_tokens,
    }
    with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        content = json.dumps(body).encode()
        response = await pool.request("POST", url, headers=headers, content=content)
        return response.status == 200
    return False


# The processes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def wait_for(port: int) -> None:
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)


def start_simulator(port: int) -> subprocess.Popen[bytes]:
    arguments = (*COMMAND, "simulate", "--port", str(port))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    wait_for(port)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait()


@contextmanager
def proxy(upstream: int, log: Path) -> Iterator[int]:
    """Its port. It stops by itself in the end, so that the log says how many requests it had."""
    settings = {
        "CEREBRAS_API_KEY": "csk-demo-of-a-report",
        "CEREBRAS_BASE_URL": f"http://127.0.0.1:{upstream}",
        "APE_API_KEY": ",".join(f"{name}:{key}" for name, key in KEYS.items()),
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "RUN_ID": "demo",
    }
    with log.open("wb") as lines:
        environment = {**os.environ, **settings}
        process = subprocess.Popen((*COMMAND, "serve"), stdout=lines, env=environment)
        try:
            wait_for(int(settings["PORT"]))
            yield int(settings["PORT"])
        finally:
            end(process)


class Upstream:
    """The simulator, on one port whenever it is there."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process = start_simulator(self.port)

    def be_there(self, wanted: bool) -> None:
        if not wanted:
            end(self._process)
        elif self._process.poll() is not None:
            self._process = start_simulator(self.port)


async def play(seconds: float, port: int, upstream: Upstream) -> None:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    async with httpcore.AsyncConnectionPool(100) as pool, anyio.create_task_group() as tasks:
        for agent in FLEET:
            tasks.start_soon(work, agent, url, pool)
        for phase in PHASES:
            Now.phase = phase
            print(f"{phase.share * seconds:4.0f} s {phase.name:7} {phase.text}", flush=True)
            await anyio.to_thread.run_sync(upstream.be_there, phase.name != "outage")
            await anyio.sleep(phase.share * seconds)
        Now.over = True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="length (default: 120)")
    parser.add_argument(
        "--folder", default="build/demo", help="for all files (default: build/demo)"
    )
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log, page = folder / "proxy.log", folder / "report.html"
    upstream = Upstream()
    try:
        with proxy(upstream.port, log) as port:
            anyio.run(play, options.seconds, port, upstream)
    finally:
        upstream.be_there(False)
    objectives = ("--slo", "ttft:p95<400ms", "--slo", "errors<1%")
    arguments = (*COMMAND, "report", str(log), "--html", str(page), "--png", str(folder / "plots"))
    done = subprocess.run((*arguments, "--md", *objectives), check=False)
    print(f"\nThe log is {log}, the page is {page.absolute().as_uri()}")
    sys.exit(0 if done.returncode in (0, 1) else done.returncode)


if __name__ == "__main__":
    main()
