"""O the surroundings of the process: its settings, the resolver, threads, what nobody expected."""

import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

from fault_bench import Case
from server_process import RUN_TIMEOUT, Line, Served, refusing_port, run, serving

__all__ = ("CASES",)

CHAT = b'{"model":"llama3.1-8b","messages":[{"role":"user","content":"hi"}],"stream":true}'
ALICE = '[[keys]]\nname = "alice"\nkey = "key-of-alice"\n'
JSON = {"Content-Type": "application/json", "Authorization": "Bearer key-of-alice"}
UPSTREAM = {"CEREBRAS_API_KEY": "csk-0123456789", "CEREBRAS_BASE_URL": "http://hangs.test"}

# A lookup that takes longer than any test waits.
RESOLVER_HANGS = """
import socket, time
look_up = socket.getaddrinfo
def hang(host, *more, **options):
    asks = not options.get("flags", 0) & socket.AI_NUMERICHOST
    if asks and host in ("hangs.test", b"hangs.test"):
        time.sleep(60)
    return look_up(host, *more, **options)
socket.getaddrinfo = hang
"""

# As where a container's limit of processes is reached, once the service is up.
NO_THREADS = """
import threading
start = threading.Thread.start
def refuse(thread):
    if thread.name != "log-writer" and threading.active_count() > 1:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
"""

BACKGROUND_FAILS = """
from ape_cerebras.telemetry.health import Health
from ape_cerebras.upstream.warmup import Warmup
def fail(*_):
    raise ZeroDivisionError("key-of-alice")
Health.check = Warmup.keep = fail
"""

# The simulator, which shares the process, has no limit of connections: it goes on accepting.
ACCEPTING_FAILS = """
from ape_cerebras.downstream.listener import Acceptor
accept = Acceptor.accept
async def accept_two(acceptor):
    acceptor.calls = getattr(acceptor, "calls", 0) + 1
    if acceptor.calls > 2 and acceptor._connections is not None:
        raise OSError(9, "key-of-alice")
    return await accept(acceptor)
Acceptor.accept = accept_two
"""

HOSTILE = (
    *(f"{ALICE}usd_per_day = {value}" for value in ("1e9999999999999999999", "nan", "inf", "-1")),
    *(f"{ALICE}requests_per_minute = {value}" for value in ("9" * 5000, "1e400", "0x" + "f" * 999)),
    *(f"{ALICE}concurrent_requests = {value}" for value in ('"1"', "true", "1979-05-27", "{}")),
    *(f"{ALICE}models = {value}" for value in ("[1]", "[[]]", "''", '["\\u0000"]')),
    *(f"{ALICE}\0", f"{ALICE}x", "", "keys = 1", "a = " + "[" * 100_000, "\ud800"),
    *(f"{ALICE}{'a.' * 100_000}a = 1", '[[keys]]\nname = "a"\nkey = "b"\n' * 40_000),
)


def loops(backend: str) -> tuple[str, ...]:
    """asyncio's case is played on uvloop too, whose lookups and threads are its own."""
    return ("asyncio", "uvloop") if backend == "asyncio" else (backend,)


@contextmanager
def chat(served: Served, simulate: str = "") -> Iterator[HTTPResponse]:
    connection: HTTPConnection = served.connection()
    headers = {**JSON, "X-Simulate": simulate} if simulate else JSON
    connection.request("POST", "/v1/chat/completions", CHAT, headers)
    with connection.getresponse() as response:
        yield response
    connection.close()


def any_keys_file(backend: str) -> None:
    """O1: whatever the file holds at a SIGHUP, nothing ends, and the keys stay."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys.toml"
        for workers in ("1", "2"):
            path.write_text(ALICE)
            settings = {"APE_API_KEYS_FILE": str(path), "ASYNC_WORKERS": workers}
            with serving("serve", "--demo", BACKEND=backend, **settings) as served:
                with chat(served, "fault=stall, at=3") as stream:
                    for text in HOSTILE:
                        path.write_bytes(text.encode("utf-8", "surrogatepass"))
                        served.process.send_signal(signal.SIGHUP)
                        line = served.line("problem")
                        assert line["message"].startswith("Keys file refused")
                        assert line["problem"].startswith("APE_API_KEYS_FILE names ")
                    assert stream.read(6) == b"data: "
                with chat(served) as stream:
                    assert stream.status == 200
                path.write_bytes(b"\xef\xbb\xbf" + ALICE.replace("\n", "\r\n").encode())
                served.process.send_signal(signal.SIGHUP)
                assert served.line("keys")["keys"] == 1


def resolver_hangs_at_the_end(backend: str) -> None:
    """O2: no thread holds the end, nor what waits for it."""
    settings = {**UPSTREAM, "GRACEFUL_SHUTDOWN_TIMEOUT": "0.2"}
    for loop in loops(backend):
        with serving("serve", fault=RESOLVER_HANGS, BACKEND=loop, **settings) as served:
            connection = served.connection()
            connection.request("POST", "/v1/chat/completions", CHAT, JSON)
            while served.metric("cerebras_proxy_requests_in_flight") < 2:
                pass
            for _ in range(2):
                served.process.send_signal(signal.SIGTERM)
            assert served.ended() == 0
            connection.close()


def resolver_hangs(backend: str) -> None:
    """O3: a name that is not found in time; no thread that looks for it holds the end."""
    for loop in loops(backend):
        settings = {**UPSTREAM, "UPSTREAM_CONNECT_TIMEOUT": "0.2", "BACKEND": loop}
        with serving("serve", fault=RESOLVER_HANGS, **settings) as served:
            for _ in range(3):
                with chat(served) as response:
                    assert (response.status, b"connect_timeout" in response.read()) == (504, True)
            served.process.send_signal(signal.SIGTERM)
            assert served.ended() == 0


def no_threads(backend: str) -> None:
    """O4: no thread can be started: for a lookup, a keys file, a scrape."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys.toml"
        path.write_text(ALICE)
        for loop in loops(backend):
            settings = {**UPSTREAM, "BACKEND": loop, "APE_API_KEYS_FILE": str(path)}
            with serving("serve", fault=NO_THREADS, **settings) as served:
                for _ in range(2):
                    with chat(served) as response:
                        assert response.status in (502, 503)
                served.process.send_signal(signal.SIGHUP)
                assert served.line_where(_fails)["task"] == "keys_file"
                assert served.metric("cerebras_proxy_background_failures_total") == 1
                assert served.process.poll() is None


def _fails(line: Line) -> bool:
    return "background" in line["message"]


def background_fails(backend: str) -> None:
    """O5: logged once each, counted, and requests are served."""
    with serving("serve", "--demo", fault=BACKGROUND_FAILS, BACKEND=backend) as served:
        while served.metric("cerebras_proxy_background_failures_total") < 4:
            pass
        with chat(served) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    logged = [line for line in served.lines if _fails(line)]
    assert {line["task"] for line in logged} == {"warmup", "health"}
    assert len(logged) == 2
    assert all("ZeroDivisionError" in str(line["exceptions"]) for line in logged)


def accepting_fails(backend: str) -> None:
    """O6: a service that cannot serve ends, with a status and a line that say so."""
    for loop in loops(backend):
        with (
            serving("serve", "--demo", fault=ACCEPTING_FAILS, BACKEND=loop) as served,
            chat(served, "fault=stall, at=3") as stream,
        ):
            assert stream.read(6) == b"data: "
            with socket.create_connection(("127.0.0.1", served.port)):
                assert served.ended() == 1
        [line] = [line for line in served.lines if line["message"] == "Failed"]
        assert "OSError EBADF" in str(line["exceptions"])
        assert "Cannot listen" not in str(served.lines)


def anothers_metrics(backend: str) -> None:
    """O7: the directory of another program's metrics, whether it is there or not."""
    with tempfile.TemporaryDirectory() as directory:
        for path in (directory, f"{directory}/missing", ""):
            settings = {"PROMETHEUS_MULTIPROC_DIR": path, "BACKEND": backend}
            with serving("serve", "--demo", **settings) as served:
                with chat(served) as response:
                    assert response.read().endswith(b"data: [DONE]\n\n")
                assert served.metric("cerebras_proxy_requests_total") == 1
            assert list(Path(directory).iterdir()) == []


def windows_lines(backend: str) -> None:
    """O8: settings as an env file with CRLF gives them, to every command alike."""
    settings = {"BACKEND": f"{backend}\r", "LOG_LEVEL": " debug\r\n", "MAX_HEADERS": "\t7 "}
    with serving("serve", "--demo", **settings) as served:
        own = {**settings, "HOST": "127.0.0.1\r", "PORT": f" {served.port}\r"}
        asked = run("health", timeout=RUN_TIMEOUT, **own)
        assert (asked.returncode, asked.stderr) == (0, "")
        checked = run("check", timeout=RUN_TIMEOUT, CEREBRAS_API_KEY="csk-0123456789\r", **own)
        assert checked.returncode == 0
        assert f"\nPORT={served.port}\n" in checked.stdout
    with refusing_port() as port:
        asked = run("health", HOST="127.0.0.1\r", PORT=f"{port}\r")
        assert asked.returncode == 1
        assert "Traceback" not in asked.stderr


CASES: list[Case] = [
    Case("O1", process=any_keys_file),
    Case("O2", process=resolver_hangs_at_the_end),
    Case("O3", process=resolver_hangs),
    Case("O4", process=no_threads),
    Case("O5", process=background_fails),
    Case("O6", process=accepting_fails),
    Case("O7", process=anothers_metrics, once=True),
    Case("O8", process=windows_lines, once=True),
]
