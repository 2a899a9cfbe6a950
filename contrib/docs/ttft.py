"""Where the time to first token goes: streams in five situations, and a picture of their log lines.

    python ttft.py ttft.png      # half a minute; needs matplotlib and trustme

Each situation has a proxy and a simulator of its own, with TLS and a link of 5 ms in each direction
between them (``contrib/bench/link.py``). Of the log lines of its streams the one with the median
TTFT is drawn: one real exchange, whose parts add up to its TTFT.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import trustme

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
LINK = HERE.parent / "bench" / "link.py"
DELAY_MS = 5
BODY = json.dumps(
    {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
)
PARTS = {  # of the log line; whose it is; its colour
    "wait_seconds": ("wait for admission", "#e8590c"),
    "connect_seconds": ("TCP", "#a9e34b"),
    "tls_seconds": ("TLS", "#74b816"),
    "proxy_own_seconds": ("proxy's work", "#c92a2a"),
    "queue_seconds": ("Cerebras: queue", "#1864ab"),
    "prompt_seconds": ("Cerebras: prompt", "#4dabf7"),
    "network_seconds": ("network", "#adb5bd"),
}


class Situation(NamedTuple):
    title: str
    settings: Mapping[str, str] = {}
    flags: Sequence[str] = ()
    clients: int = 1
    streams: int = 40


SITUATIONS = (
    Situation("kept connection"),
    Situation("new connection", {"WARM_CONNECTIONS": "0", "KEEP_ALIVE_CONNECTIONS": "0"}),
    Situation("Cerebras is busy", flags=("--ttft", "0.09", "--queue-time", "0.06")),
    Situation(
        "6 agents, MAX_CONCURRENT_REQUESTS=3",
        {"MAX_CONCURRENT_REQUESTS": "3", "MAX_QUEUE_SECONDS": "10"},
        clients=6,
        streams=120,
    ),
    Situation("32 streams at once", clients=32, streams=320),
)


@contextmanager
def started(*command: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def program(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "ape_cerebras", *arguments)


def lines_with(process: subprocess.Popen[str], key: str) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for text in process.stdout:
        if key in (line := json.loads(text)):
            yield line


def port_of(process: subprocess.Popen[str]) -> str:
    return str(next(lines_with(process, "address"))["address"]).rpartition(":")[2]


def send_streams(port: str, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    for _ in range(number):
        connection.request(
            "POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"}
        )
        connection.getresponse().read()
    connection.close()


def free_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def measured(situation: Situation, files: Path) -> dict[str, Any]:
    """The log line with the median TTFT."""
    certificate = (
        "--certificate",
        str(files / "cert.pem"),
        "--private-key",
        str(files / "key.pem"),
    )
    flags = ("--ttft", "0.03", *situation.flags, *certificate, "--port", "0")
    link = free_port()
    with (
        started(*program("simulate", *flags)) as simulator,
        started(sys.executable, str(LINK), link, port_of(simulator), "--delay-ms", str(DELAY_MS)),
        started(
            *program("serve", "--host", "127.0.0.1", "--port", "0"),
            CEREBRAS_API_KEY="csk-simulated",
            CEREBRAS_BASE_URL=f"https://localhost:{link}",
            SSL_CERT_FILE=str(files / "ca.pem"),
            **situation.settings,
        ) as proxy,
    ):
        port = port_of(proxy)
        each = situation.streams // situation.clients
        with ThreadPoolExecutor(situation.clients) as pool:
            for sent in [pool.submit(send_streams, port, each) for _ in range(situation.clients)]:
                sent.result()
        proxy.terminate()
        lines = [
            line for line in lines_with(proxy, "ttft_seconds") if line["outcome"] == "completed"
        ]
    if "MAX_CONCURRENT_REQUESTS" in situation.settings:
        lines = [line for line in lines if "wait_seconds" in line]
    lines = [line for line in lines if "network_seconds" in line][len(lines) // 10 :]
    lines.sort(key=lambda line: line["ttft_seconds"])
    chosen: dict[str, Any] = lines[len(lines) // 2]
    return chosen


def draw(found: Mapping[str, dict[str, Any]], image: str) -> None:
    figure, axes = pyplot.subplots(figsize=(10, 4.2))
    titles = list(found)[::-1]
    left = dict.fromkeys(titles, 0.0)
    for part, (label, colour) in PARTS.items():
        widths = [found[title].get(part, 0.0) * 1e3 for title in titles]
        axes.barh(
            titles, widths, left=[left[t] for t in titles], color=colour, label=label, height=0.6
        )
        left = {title: left[title] + width for title, width in zip(titles, widths, strict=True)}
    for title in titles:
        line = found[title]
        total = f"{line['ttft_seconds'] * 1e3:.1f} ms"
        axes.annotate(
            total,
            (left[title], title),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlabel("time to first token, ms", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.42, 1.0))
    figure.tight_layout()
    figure.savefig(image, dpi=100)


def main(image: str) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory)
        authority.cert_pem.write_to_path(files / "ca.pem")
        issued.private_key_pem.write_to_path(files / "key.pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(files / "cert.pem", append=True)
        found = {}
        for situation in SITUATIONS:
            line = found[situation.title] = measured(situation, files)
            print(json.dumps({part: line.get(part) for part in ("ttft_seconds", *PARTS)}))
    draw(found, image)


if __name__ == "__main__":
    main(*sys.argv[1:])
