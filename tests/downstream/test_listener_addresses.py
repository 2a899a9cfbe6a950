"""Which addresses are listened on, and what happens where one cannot be had."""

import errno
import os
import socket
from contextlib import ExitStack, closing

import pytest

from ape_cerebras.downstream.listener import open_listeners

pytestmark = pytest.mark.anyio


async def test_port_0_picks_one_that_is_then_known() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    with closing(listener):
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        assert port > 0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert not listener.getblocking()
        assert not os.get_inheritable(listener.fileno())


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name mean these addresses, the first of them twice."""

    def getaddrinfo(_: object, port: int, **__: object) -> list[tuple[object, ...]]:
        meant = (addresses[0], *addresses)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in meant]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_port_0_is_one_port_on_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3")
    listeners = open_listeners("several", 0)
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(closing(listener))
        port = listeners[0].getsockname()[1]
        assert [listener.getsockname() for listener in listeners] == [
            *(("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port))
        ]


async def test_addresses_that_are_not_here_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    (listener,) = open_listeners("several", 0)
    with closing(listener):
        assert listener.getsockname()[0] == "127.0.0.1"


async def test_where_one_address_cannot_be_had_none_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (taken,) = open_listeners("127.0.0.2", 0)
    with closing(taken):
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use"):
            open_listeners("several", taken.getsockname()[1])
        assert set(os.listdir("/proc/self/fd")) == before


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    with closing(listener):
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="in use") as caught:
            open_listeners("127.0.0.1", listener.getsockname()[1])
        assert caught.value.errno == errno.EADDRINUSE
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
async def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(OSError, match="none of the host's addresses") as caught:
        open_listeners(host, 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
