"""What the operator learns before the first request: by ``check --upstream``, and by lines."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import orjson
import pytest
import trustme
from run_here import run_here
from server_process import CLIENT_KEY, environment, refusing_port, serving, start

UPSTREAM_KEY = "csk-upstream-key-0123456789"
OK = {"CEREBRAS_API_KEY": UPSTREAM_KEY, "DEFAULT_MODEL": "gpt-oss-120b"}


def check(*flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run_here("check", *flags, **settings)


@contextmanager
def simulating(*flags: str) -> Iterator[str]:
    """A simulator in a process of its own; the address that it serves."""
    command = ("simulate", "--port", "0", *flags)
    with start(*command, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield orjson.loads(process.stdout.readline())["address"]
        finally:
            process.terminate()


def test_the_doctor_finds_nothing_wrong(tmp_path: Path, backend: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca")
    leaf = authority.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    files = ("--certificate", str(tmp_path / "certificate"), "--private-key", str(tmp_path / "key"))
    with simulating(*files) as address:
        base = address.replace("127.0.0.1", "localhost")
        settings = {"CEREBRAS_BASE_URL": base, "SSL_CERT_FILE": str(tmp_path / "ca"), **OK}
        ended = check("--upstream", BACKEND=backend, **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert [line.split(" ok  ")[0].rstrip() for line in lines] == [
        *("proxies", "name", "addresses", "tls", "key", "models", "default model", "quota"),
        "clock",
    ]
    assert UPSTREAM_KEY not in ended.stdout


def test_the_doctor_finds_a_fault_and_exits_with_1(backend: str) -> None:
    with refusing_port() as port:
        base = {"CEREBRAS_BASE_URL": f"http://127.0.0.1:{port}"}
        ended = check("--upstream", BACKEND=backend, **base, **OK)
    assert ended.returncode == 1
    last = ended.stdout.splitlines()[-1]
    assert last.startswith(f"addresses      NOT port {port}: ECONNREFUSED at 127.0.0.1: ")


def test_the_doctor_needs_settings_that_are_right() -> None:
    ended = check("--upstream")
    missing = "CEREBRAS_API_KEY is required, except with --demo\n"
    assert (ended.returncode, ended.stderr) == (2, missing)


def test_a_default_model_that_upstream_does_not_list(backend: str) -> None:
    with simulating() as address:
        settings = {**OK, "CEREBRAS_BASE_URL": address, "DEFAULT_MODEL": "gpt-oss-12b"}
        with serving("serve", BACKEND=backend, **settings) as served:
            line = served.line("closest_model")
    assert line["message"] == "Upstream does not list the default model"
    assert (line["level"], line["model"]) == ("warning", "gpt-oss-12b")
    assert line["closest_model"] == "gpt-oss-120b"


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_key_that_upstream_refuses(backend: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            with serving("serve", BACKEND=backend, CEREBRAS_BASE_URL=base, **OK) as served:
                line = served.line("upstream_status")
        finally:
            server.shutdown()
            thread.join()
    assert line["message"] == "Upstream refuses the account's key"
    assert (line["level"], line["upstream_status"]) == ("error", 401)


@pytest.mark.parametrize(
    ("proxies", "level", "problem"),
    [
        (
            {"HTTPS_PROXY": "http://me:pass-word@127.0.0.1:9"},
            "warning",
            "through http://127.0.0.1:9, which HTTPS_PROXY names",
        ),
        (
            {"https_proxy": "http://127.0.0.1:9", "NO_PROXY": "localhost"},
            "info",
            "none; without effect: https_proxy",
        ),
    ],
)
def test_proxies_of_the_environment(proxies: dict[str, str], level: str, problem: str) -> None:
    settings = {"CEREBRAS_BASE_URL": "https://localhost:9", "APE_API_KEY": CLIENT_KEY, **OK}
    ended = check(**proxies, **settings)
    assert ended.stderr.splitlines() == [f"{level}: Proxy on the way: {problem}"]
    with serving("serve", **proxies, **settings) as served:
        [line] = [line for line in served.lines if line["message"] == "Proxy on the way"]
    assert (line["level"], line["problem"]) == (level, problem)


def test_a_proxy_that_the_settings_name_is_no_doubt() -> None:
    ended = check(UPSTREAM_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://a:1", **OK)
    assert ended.stderr == ""
