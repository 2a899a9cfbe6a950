"""The command line, as a user runs it: real processes, real signals; commands that only print run
in the process of the tests."""

import http.client
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import orjson
import pytest
import trustme
from end_to_end import KEY, free_port
from pages import ROOT
from run_here import run_here
from server_process import CLIENT_KEY, RUN_TIMEOUT, TIMEOUT, environment, run, serving, start

from ape_cerebras.commands import _serve_proxy
from ape_cerebras.config.config import Config
from ape_cerebras.config.keys import UpstreamKey
from ape_cerebras.config.settings import SETTINGS
from ape_cerebras.config.values import BACKENDS

CHAT = b'{"model":"llama3.1-8b","messages":[{"role":"user","content":"hi"}],"stream":true}'
JSON = {"Content-Type": "application/json"}


def test_the_version() -> None:
    assert run("--version").stdout.startswith("ape-cerebras ")
    for command in ("serve", "check"):
        assert run_here(command, "--version").stdout.startswith("ape-cerebras ")


@pytest.mark.parametrize("command", ["--help", "settings", "settings --json", "check", "top"])
def test_a_command_ends_in_order_where_nobody_reads(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer) as output:
        given = environment(CEREBRAS_API_KEY=KEY)
        options: Any = {"env": given, "stdout": output, "stderr": subprocess.PIPE, "text": True}
        with start(*command.split(), by="exec", **options) as process:
            _, errors = process.communicate(timeout=RUN_TIMEOUT)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("command", ["settings", "settings --markdown", "serve --help", "check"])
def test_every_encoding_will_do(command: str) -> None:
    words = command.split()
    shown, in_ascii = (
        run(*words, by="exec", PYTHONIOENCODING=encoding, CEREBRAS_API_KEY=KEY, COLUMNS="500")
        for encoding in ("utf-8", "ascii")
    )
    assert (in_ascii.returncode, in_ascii.stderr) == (0, "")
    assert in_ascii.stdout == shown.stdout.encode("ascii", "replace").decode()


def test_a_wrong_flag_names_the_right_ones() -> None:
    wrong = run_here("serve", "--prot", "1")
    assert wrong.returncode == 2
    assert "--port" in wrong.stderr


def test_check_prints_the_settings_and_hides_the_secrets() -> None:
    good = run_here("check", CEREBRAS_API_KEY=KEY, APE_API_KEY="alice:secret-of-alice", PORT="1234")
    assert good.returncode == 0
    assert "PORT=1234" in good.stdout
    assert "CEREBRAS_API_KEY=(set)" in good.stdout
    assert KEY not in good.stdout + good.stderr
    assert "secret-of-alice" not in good.stdout + good.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_wrong_settings_are_reported_at_once_without_secrets(command: str) -> None:
    secret = "csk-with a blank"
    running = run if command == "serve" else run_here  # the log of a service is the process's
    wrong = running(command, CEREBRAS_API_KEY=secret, PORT="70000", BACKEND="twisted")
    reported = wrong.stdout + wrong.stderr
    assert wrong.returncode == 2
    assert all(name in reported for name in ("CEREBRAS_API_KEY", "PORT", "BACKEND"))
    assert secret not in reported
    assert "Traceback" not in reported


def test_serve_needs_a_key() -> None:
    refused = run("serve")
    assert refused.returncode == 2
    assert "CEREBRAS_API_KEY is required, except with --demo" in refused.stdout


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("serve", "--demo", "--host", "127.0.0.1", "--port", port)
    assert refused.returncode == 1
    [line] = [orjson.loads(text) for text in refused.stdout.splitlines()]
    assert (line["level"], line["message"]) == ("error", "Cannot listen")
    assert line["address"].endswith(port)
    assert line["remedy"].startswith("set PORT, --port or METRICS_PORT to another port")
    assert refused.stderr == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_serves_until_a_signal_that_ends_it(backend: str, tmp_path: Path) -> None:
    """Started as users do; other tests have a fork of the program. Other signals end nothing, and
    without a terminal standard error is empty."""
    errors = tmp_path / "errors"
    demo = ("serve", "--demo", "--backend", backend)
    with serving(*demo, by="exec", stderr=str(errors)) as served:
        assert served.lines[0]["level"] == "warning"  # open to everybody
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            served.process.send_signal(number)
        assert served.metric("cerebras_proxy_client_connections") == 1
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        response = connection.getresponse().read()
        connection.close()
        line = served.line("ttft_seconds")
        in_a_process = run if backend == "asyncio" else run_here
        health = in_a_process("health", HOST="127.0.0.1", PORT=str(served.port))
        served.process.send_signal(signal.SIGTERM)
        status = served.ended()
    assert response.endswith(b"data: [DONE]\n\n")
    assert line["ttft_source"] == "measured"
    assert health.returncode == 0
    assert '"status":"healthy"' in health.stdout
    assert status == 0
    assert served.lines[-1]["message"] == "Stopped"
    assert errors.read_bytes() == b""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_drains_and_the_second_ends_at_once(backend: str, number: int) -> None:
    with serving("serve", "--demo", "--backend", backend) as served:
        connection = served.connection()
        stalled = {**JSON, "X-Simulate": "fault=stall, at=3"}
        connection.request("POST", "/v1/chat/completions", CHAT, stalled)
        response = connection.getresponse()
        assert response.read(6) == b"data: "
        served.process.send_signal(number)
        while served.line("message")["message"] != "Draining":
            pass
        assert served.process.poll() is None
        served.process.send_signal(number)
        assert served.ended() == 0
        response.close()
        connection.close()


class Screen:
    """A terminal for standard error; ``lines`` are what a person has seen of the three."""

    def __init__(self) -> None:
        self._reader, self._terminal = os.openpty()
        self.path = os.ttyname(self._terminal)

    def lines(self) -> list[str]:
        shown = b""
        while shown.count(b"\n") < 3:
            shown += os.read(self._reader, 4096)
        return shown.decode().splitlines()

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._terminal)


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_shows_the_address_a_request_and_the_docs(screen: Screen, workers: str) -> None:
    with serving("serve", "--demo", "--workers", workers, stderr=screen.path) as served:
        address, command, docs = screen.lines()
    assert address == f"Serving: http://127.0.0.1:{served.port}"
    assert docs == f"Docs:    {ROOT / 'contrib' / 'docs' / 'README.md'}"
    name, url, *flags, body = shlex.split(command.removeprefix("Try it:  "))
    assert (name, url) == ("curl", f"http://127.0.0.1:{served.port}/v1/chat/completions")
    assert flags == ["-H", "Content-Type: application/json", "-d"]
    assert orjson.loads(body)["messages"]


def test_the_request_on_a_terminal_works_with_a_clients_key_in_its_place(screen: Screen) -> None:
    settings = {"APE_API_KEY": f"alice:{CLIENT_KEY}"}
    with serving("serve", "--demo", stderr=screen.path, **settings) as served:
        command = screen.lines()[1].removeprefix("Try it:  ")
        assert CLIENT_KEY not in command
        _, url, *flags, body = shlex.split(command.replace("<the key of a client>", CLIENT_KEY))
        headers = dict(flag.split(": ") for flag in flags if ": " in flag)
        connection = served.connection()
        connection.request("POST", urlsplit(url).path, body, headers)
        assert connection.getresponse().status == 200
        connection.close()


def test_sighup_ends_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process inherits
    try:
        with serving("serve", "--demo", by="exec") as served:
            served.process.send_signal(signal.SIGHUP)
            assert served.metric("cerebras_proxy_client_connections") == 1
            served.process.send_signal(signal.SIGTERM)
            assert served.ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_simulate_logs_what_it_did(backend: str) -> None:
    options = ("--tokens", "3", "--tokens-per-chunk", "1", "--backend", backend)
    with serving("simulate", *options) as served:
        connection = served.connection()
        headers = {**JSON, "Authorization": "Bearer any", "X-Trace-ID": "trace-1"}
        connection.request("POST", "/v1/chat/completions", CHAT, headers)
        response = connection.getresponse().read()
        line = served.exchange("trace-1")
        connection.close()
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    assert b'"completion_tokens":3' in response
    assert (line["status_code"], line["events_written"], line["left"]) == (200, 6, False)
    assert line["id"].encode() in response
    assert line["ttft_seconds"] > 0
    assert line["uncertain_seconds"] >= 0


def test_simulate_keeps_to_account_limits() -> None:
    with serving("simulate", "--requests-per-day", "1", "--ttft", "0") as served:
        connection = served.connection()
        responses = []
        for _ in range(2):
            headers = {**JSON, "Authorization": "Bearer any"}
            connection.request("POST", "/v1/chat/completions", CHAT, headers)
            responses.append(connection.getresponse())
            responses[-1].read()
        connection.close()
    assert [response.status for response in responses] == [200, 429]
    assert responses[0].getheader("x-ratelimit-limit-requests-day") == "1"
    wrong = run_here("simulate", "--reservations", "lent")
    assert wrong.returncode == 2
    assert "argument --reservations: invalid" in wrong.stderr


def test_simulate_over_tls(authority: trustme.CA, tmp_path: Path) -> None:
    leaf = authority.issue_cert("localhost")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    leaf.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    files = ("--certificate", str(certificate), "--private-key", str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with serving("simulate", *files) as served:
        connection = http.client.HTTPSConnection("localhost", served.port, context=context)
        connection.request("GET", "/v1/tcp_warming")
        assert connection.getresponse().read() == b"{}"
        connection.close()
    wrong = run_here("simulate", "--certificate", str(key), "--private-key", str(certificate))
    assert wrong.returncode == 2
    assert "must be files that fit together" in wrong.stderr


@pytest.mark.parametrize("command", ["health", "simulate"])
def test_a_wrong_port_is_reported(command: str) -> None:
    refused = run_here(command, "--port", "http")
    assert refused.returncode == 2
    assert "PORT must be a whole number from 0 to 65535" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_health_where_nothing_listens() -> None:
    port = str(free_port())
    health = run_here("health", HOST="0.0.0.0", PORT=port)
    assert health.returncode == 1
    assert health.stderr == f"no response from 127.0.0.1:{port}: Connection refused\n"


def test_health_where_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond() -> None:
            with listener.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=respond)
        thread.start()
        health = run_here("health", HOST="127.0.0.1", PORT=str(listener.getsockname()[1]))
        thread.join()
    assert health.returncode == 1
    assert health.stderr.endswith("what responds there does not speak HTTP\n")


def test_health_at_no_such_host() -> None:
    health = run_here("health", HOST="nowhere.invalid", PORT="1")
    assert health.returncode == 1
    assert health.stderr == "no response from nowhere.invalid:1: there is no such host\n"


def test_every_flag_shows_its_default() -> None:
    serving, simulating = (run_here(each, "--help").stdout for each in ("serve", "simulate"))
    for text in ("HOST, else 0.0.0.0)", "PORT, else 8000)", "BACKEND, else asyncio)"):
        assert f"(default: {text}" in " ".join(serving.split())
    flags = set(re.findall(r"^  --([a-z-]+)", simulating, re.MULTILINE))
    assert len(flags) > 15
    shown = " ".join(simulating.split())
    without = {"version", "certificate", "private-key"}
    assert shown.count("(default: ") == len(flags - without)
    assert "(default: 0.05)" in shown


SETTINGS_OF = {"CEREBRAS_API_KEY": KEY, "PORT": "99", "MODEL_ALIASES": "a=b|c", "LOG_LEVEL": "warn"}


def test_settings_prints_the_table_in_three_forms() -> None:
    runs = [
        run_here("settings", *form, **SETTINGS_OF) for form in ((), ("--json",), ("--markdown",))
    ]
    assert [each.returncode for each in runs] == [0, 0, 0]
    plain, as_json, as_markdown = (each.stdout for each in runs)
    [port] = [line.split() for line in plain.splitlines() if line.startswith("PORT ")]
    assert port[:4] == ["PORT", "8000", "99", "PORT"]
    rows = {row["name"]: row for row in orjson.loads(as_json)}
    assert list(rows) == [setting.variable for setting in SETTINGS]
    assert rows["LOG_LEVEL"] == {
        "name": "LOG_LEVEL",
        "default": "info",
        "value": "warning",
        "from": "LOG_LEVEL",
        "meaning": "lowest level logged",
    }
    assert (rows["HOST"]["value"], rows["HOST"]["from"]) == ("0.0.0.0", "default")
    assert (rows["CEREBRAS_API_KEY"]["value"], rows["CEREBRAS_API_KEY"]["default"]) == (
        *("(set)", "(required)"),
    )
    markdown = as_markdown.splitlines()
    assert markdown[:2] == [
        "| NAME | DEFAULT | VALUE | FROM | MEANING |",
        "| --- | --- | --- | --- | --- |",
    ]
    assert len(markdown) == 2 + len(SETTINGS)
    assert [line for line in markdown if "a=b\\|c" in line]
    assert not [each for each in runs if KEY in each.stdout]


def test_settings_needs_no_key_but_right_settings() -> None:
    assert run_here("settings").returncode == 0
    wrong = run_here("settings", PORT="many")
    assert wrong.returncode == 2
    assert wrong.stderr == "PORT must be a whole number from 0 to 65535 (it is 'many')\n"


DOUBTFUL = {
    "CONNECTION_POOL_SIZE": "50",
    "MAX_CONCURRENT_REQUESTS": "100",
    "APE_APIKEY": "hush",
    "BATCH_SIZE": "8",
    "LOG_LEVEL": "debug",
}


def test_doubtful_settings_are_said_by_check_and_at_the_start() -> None:
    checked = run_here("check", CEREBRAS_API_KEY=KEY, **DOUBTFUL)
    assert checked.returncode == 0
    with serving("serve", "--demo", **DOUBTFUL) as served:
        said = [f"{x['level']}: {x['message']}: {x.get('problem')}" for x in served.lines]
    lines = checked.stderr.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "warning: Contradiction: CONNECTION_POOL_SIZE",
        "warning: No setting: APE_APIKEY is no setting and has no effect; is APE_API_KEY meant?",
        "debug: No setting: BATCH_SIZE: of the older proxy, without a meaning here",
    ]
    assert said[: len(lines)] == lines
    assert "hush" not in checked.stdout + checked.stderr


def test_check_prints_prices() -> None:
    prices = '{"m":{"input":0.5,"output":"1.25"}}'
    checked = run_here("check", CEREBRAS_API_KEY=KEY, MODEL_PRICES=prices)
    assert "\nMODEL_PRICES=m=0.5/1.25/0.5\n" in checked.stdout


def test_a_proxy_loads_no_simulator() -> None:
    program = """
import sys
from ape_cerebras.__main__ import main
print([name for name in sys.modules if "simulat" in name or "selfcheck" in name])
"""
    command = (sys.executable, "-W", "error", "-c", program)
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout == "[]\n"


@pytest.mark.anyio
async def test_a_demo_that_is_stopped_while_it_starts_ends_with_its_simulator() -> None:
    stop = anyio.Event()
    stop.set()
    config = Config(cerebras_api_key=UpstreamKey(KEY), host="127.0.0.1", port=0)
    with anyio.fail_after(TIMEOUT):
        await _serve_proxy(True, config, None, None, stop)
