"""The command line, as a user runs it: real processes, real signals."""

import http.client
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import trustme
from end_to_end import KEY, free_port
from server_process import run, serving

from ape_cerebras.config.values import BACKENDS

CHAT = b'{"model":"llama3.1-8b","messages":[{"role":"user","content":"hi"}],"stream":true}'
JSON = {"Content-Type": "application/json"}


def test_the_version() -> None:
    for arguments in (("--version",), ("serve", "--version"), ("check", "--version")):
        assert run(*arguments).stdout.startswith("ape-cerebras ")


def test_a_wrong_flag_names_the_right_ones() -> None:
    wrong = run("serve", "--prot", "1")
    assert wrong.returncode == 2
    assert "--port" in wrong.stderr


def test_check_prints_the_settings_and_hides_the_secrets() -> None:
    good = run("check", CEREBRAS_API_KEY=KEY, APE_API_KEY="alice:secret-of-alice", PORT="1234")
    assert good.returncode == 0
    assert "PORT=1234" in good.stdout
    assert "CEREBRAS_API_KEY=(set)" in good.stdout
    assert KEY not in good.stdout + good.stderr
    assert "secret-of-alice" not in good.stdout + good.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_wrong_settings_are_reported_at_once_without_secrets(command: str) -> None:
    secret = "csk-with a blank"
    wrong = run(command, CEREBRAS_API_KEY=secret, PORT="70000", BACKEND="twisted")
    reported = wrong.stdout + wrong.stderr
    assert wrong.returncode == 2
    assert all(name in reported for name in ("CEREBRAS_API_KEY", "PORT", "BACKEND"))
    assert secret not in reported
    assert "Traceback" not in reported


def test_serve_needs_a_key() -> None:
    refused = run("serve")
    assert refused.returncode == 2
    assert "CEREBRAS_API_KEY is required" in refused.stdout


def test_a_port_in_use_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("serve", "--demo", "--host", "127.0.0.1", "--port", port)
    assert refused.returncode == 1
    [line] = [orjson.loads(text) for text in refused.stdout.splitlines()]
    assert (line["level"], line["message"]) == ("error", "Cannot listen")
    assert line["address"].endswith(port)
    assert refused.stderr == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_demo_serves_until_a_signal(backend: str) -> None:
    with serving("serve", "--demo", "--backend", backend) as served:
        assert served.lines[0]["level"] == "warning"  # open to everybody
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        response = connection.getresponse().read()
        connection.close()
        line = served.line("ttft_seconds")
        health = run("health", HOST="127.0.0.1", PORT=str(served.port))
        served.process.send_signal(signal.SIGTERM)
        status = served.ended()
    assert response.endswith(b"data: [DONE]\n\n")
    assert line["ttft_source"] == "measured"
    assert health.returncode == 0
    assert '"status":"healthy"' in health.stdout
    assert status == 0
    assert served.lines[-1]["message"] == "Stopped"


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_signals_end_nothing(backend: str) -> None:
    with serving("serve", "--demo", "--backend", backend) as served:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            served.process.send_signal(number)
        assert served.metric("cerebras_proxy_client_connections") == 1
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0


def test_sighup_ends_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process inherits
    try:
        with serving("serve", "--demo") as served:
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
    wrong = run("simulate", "--reservations", "lent")
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
    wrong = run("simulate", "--certificate", str(key), "--private-key", str(certificate))
    assert wrong.returncode == 2
    assert "must be files that fit together" in wrong.stderr


@pytest.mark.parametrize("command", ["health", "simulate"])
def test_a_wrong_port_is_reported(command: str) -> None:
    refused = run(command, "--port", "http")
    assert refused.returncode == 2
    assert "PORT must be a whole number from 0 to 65535" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_health_where_nothing_listens() -> None:
    health = run("health", HOST="0.0.0.0", PORT=str(free_port()))
    assert health.returncode == 1
    assert "Traceback" not in health.stderr


def test_a_proxy_loads_no_simulator() -> None:
    program = """
import sys
from ape_cerebras.__main__ import main
print([name for name in sys.modules if "simulat" in name or "selfcheck" in name])
"""
    command = (sys.executable, "-W", "error", "-c", program)
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout == "[]\n"
