"""The table of the troubleshooting page: each fault, injected, writes the words of its row."""

import errno
import re
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import trustme
from deployment_files import CONTRIB
from end_to_end import (
    TOKEN,
    Running,
    Script,
    chat,
    events,
    free_port,
    running_proxy,
    running_upstream,
)
from server_process import TIMEOUT, environment, refusing_port, start
from tls_upstream import certificate, over_tls
from upstream_scripts import one_token_and_no_more, responds, responds_with, silent, streams
from waiting import until

from ape_cerebras.upstream.connect import AttemptFailed

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

PAGE = (CONTRIB / "docs" / "troubleshoot.md").read_text("utf-8")
ALERTS = (CONTRIB / "prometheus" / "alerts.yml").read_text("utf-8")
TABLE = PAGE.partition("## From a line to its cause")[2].partition("\n## ")[0]
ROWS = {
    cells[1]: cells[2:5]
    for cells in ([cell.strip() for cell in row.split("|")] for row in TABLE.splitlines())
    if len(cells) == 7 and cells[1] not in ("fault", "---")
}
Seen = tuple[dict[str, Any], Callable[[str], Awaitable[float]]]
MODEL_KEYS = """
[[keys]]
name = "alice"
key = "ape-key-0123456789"
usd_per_day = 0.000000000001
"""


async def observed(running: Running, row: list[str], request: bytes) -> None:
    """Send a request, and hold its line and the metrics against the row."""
    await (await running.client()).request(request)
    await held(running, row)


async def held(running: Running, row: list[str], number: int = 1) -> None:
    line = await running.lines.exchange(number)
    expected = dict(pair.split("=") for pair in re.findall(r"`([a-z_]+=[^`]+)`", row[0]))
    assert expected == {name: str(line.get(name)) for name in expected}
    name, labels = re.findall(r"`([a-z_]+)\{(.*)\}`", row[1])[0]
    wanted = set(labels.split(","))
    samples = await running.samples()
    series = f"cerebras_proxy_{name}{{"
    found = [
        float(value)
        for text, value in samples
        if text.startswith(series) and wanted <= set(text[len(series) : -1].split(","))
    ]
    assert sum(found) == 1


def fails_to_connect(number: int) -> Any:
    async def connect(host: str, port: int) -> Any:
        raise AttemptFailed(number, ("192.0.2.1", 443))

    return connect


SCRIPTS: dict[str, Script] = {
    "upstream 401": responds_with(401),
    "upstream 402": responds_with(402),
    "upstream 403": responds_with(403),
    "429 of the account's quota": responds_with(429),
    "upstream 5xx": responds_with(503),
    "stall": one_token_and_no_more,
    "cut": streams(events(TOKEN), then="leave"),
}
CERTIFICATES = {
    "untrusted CA": "self-signed",
    "wrong name": "elsewhere.example",
    "expired certificate": "expired",
}
CLIENTS: dict[str, tuple[dict[str, str], bytes]] = {
    "a stranger's wrong key": ({"APE_API_KEY": "ape-key-0123456789"}, chat()),
    "a client's base URL without /v1": ({}, b"GET /chat/completions HTTP/1.1\r\nHost: a\r\n\r\n"),
}
OTHERS = {
    *("name not found", "connection refused", "no route", "TLS to a plain port"),
    *("Redis gone, `LIMITS_STORE_OUTAGE=closed`", "the disk of the logs full"),
    *("429 of this proxy's rate", "429 of a key's budget", "upstream connections full"),
    "connections of clients full",
}


def test_every_row_has_an_injector_and_names_alerts_that_exist() -> None:
    assert set(ROWS) == {*SCRIPTS, *CERTIFICATES, *CLIENTS, *OTHERS}
    for row in ROWS.values():
        alerts = re.findall("`(Cerebras[A-Za-z]+)`", row[2])
        assert alerts or row[2] == "none"
        assert all(f"alert: {alert}\n" in ALERTS for alert in alerts)


@pytest.mark.parametrize("fault", sorted(SCRIPTS))
async def test_what_upstream_responds(fault: str) -> None:
    async with (
        running_upstream(SCRIPTS[fault]) as upstream,
        running_proxy(upstream.port, UPSTREAM_IDLE_TIMEOUT="0.2") as running,
    ):
        await observed(running, ROWS[fault], chat())


@pytest.mark.parametrize("fault", sorted(CERTIFICATES))
async def test_certificates(fault: str, authority: trustme.CA, bundle: str) -> None:
    leaf = certificate(CERTIFICATES[fault], authority)
    async with running_upstream(over_tls(responds, leaf)) as upstream:
        settings = {
            "CEREBRAS_BASE_URL": f"https://localhost:{upstream.port}",
            "SSL_CERT_FILE": bundle,
        }
        async with running_proxy(0, **settings) as running:
            await observed(running, ROWS[fault], chat())


async def test_tls_to_a_plain_port() -> None:
    async with running_upstream(responds_with(400)) as upstream:

        async def plain(peer: Any) -> None:
            await peer.stream.receive()
            await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        upstream.script = plain
        base = {"CEREBRAS_BASE_URL": f"https://localhost:{upstream.port}"}
        async with running_proxy(0, **base) as running:
            await observed(running, ROWS["TLS to a plain port"], chat())


async def test_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_proxy(free_port()) as running:
        await observed(running, ROWS["connection refused"], chat())
    async with running_proxy(9, fails_to_connect(errno.ENETUNREACH)) as running:
        await observed(running, ROWS["no route"], chat())

    real = socket.getaddrinfo

    def no_name(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == b"api.nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "foreign")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    async with running_proxy(0, CEREBRAS_BASE_URL="http://api.nowhere.example") as running:
        await observed(running, ROWS["name not found"], chat())


@pytest.mark.parametrize("fault", sorted(CLIENTS))
async def test_clients(fault: str) -> None:
    settings, request = CLIENTS[fault]
    async with running_proxy(free_port(), **settings) as running:
        await observed(running, ROWS[fault], request)


async def test_the_proxys_own_limits(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(MODEL_KEYS)
    async with running_upstream(responds) as upstream:
        async with running_proxy(upstream.port, RATE_LIMIT_PER_MINUTE="1") as running:
            client = await running.client()
            await client.request(chat())
            await client.request(chat())
            await held(running, ROWS["429 of this proxy's rate"], 2)
        keys = {"APE_API_KEYS_FILE": str(tmp_path / "keys.toml")}
        async with running_proxy(upstream.port, **keys) as running:
            request = chat(
                b'{"model":"gpt-oss-120b","messages":[]}',
                b"Authorization: Bearer ape-key-0123456789",
            )
            await observed(running, ROWS["429 of a key's budget"], request)


async def test_no_upstream_connection_comes_free() -> None:
    settings = {"CONNECTION_POOL_SIZE": "1", "UPSTREAM_CONNECT_TIMEOUT": "1"}
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        first = await running.client()
        await first.send(chat())
        await until(lambda: bool(upstream.requests))
        number = len(running.lines.exchanges())
        await (await running.client()).request(chat())
        while "overloaded" not in [line["outcome"] for line in running.lines.exchanges()]:
            number += 1
            await running.lines.exchange(number)
        at = [line["outcome"] for line in running.lines.exchanges()].index("overloaded") + 1
        await held(running, ROWS["upstream connections full"], at)


async def test_no_connection_of_a_client_comes_free() -> None:
    row = ROWS["connections of clients full"]
    settings = {"METRICS_PORT": "0", "MAX_CONNECTIONS": "1"}
    async with running_proxy(1, **settings) as running:
        first = await running.client()
        await first.get("/health")
        second = await running.client()
        message = re.findall("`([A-Z][^`]+)`", row[0])[0]
        assert (await running.lines.event(message))["level"] == "warning"
        name = re.findall("`([a-z_]+)`", row[1])[0]
        assert await running.metric(f"cerebras_proxy_{name}") == 1
        second.stream.close()


async def test_redis_that_is_gone() -> None:
    row = ROWS["Redis gone, `LIMITS_STORE_OUTAGE=closed`"]
    with refusing_port() as port:
        settings = {
            "LIMITS_STORE": f"redis://127.0.0.1:{port}",
            "LIMITS_STORE_OUTAGE": "closed",
            "RATE_LIMIT_PER_MINUTE": "100",
        }
        async with (
            running_upstream(responds) as upstream,
            running_proxy(upstream.port, **settings) as running,
        ):
            await observed(running, row, chat())
            message = re.findall("`([A-Z][^`]+)`", row[0])[0]
            assert (await running.lines.event(message))["level"] == "error"
            assert upstream.requests == []


def test_a_full_disk_of_logs(backend: str) -> None:
    """/dev/full fails every write as a full disk does."""
    row, port = ROWS["the disk of the logs full"], free_port()
    metric = f"cerebras_proxy_{re.findall('`([a-z_]+)`', row[1])[0]}"
    command = ("serve", "--demo", "--port", str(port))
    settings = environment(BACKEND=backend, HOST="127.0.0.1")
    with (
        open("/dev/full", "wb") as full,
        start(*command, env=settings, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        try:
            dropped, end = 0.0, time.monotonic() + TIMEOUT
            while not dropped:
                assert time.monotonic() < end
                with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                    text = response.read().decode()
                    dropped = float(re.findall(rf"^{metric} (\S+)$", text, re.MULTILINE)[0])
        finally:
            process.terminate()
            process.communicate()
