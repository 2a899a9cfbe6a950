"""What the proxy costs on this machine: CPU per request and per token, rates, added TTFT, memory.

The proxy has one core to itself; a raw mock upstream and the load generator share the other. Logs,
metrics, authentication, limits and deadlines are all on. Figures are medians of the rounds, with
the lowest and the highest behind them. Run it with nothing else on the machine: ``make bench``.
"""

import argparse
import asyncio
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import load
import raw_upstream

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
PROXY_CORE, OTHER_CORE = 0, (os.cpu_count() or 1) - 1
SCENARIOS = (
    # kind, clients, seconds, what the CPU is divided by
    ("plain", 1, 3.0, "request"),
    ("plain", 32, 3.0, "request"),
    ("plain", 256, 3.0, "request"),
    ("burst", 16, 3.0, "token"),
    ("paced", 16, 3.0, "token"),
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> float:
    """Seconds until somebody listens."""
    began_at = time.perf_counter()
    while time.perf_counter() - began_at < 10:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.002)
        else:
            return time.perf_counter() - began_at
    raise SystemExit("nobody listens")


def start(core: int, *command: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def start_proxy(port: int, upstream: int, backend: str) -> subprocess.Popen[bytes]:
    return start(
        PROXY_CORE,
        *(sys.executable, "-m", "ape_cerebras", "serve"),
        CEREBRAS_API_KEY="upstream-key",
        CEREBRAS_BASE_URL=f"http://127.0.0.1:{upstream}",
        APE_API_KEY="bench-key",
        HOST="127.0.0.1",
        PORT=str(port),
        BACKEND=backend,
        REQUEST_TIMEOUT="60",
        TTFT_TARGET_MS="200",
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def spread(values: list[float], digits: int = 0) -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def measure(pid: int, port: int, rounds: int) -> None:
    print(f"{'scenario':<20}{'CPU, µs':>28}{'per second':>24}{'p50 / p99 total, ms':>24}")
    for kind, clients, seconds, unit in SCENARIOS:
        asyncio.run(load.run(port, kind, clients, 0.5))  # warm
        costs, rates, totals = [], [], []
        for _ in range(rounds):
            before = cpu_seconds(pid)
            result = asyncio.run(load.run(port, kind, clients, seconds))
            units = result.answers * (raw_upstream.TOKENS if unit == "token" else 1)
            costs.append((cpu_seconds(pid) - before) / units * 1e6)
            rates.append(units / result.seconds)
            totals += result.total
        cuts = quantiles(totals, n=100)
        print(
            f"{kind + ', ' + str(clients):<20}{spread(costs) + ' a ' + unit:>28}"
            f"{spread(rates):>24}{f'{cuts[49] * 1e3:.2f} / {cuts[98] * 1e3:.2f}':>24}"
        )


def measure_added(direct: int, through: int, rounds: int) -> None:
    """One client, direct and through the proxy in turn, so that drift hits both alike."""
    for kind in ("plain", "paced"):
        added, p99s = [], []
        for _ in range(max(rounds, 7)):
            times = [
                asyncio.run(load.run(port, kind, 1, 0.3 if kind == "plain" else 1.0)).first
                for port in (direct, through)
            ]
            added.append((median(times[1]) - median(times[0])) * 1e3)
            p99s += times[1]
        print(f"added TTFT, {kind}, one client: {spread(added, 2)} ms (medians of rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="asyncio")
    options = parser.parse_args()
    os.sched_setaffinity(0, {OTHER_CORE})
    upstream, port = free_port(), free_port()
    processes = [start(OTHER_CORE, sys.executable, str(HERE / "raw_upstream.py"), str(upstream))]
    try:
        wait_for(upstream)
        proxy = start_proxy(port, upstream, options.backend)
        processes.append(proxy)
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},")
        print(f"{options.backend}, {options.rounds} rounds: median (lowest to highest)")
        print(f"listening after {wait_for(port):.2f} s, {resident_mib(proxy.pid):.0f} MiB resident")
        measure(proxy.pid, port, options.rounds)
        measure_added(upstream, port, options.rounds)
        print(f"resident afterwards: {resident_mib(proxy.pid):.0f} MiB")
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait(15)


if __name__ == "__main__":
    main()
