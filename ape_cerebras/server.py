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
from .downstream.listener import Acceptor, Ports, announce, open_ports
from .proxy import Entrance, Proxy
from .telemetry.logs import LineWriter
from .telemetry.multiprocess import Scoreboard, WorkerSlot
from .upstream.connect import Connect

__all__ = ("serve",)

_STANDARD_OUTPUT = 1
_START_TOGETHER = 1.0  # seconds that a worker waits for the others, at most
_POLL_EVERY = 0.001  # seconds


async def serve(
    config: Config,
    *,
    write_line: Callable[[bytes], object] | None = None,
    connect: Connect | None = None,
    slot: WorkerSlot | None = None,
    ports: Ports | None = None,
    task_status: TaskStatus[Proxy] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled; reports the Proxy once it listens.

    ``write_line`` gets the log's lines and must not block; by default a thread writes them to
    standard output. ``connect`` makes the streams to upstream. ``slot`` is a worker's, whose
    parent has opened ``ports``. Raises OSError where it cannot listen.
    """
    with ExitStack() as stack:
        if ports is None:
            ports = await _open(config)
        stack.callback(ports.close)
        if write_line is None:
            writer = stack.enter_context(LineWriter(_STANDARD_OUTPUT, shared=slot is not None))
            write_line, lines_dropped = writer, lambda: float(writer.dropped)
        else:
            lines_dropped = float  # none is lost
        proxy = Proxy(
            config,
            write_line,
            lines_dropped=lines_dropped,
            connect=connect,
            ports=ports,
            slot=slot,
        )
        stack.callback(proxy.close)
        try:
            await _serve_on(ports, proxy, slot, task_status)
        finally:
            await proxy.flush_spans()


async def _open(config: Config) -> Ports:
    """Open the ports in a thread, since a lookup of HOST may take long. Where the start is
    cancelled meanwhile, nobody waits for the thread, and what it has opened closes."""
    opened: list[Ports] = []
    is_abandoned = False

    def opening() -> Ports:
        opened.append(open_ports(config.host, config.port, config.scrapers_port))
        if is_abandoned:
            opened[0].close()
        return opened[0]

    try:
        return await anyio.to_thread.run_sync(opening, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        is_abandoned = True
        for ports in opened:
            ports.close()
        raise


async def _serve_on(
    ports: Ports, proxy: Proxy, slot: WorkerSlot | None, task_status: TaskStatus[Proxy]
) -> None:
    upstream = str(proxy.config.cerebras_base_url)
    if slot is None:
        announce(proxy.logs, proxy.config, ports, upstream=upstream)
    else:
        slot.scoreboard.mark_up(slot.number)
        proxy.logs.event("info", "Worker serves", process=os.getpid(), upstream=upstream)
        await _wait_for_all_workers(slot.scoreboard)
    acceptors = [
        Acceptor(listener, proxy.logs, proxy.for_clients.connections, slot)
        for listener in ports.clients
    ]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.run_in_background)
        for listener in ports.scrapers:  # to the end: the counts of a drain are worth a scrape
            acceptor = Acceptor(listener, proxy.logs, proxy.for_scrapers.connections)
            tasks.start_soon(_accept, acceptor, tasks, proxy, proxy.for_scrapers)
        async with anyio.create_task_group() as accepting:
            for acceptor in acceptors:
                accepting.start_soon(_accept, acceptor, tasks, proxy, proxy.for_clients)
            task_status.started(proxy)
            await proxy.drain_began.wait()
            accepting.cancel_scope.cancel()
        if slot is not None:
            slot.scoreboard.set_accepting(slot.number, False)
        for acceptor, listener in zip(acceptors, ports.clients, strict=True):
            for stream in acceptor.accept_waiting():
                tasks.start_soon(proxy.handle, stream, proxy.for_clients)
            listener.close()
        proxy.logs.event("info", "Draining")
        await proxy.drain()
        tasks.cancel_scope.cancel()
    proxy.logs.event("info", "Stopped", **proxy.totals)


async def _accept(acceptor: Acceptor, tasks: TaskGroup, proxy: Proxy, entrance: Entrance) -> None:
    """Give each connection a task of its own; until cancelled."""
    while True:
        tasks.start_soon(proxy.handle, await acceptor.accept(), entrance)


async def _wait_for_all_workers(scoreboard: Scoreboard) -> None:
    """At the start only, because the first would accept all the connections that wait already."""
    with anyio.move_on_after(_START_TOGETHER):
        while scoreboard.up < scoreboard.workers and not scoreboard.restarts:  # noqa: ASYNC110 - other processes
            await anyio.sleep(_POLL_EVERY)
