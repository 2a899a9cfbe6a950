"""The way to the API through a real HTTP proxy, Debian's tinyproxy; TLS inside."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from end_to_end import chat, free_port, running_proxy, running_upstream
from programs import tool
from tls_upstream import over_tls
from upstream_scripts import responds
from waiting import TIMEOUT

pytestmark = pytest.mark.anyio


@contextmanager
def tinyproxy(folder: Path, *lines: str) -> Iterator[int]:
    """Its port, once it listens; its log is ``folder/log``."""
    program, port, log = tool("tinyproxy", "tinyproxy"), free_port(), folder / "log"
    config = folder / "tinyproxy.conf"
    always = (f"Port {port}", "Listen 127.0.0.1", "Allow 127.0.0.1", f'LogFile "{log}"')
    config.write_text("\n".join((*always, "LogLevel Info", *lines, "")))
    with subprocess.Popen((program, "-d", "-c", str(config)), stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + TIMEOUT
        while not (log.exists() and "Accepting connections" in log.read_text()):
            assert process.poll() is None, log.read_text() if log.exists() else "it does not start"
            assert time.monotonic() < end
        try:
            yield port
        finally:
            process.terminate()


async def test_a_request_goes_through_with_tls_inside(
    tmp_path: Path, authority: trustme.CA, bundle: str
) -> None:
    secured = over_tls(responds, authority.issue_cert("localhost"))
    with tinyproxy(tmp_path, "BasicAuth me pass-word") as port:
        settings = {
            "SSL_CERT_FILE": bundle,
            "UPSTREAM_PROXY": f"http://me:pass%2Dword@127.0.0.1:{port}",
        }
        async with running_upstream(secured) as upstream:
            base = f"https://localhost:{upstream.port}"
            async with running_proxy(0, CEREBRAS_BASE_URL=base, **settings) as running:
                client = await running.client()
                for _ in range(3):
                    response = await client.request(chat())
                    assert (response.status, response.body) == (200, b"{}")
                line = await running.lines.exchange()
            assert upstream.connections == 1
        log = (tmp_path / "log").read_text()
    assert f"CONNECT localhost:{upstream.port} HTTP/1.1" in log
    assert (line["outcome"], line["stamp"]) == ("completed", "kernel")
    assert line["connect_seconds"] > 0
    assert line["tls_seconds"] > 0


@pytest.mark.parametrize(
    ("lines", "user"),
    [
        (("ConnectPort 443",), ""),  # 403: not that port
        (("BasicAuth me pass",), ""),  # 407
        (("BasicAuth me pass",), "me:wrong@"),
    ],
)
async def test_a_proxy_that_refuses(tmp_path: Path, lines: tuple[str, ...], user: str) -> None:
    with tinyproxy(tmp_path, *lines) as port:
        through = {"UPSTREAM_PROXY": f"http://{user}127.0.0.1:{port}"}
        async with (
            running_upstream(responds) as upstream,
            running_proxy(upstream.port, **through) as running,
        ):
            response = await (await running.client()).request(chat())
            line = await running.lines.exchange()
        assert upstream.connections == 0
    assert (response.status, response.json()["code"]) == (502, "connect_error")
    assert line["outcome"] == "upstream_connect_failed"


async def test_an_api_that_the_proxy_cannot_reach(tmp_path: Path) -> None:
    with tinyproxy(tmp_path) as port:
        through = {"UPSTREAM_PROXY": f"http://127.0.0.1:{port}"}
        async with running_proxy(free_port(), **through) as running:
            response = await (await running.client()).request(chat())
    assert (response.status, response.json()["code"]) == (502, "connect_error")


async def test_no_proxy_there() -> None:
    through = {"UPSTREAM_PROXY": f"http://127.0.0.1:{free_port()}"}
    async with running_proxy(1, **through) as running:
        response = await (await running.client()).request(chat())
    assert (response.status, response.json()["code"]) == (502, "connect_error")
