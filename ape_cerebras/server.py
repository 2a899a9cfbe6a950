"""Listening and serving, as a task to be started in any anyio task group.

::

    async with anyio.create_task_group() as tasks:
        proxy = await tasks.start(serve, config)
        ...                                   # it serves on proxy.addresses
        proxy.begin_drain()                   # `serve` returns when all exchanges have ended
"""

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import anyio
from anyio.abc import TaskStatus

from .config import Config
from .listener import accept_connections, accept_waiting, open_listeners
from .logs import LineWriter, Logs
from .network import SocketStream
from .place import Board, Place
from .proxy import Proxy
from .transport import Connect, connect_tcp
from .version import VERSION

__all__ = ("announce", "serve")

_STANDARD_OUTPUT = 1
_COMPLAIN_EVERY = 1.0  # seconds
_START_TOGETHER = 1.0  # seconds that a worker waits for the others, at most
_LOOK_EVERY = 0.001  # seconds


async def serve(
    config: Config,
    *,
    write_line: Callable[[bytes], object] | None = None,
    connect: Connect = connect_tcp,
    place: Place | None = None,
    task_status: TaskStatus[Proxy] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled; reports the Proxy once it listens.

    ``write_line`` gets the log's lines and must not block; by default a thread writes them to
    standard output. ``place`` is a worker's: its parent has opened the sockets. Raises OSError
    where it cannot listen.
    """
    with ExitStack() as stack:
        listeners = place.listeners if place else await open_listeners(config.host, config.port)
        for listener in listeners:
            stack.callback(listener.close)
        if write_line is None:
            writer = stack.enter_context(LineWriter(_STANDARD_OUTPUT, shared=place is not None))
            proxy = Proxy(
                config,
                writer,
                lines_dropped=lambda: float(writer.dropped),
                connect=connect,
                place=place,
            )
        else:
            proxy = Proxy(config, write_line, connect=connect, place=place)
        stack.callback(proxy.close)
        await _serve_on(listeners, proxy, place, task_status)


async def _serve_on(
    listeners: Sequence[socket.socket],
    proxy: Proxy,
    place: Place | None,
    task_status: TaskStatus[Proxy],
) -> None:
    proxy.addresses = tuple(listener.getsockname()[:2] for listener in listeners)
    upstream = str(proxy.config.cerebras_base_url)
    if place is None:
        announce(proxy.logs, proxy.config, proxy.addresses, upstream=upstream)
    else:
        place.board.set_up(place.number)
        proxy.logs.event("info", "Worker serves", process=os.getpid(), upstream=upstream)
        await _wait_for_the_others(place.board)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.run_in_background)

        def handle(stream: SocketStream) -> None:
            tasks.start_soon(proxy.serve, proxy.admit(stream))

        async with anyio.create_task_group() as accepting:
            complain = _complainer(proxy)
            for listener in listeners:
                accepting.start_soon(
                    accept_connections, listener, handle, proxy.wait_for_room, complain
                )
            task_status.started(proxy)
            await proxy.drain_began.wait()
            accepting.cancel_scope.cancel()
        for listener in listeners:
            accept_waiting(listener, handle)
            listener.close()
        proxy.logs.event("info", "Draining")
        await proxy.drain()
        tasks.cancel_scope.cancel()
    proxy.logs.event("info", "Stopped")


async def _wait_for_the_others(board: Board) -> None:
    """At the start only, as the first would else take all the connections that wait already."""
    with anyio.move_on_after(_START_TOGETHER):
        while board.up < board.workers and not board.restarts:  # noqa: ASYNC110 - other processes
            await anyio.sleep(_LOOK_EVERY)


def announce(logs: Logs, config: Config, addresses: Iterable[tuple[str, int]], **more: Any) -> None:
    """Log where it is listened, and for whom."""
    if not config.ape_api_key:
        logs.event("warning", "APE_API_KEY is not set: every client is served")
    for host, port in addresses:
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logs.event("info", "Listening", address=address, **more, version=VERSION)


def _complainer(proxy: Proxy) -> Callable[[str], None]:
    """Logs an error, at most once a second however often it is asked to."""
    silent_until = float("-inf")

    def complain(message: str) -> None:
        nonlocal silent_until
        now = anyio.current_time()
        if now >= silent_until:
            silent_until = now + _COMPLAIN_EVERY
            proxy.logs.event("error", message)

    return complain
