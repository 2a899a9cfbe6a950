"""The floors of the bench: relays that are as small as they can be, and correct all the same."""

import socket
import sys
from collections.abc import Iterator
from http.client import HTTPResponse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "contrib" / "bench"
CONFIGS = BENCH / "configs"
FLOORS = ("floor", "floor-h11", "floor-coro")
WORDS = ("plain", "burst", "paced", "wafer", "plain")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench needs epoll and /proc")


@pytest.fixture(scope="module", autouse=True)
def _path() -> Iterator[None]:
    """The modules are no package: they find each other beside themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        patch.syspath_prepend(str(CONFIGS))
        yield


@pytest.fixture(scope="module")
def rig(_path: None) -> Iterator[Any]:
    runs = import_module("runs")
    with runs.mock("http", runs.Plan((), ())) as rig:
        yield rig


@pytest.fixture(scope="module", params=FLOORS)
def floor(request: pytest.FixtureRequest, rig: Any) -> Iterator[Any]:
    peers = import_module("peers")
    [peer] = (peer for peer in peers.PEERS if peer.name == request.param)
    target = peers.start(peer, rig.setting)
    yield target
    target.process.stop()


def bodies(port: int) -> list[bytes]:
    """Of one response after the other, over one connection."""
    request_of = import_module("load").request_of
    found = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        for word in WORDS:
            sock.sendall(request_of(word, "key"))
            response = HTTPResponse(sock)
            response.begin()
            assert response.status == 200
            found.append(response.read())
    return found


def raw_response(port: int, word: str, size: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(import_module("load").request_of(word, "key"))
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < size:
            data = sock.recv(65536)
            assert data
            received += data
    return received.partition(b"\r\n\r\n")[2]


def test_a_floor_relays_plain_and_streamed_responses(rig: Any, floor: Any) -> None:
    assert bodies(floor.port) == bodies(rig.setting.upstream_port)


def test_what_is_piped_keeps_its_framing(rig: Any, floor: Any) -> None:
    sent = b"".join(import_module("responses").RESPONSES[b"burst"].writes).partition(b"\r\n\r\n")[2]
    assert raw_response(floor.port, "burst", len(sent)) == sent


def test_a_floor_keeps_a_connection_to_upstream_for_each_client(rig: Any, floor: Any) -> None:
    load, mine = import_module("load"), 1  # the query has one, too
    with load.Load(floor.port, load.request_of("plain", "key"), 3) as clients:
        clients.send_one_each(3)
        while rig.query_mock("/count")["connections"] > 3 + mine:
            pass  # the look whether it listens had one, until the floor has noticed its end
        clients.send_one_each(3)
        assert rig.query_mock("/count")["connections"] == 3 + mine


BODY = b'5;name="v"\r\nhello\r\n1a\r\n' + b"\r\n" * 13 + b"\r\n0\r\nx: 1\r\n\r\n"


@pytest.mark.parametrize("size", range(1, len(BODY) + 1))
def test_the_end_of_chunks_is_found_however_they_are_cut(size: int) -> None:
    end = import_module("floor_sockets").ChunkedEnd()
    pieces = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    assert [end.is_in(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_floor_is_short() -> None:
    assert all(len(path.read_text("utf-8").splitlines()) < 120 for path in CONFIGS.glob("floor*"))
