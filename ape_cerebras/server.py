"""Listening and serving, as a task to be started in any anyio task group.

::

    async with anyio.create_task_group() as tasks:
        proxy = await tasks.start(serve, config)
        ...                                   # it serves on proxy.addresses
        proxy.begin_drain()                   # `serve` returns when all exchanges have ended
"""

import os
from collections.abc import Callable
from contextlib import ExitStack

import anyio
from anyio.abc import TaskGroup, TaskStatus

from .config.config import Config
from .downstream.listener import (
    accept_connections,
    accept_waiting,
    addresses_of,
    announce,
    open_ports,
)
from .net.socket_stream import SocketStream
from .proxy import Entrance, Proxy
from .telemetry.logs import LineWriter
from .telemetry.place import Board, Place, Ports
from .upstream.connect import Connect, connect_tcp

__all__ = ("serve",)

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
        ports = place.ports if place else await _open(config)
        stack.callback(ports.close)
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
        await _serve_on(ports, proxy, place, task_status)


async def _open(config: Config) -> Ports:
    return await open_ports(config.host, config.port, config.scrapers_port)


async def _serve_on(
    ports: Ports,
    proxy: Proxy,
    place: Place | None,
    task_status: TaskStatus[Proxy],
) -> None:
    proxy.addresses, proxy.scrapers_addresses = map(addresses_of, ports)
    upstream = str(proxy.config.cerebras_base_url)
    if place is None:
        announce(proxy.logs, proxy.config, ports, upstream=upstream)
    else:
        place.board.set_up(place.number)
        proxy.logs.event("info", "Worker serves", process=os.getpid(), upstream=upstream)
        await _wait_for_the_others(place.board)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.run_in_background)

        complain = _complainer(proxy)
        # To the very end: what is counted in a drain is worth a scrape.
        take_scraper = _taker(tasks, proxy, proxy.for_scrapers)
        wait_for_room = proxy.for_scrapers.connections.wait_for_room
        for listener in ports.scrapers:
            tasks.start_soon(accept_connections, listener, take_scraper, wait_for_room, complain)
        take = _taker(tasks, proxy, proxy.for_clients)
        async with anyio.create_task_group() as accepting:
            for listener in ports.clients:
                accepting.start_soon(
                    accept_connections, listener, take, proxy.wait_for_room, complain
                )
            task_status.started(proxy)
            await proxy.drain_began.wait()
            accepting.cancel_scope.cancel()
        for listener in ports.clients:
            accept_waiting(listener, take)
            listener.close()
        proxy.logs.event("info", "Draining")
        await proxy.drain()
        tasks.cancel_scope.cancel()
    proxy.logs.event("info", "Stopped")


def _taker(tasks: TaskGroup, proxy: Proxy, entrance: Entrance) -> Callable[[SocketStream], None]:
    """Gives each connection a task of its own."""

    def take(stream: SocketStream) -> None:
        tasks.start_soon(proxy.admit(stream, entrance))

    return take


async def _wait_for_the_others(board: Board) -> None:
    """At the start only, as the first would else take all the connections that wait already."""
    with anyio.move_on_after(_START_TOGETHER):
        while board.up < board.workers and not board.restarts:  # noqa: ASYNC110 - other processes
            await anyio.sleep(_LOOK_EVERY)


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
