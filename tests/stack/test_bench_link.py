"""The bench's link, and the experiments made with it. Of times only the least are asserted: what a
link keeps back it may not hand on sooner."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "contrib" / "bench"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench needs epoll and /proc")


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; the bench's modules find each other beside themselves."""
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("link")


@contextmanager
def joined(link: Any, *options: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through a link."""
    with (
        socket.create_server(("127.0.0.1", 0)) as near,
        socket.create_server(("127.0.0.1", 0)) as far,
        socket.create_connection(near.getsockname(), timeout=5) as client,
        near.accept()[0] as relayed,
    ):
        there = link.Link(*options)
        port = far.getsockname()[1]
        relay = threading.Thread(target=link.relay, args=(relayed, port, there), daemon=True)
        relay.start()
        server, _ = far.accept()
        server.settimeout(5)
        with server:
            yield client, server
        client.close()
        relay.join(5)
        assert not relay.is_alive()


def all_from(sock: socket.socket) -> bytes:
    read = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            read += data
    return read


def test_what_goes_in_comes_out_in_order_and_so_does_the_end(link: Any) -> None:
    text = bytes(range(256)) * 1000
    with joined(link, 0.001, 10e6) as (client, server):
        threading.Thread(target=server.sendall, args=(text[::-1],)).start()
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        assert all_from(server) == text
        server.shutdown(socket.SHUT_WR)
        assert all_from(client) == text[::-1]


def test_each_direction_is_delayed_and_an_opening_takes_a_round_trip(link: Any) -> None:
    began_at = time.monotonic()
    with joined(link, 0.05) as (client, server):
        client.sendall(b"a")
        assert server.recv(1) == b"a"
        there_at = time.monotonic()
        assert there_at - began_at >= 0.05 + 0.1
        server.sendall(b"b")
        assert client.recv(1) == b"b"
        assert time.monotonic() - there_at >= 0.05


def test_no_more_goes_through_than_the_rate_allows(link: Any) -> None:
    with joined(link, 0.0, 1e6) as (client, server):
        began_at = time.monotonic()
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert len(all_from(server)) == 100_000
        assert time.monotonic() - began_at >= 0.1


def test_a_disconnect_at_one_end_is_one_at_the_other(link: Any) -> None:
    with joined(link, 0.001) as (client, server):
        server.close()
        assert all_from(client) == b""


@pytest.mark.parametrize("experiment", ["warm", "gzip"])
def test_a_short_run_of_an_experiment(experiment: str, tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    command = (sys.executable, str(BENCH / "worth.py"), experiment, "--rounds", "1")
    options = ("--quiet", "2", "--round-trip-ms", "4", "--rate-mbit", "100", "--json", str(path))
    done = subprocess.run(
        (*command, *options), capture_output=True, text=True, timeout=60, check=True
    )
    rounds = json.loads(path.read_text("utf-8"))
    assert rounds
    assert all(len(times) == 1 for times in rounds.values())
    if experiment == "warm":
        found = [line.split()[:3] for line in done.stdout.splitlines()[2:4]]
        assert found == [
            ["WARM_CONNECTIONS=0", "1", "new"],
            ["WARM_CONNECTIONS=1", "1", "warm"],
        ]
    else:
        sizes = [line.split()[2:4] for line in done.stdout.splitlines()[2:5]]
        assert [float(compressed) < float(plain) / 2 for plain, compressed in sizes] == [True] * 3
