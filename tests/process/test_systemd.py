"""What a service of ``Type=notify`` reports, to a socket as systemd has one."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from server_process import TIMEOUT, serving

from ape_cerebras.process.signals import Systemd
from ape_cerebras.telemetry.multiprocess import Scoreboard


class Manager:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(TIMEOUT)

    def next(self) -> bytes:
        return self.sock.recv(100)

    def until(self, state: bytes) -> list[bytes]:
        """What comes, up to that."""
        states = [self.next()]
        while states[-1] != state:
            states.append(self.next())
        return states

    def until_silent_for(self, seconds: float) -> list[bytes]:
        self.sock.settimeout(seconds)
        states = []
        with suppress(TimeoutError):
            while True:
                states.append(self.next())
        self.sock.settimeout(TIMEOUT)
        return states


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    made = Manager(path)
    yield made
    made.sock.close()


def test_one_process(manager: Manager, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    with serving("serve", "--demo", BACKEND=backend) as served:
        first = manager.until(b"READY=1")
        assert set(first) <= {b"READY=1", b"WATCHDOG=1"}
        for _ in range(3):
            assert manager.next() == b"WATCHDOG=1"
        served.process.terminate()
        assert set(manager.until(b"STOPPING=1")) <= {b"WATCHDOG=1", b"STOPPING=1"}
        assert served.ended() == 0


def test_workers(manager: Manager, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    with serving("serve", "--demo", "--workers", "2", BACKEND=backend) as served:
        assert manager.next() == b"READY=1"
        assert manager.next() == b"WATCHDOG=1"
        processes = [line["process"] for line in served.lines if line["message"] == "Worker serves"]
        while len(processes) < 2:
            processes.append(served.line_where(lambda line: "process" in line)["process"])
        os.kill(processes[0], signal.SIGSTOP)  # one that hangs
        try:
            assert len(manager.until_silent_for(4.5)) <= 1
        finally:
            os.kill(processes[0], signal.SIGCONT)
        assert manager.next() == b"WATCHDOG=1"
        served.process.terminate()
        assert manager.until(b"STOPPING=1")
        assert served.ended() == 0


def test_without_a_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("", "relative", "@", "/"):
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        systemd = Systemd()
        assert not systemd.is_there
        systemd.notify(b"READY=1")


def test_a_manager_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Systemd().notify(b"READY=1")


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ape-cerebras-{os.getpid()}"
    manager = Manager(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    Systemd().notify(b"READY=1")
    assert manager.next() == b"READY=1"
    manager.sock.close()


@pytest.mark.parametrize(
    ("usec", "process", "seconds"),
    [
        ("30000000", "", 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", float("inf")),
        ("", "", float("inf")),
        ("0", "", float("inf")),
        ("x", "", float("inf")),
        ("9" * 30, "", float("inf")),
    ],
)
def test_how_often_it_ticks(
    monkeypatch: pytest.MonkeyPatch, usec: str, process: str, seconds: float
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if process == "self" else process)
    assert Systemd().tick_every == seconds


def test_ticks_of_workers_that_serve() -> None:
    board = Scoreboard(3)
    board.mark_up(2)
    board.tick(1)
    board.tick(2)
    board.tick(2)
    board.set_connections(2, 7)
    assert board.ticks == ((2, 2),)
