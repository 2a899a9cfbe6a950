"""Good requests, faults, disconnects and an upstream that fails, all at random and all at once, for
as long as one likes; and then a check of what is left in the proxy.

    python tests/faults/soak.py [--seconds 120] [--seed 1] [--backend asyncio]

The seconds are for all backends together. The exit status is 1 if anything was wrong.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import orjson
import trustme
from anyio.abc import Process
from cases_a_to_d import CASES as A_TO_D
from cases_e_f import CASES as E_F
from cases_g import CASES as G
from cases_h import CASES as H
from cases_i_j import CASES as I_J
from crowd import TIMEOUT, Crowd, outcomes_in
from end_to_end import KEY, Client
from failing_upstream import as_requested
from fault_bench import AUTHORIZED, CLIENT_KEY, Case, responds
from server_process import environment
from tqdm import tqdm
from upstream_paths import opened_ways

from ape_cerebras.config.values import BACKENDS
from ape_cerebras.net.event_loop import run_on
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp

__all__ = ("FAULTS", "Soak", "soaked")

USUAL = ("asyncio", "trio")
CLIENTS = 50
POOL_SIZE = 30
SETTINGS = {
    "CEREBRAS_API_KEY": KEY,
    "CEREBRAS_BASE_URL": "https://localhost",
    "APE_API_KEY": CLIENT_KEY,
    "HOST": "127.0.0.1",
    "PORT": "0",
    "LOG_LEVEL": "debug",
    "CONNECTION_POOL_SIZE": str(POOL_SIZE),
    "WARM_CONNECTIONS": "0",  # so that descriptors can be counted
    "UPSTREAM_CONNECT_TIMEOUT": "1",
}
LARGEST = 100_000  # bytes of a fault
NEVER_MORE = ("tasks", "descriptors")
MORE_MEMORY = 16 * 2**20  # bytes, after the first fifth
# Less than one for each request would be a leak; some come with each new kind of ending.
OBJECTS = 2000


def is_simple(case: Case) -> bool:
    """Whether a row of the table is bytes and a status, at the settings of all others. Scrapes are
    not counted here."""
    plain = not (case.play or case.process or case.needs or case.settings)
    plain = plain and b" /metrics " not in case.sends
    return plain and case.lines == 1 and case.upstream is responds and len(case.sends) < LARGEST


FAULTS = [case for case in (*A_TO_D, *E_F, *G, *H, *I_J) if case.sends and is_simple(case)]


class Soak:
    """One backend's. ``problems`` is what was wrong."""

    def __init__(self, seed: int, clients: int) -> None:
        self._seed = seed
        self._clients = clients
        self._port = 0
        self._state: dict[str, int] = {}
        self._news = anyio.Event()
        extra = (AUTHORIZED,)
        self.crowd = Crowd(self.enter, f"soak-{seed}", extra)
        self.faults: Counter[int] = Counter()
        self.problems: list[str] = []
        self.states: list[dict[str, int]] = []

    async def enter(self) -> Client:
        stream = await connect_tcp("127.0.0.1", self._port)
        assert isinstance(stream, SocketStream)
        return Client(stream)

    # The proxy's output

    async def read(self, process: Process) -> None:
        assert process.stdout is not None
        rest = b""
        async for data in process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line, orjson.loads(line))

    def _take(self, raw: bytes, line: dict[str, Any]) -> None:
        if KEY.encode() in raw or CLIENT_KEY.encode() in raw:
            self.problems.append("a key in the log")
        if "exceptions" in line or "failed inside" in line["message"]:
            self.problems.append(raw.decode())
        if line["message"] == "State":
            self._state = {key: value for key, value in line.items() if isinstance(value, int)}
        elif "address" in line:
            self._port = int(line["address"].rpartition(":")[2])
        elif "outcome" in line and line.get("route") != "/metrics":
            self.crowd.accounts.logged(line)
        self._news.set()

    async def until(self, is_there: str) -> None:
        with anyio.fail_after(TIMEOUT):
            while not getattr(self, is_there):
                self._news = anyio.Event()
                await self._news.wait()

    # What goes on

    async def run(self, process: Process, seconds: float) -> None:
        assert process.stdin is not None
        await self.until("_port")
        for share in (0.2, 0.8):
            await self._crowd_in(seconds * share)
            await process.stdin.send(b"report\n")
            await self.until("_state")
            self.states.append(self._state)
            self._state = {}
        client = await self.enter()
        counted = outcomes_in((await client.get("/metrics")).body.decode())
        client.stream.close()
        self.problems += self.crowd.accounts.settle(counted)
        await process.stdin.send(b"end\n")

    async def _crowd_in(self, seconds: float) -> None:
        until = anyio.current_time() + seconds
        async with anyio.create_task_group() as tasks:
            for number in range(self._clients):
                name = f"{self._seed} {number} {len(self.states)}"
                tasks.start_soon(self._come_and_go, random.Random(name), until)

    async def _come_and_go(self, dice: random.Random, until: float) -> None:
        while anyio.current_time() < until:
            if dice.random() < 0.7:
                await self.crowd.visit(dice, dice.randint(1, 5))
            else:
                await self._play(dice.choice(FAULTS))

    async def _play(self, case: Case) -> None:
        client = await self.enter()
        with closing(client.stream):
            with suppress(anyio.BrokenResourceError):  # refused before all of it was sent
                await client.send(case.sends)
            status = (await client.response(case.method, timeout=TIMEOUT)).status
        self.faults[status] += 1
        expected = (case.status,) if isinstance(case.status, int) else case.status
        if status not in (*expected, *((502, 503, 504) if case.up else ())):
            self.problems.append(f"{case.id} got status {status}")

    # The end

    def judge(self, exit_status: int | None, complaints: bytes) -> None:
        before, after = self.states
        requests = sum(self.crowd.accounts.outcomes.values())
        expected = {"slots": POOL_SIZE, "in_flight": 0, "clients": 0, "connections": 0}
        expected |= {key: before[key] for key in NEVER_MORE}
        left = {key: after[key] for key in expected if after[key] != expected[key]}
        if left:
            self.problems.append(f"left behind: {left}, where it was {expected}")
        if after["objects"] - before["objects"] > OBJECTS + requests / 10:
            self.problems.append("objects leak")
        if after["resident"] - before["resident"] > MORE_MEMORY:
            self.problems.append("memory leaks")
        if self.faults != self.crowd.accounts.others:
            self.problems.append(f"faults: {self.faults}, logged: {self.crowd.accounts.others}")
        if self.crowd.accounts.outcomes["internal_error"]:
            self.problems.append("internal errors")
        if exit_status != 0 or complaints:
            self.problems.append(f"exit status {exit_status}: {complaints.decode()}")

    def report(self) -> str:
        accounts = self.crowd.accounts
        reported = sum(accounts.outcomes.values())
        rows = [f"{count:>10,} {outcome}" for outcome, count in accounts.outcomes.most_common()]
        grown = [
            f"{key} {self.states[0][key]:,} → {self.states[1][key]:,}" for key in self.states[0]
        ]
        requested = f"{accounts.requests:,} requests, {sum(self.faults.values()):,} faults"
        return "\n".join([f"{requested}, {reported:,} lines", *rows, *grown, *self.problems])


async def soaked(
    backend: str,
    seconds: float,
    seed: int,
    trouble: float = 0.2,
    clients: int = CLIENTS,
    patience: str = "1",
) -> Soak:
    """``patience``: how many seconds the proxy waits for what an upstream that stalls sends."""
    soak, authority = Soak(seed, clients), trustme.CA()
    with authority.cert_pem.tempfile() as bundle, tempfile.TemporaryFile() as complaints:
        async with opened_ways(as_requested, authority) as opened:
            options = {"addresses": opened.addresses, "seed": seed, "trouble": trouble}
            options["backend"] = backend
            path = [str(Path(__file__).parents[1] / "support"), *sys.path]
            settings = {"SSL_CERT_FILE": bundle, "PYTHONPATH": ":".join(path)}
            settings |= dict.fromkeys(
                ("UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT"), patience
            )
            async with (
                await anyio.open_process(
                    (
                        sys.executable,
                        str(Path(__file__).with_name("soak_proxy.py")),
                        orjson.dumps(options),
                    ),
                    env=environment(**SETTINGS, **settings),
                    stderr=complaints,
                ) as process,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(soak.read, process)
                await soak.run(process, seconds)
                with anyio.move_on_after(TIMEOUT):
                    await process.wait()
        complaints.seek(0)
        soak.judge(process.returncode, complaints.read())
    return soak


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak the proxy.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    options = parser.parse_args()
    backends = options.backend or USUAL
    failed = False
    for backend in tqdm(backends, disable=None):
        soak = run_on(backend, soaked, backend, options.seconds / len(backends), options.seed)
        tqdm.write(f"{backend}: {soak.report()}\n")
        failed |= bool(soak.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
