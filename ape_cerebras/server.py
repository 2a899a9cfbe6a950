"""Listening and serving, as a task to be started in any anyio task group.

::

    async with anyio.create_task_group() as tasks:
        proxy = await tasks.start(serve, config)
        ...                                   # it serves on proxy.addresses
        proxy.begin_drain()                   # `serve` returns when all exchanges have ended
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import anyio
from anyio.abc import TaskStatus

from .config import Config
from .listener import accept_connections, accept_waiting, open_listeners
from .logs import LineWriter
from .network import SocketStream
from .proxy import Proxy
from .transport import Connect, connect_tcp
from .version import VERSION

__all__ = ("serve",)

_STANDARD_OUTPUT = 1
_COMPLAIN_EVERY = 1.0  # seconds


async def serve(
    config: Config,
    *,
    write_line: Callable[[bytes], object] | None = None,
    connect: Connect = connect_tcp,
    task_status: TaskStatus[Proxy] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until drained or cancelled; reports the Proxy once it listens.

    ``write_line`` gets the log's lines and must not block; by default a thread writes them to
    standard output. Raises OSError where it cannot listen.
    """
    with ExitStack() as stack:
        listeners = await open_listeners(config.host, config.port)
        for listener in listeners:
            stack.callback(listener.close)
        if write_line is None:
            writer = stack.enter_context(LineWriter(_STANDARD_OUTPUT))
            proxy = Proxy(
                config, writer, lines_dropped=lambda: float(writer.dropped), connect=connect
            )
        else:
            proxy = Proxy(config, write_line, connect=connect)
        stack.callback(proxy.close)
        await _serve_on(listeners, proxy, task_status)


async def _serve_on(
    listeners: list[socket.socket], proxy: Proxy, task_status: TaskStatus[Proxy]
) -> None:
    proxy.addresses = tuple(listener.getsockname()[:2] for listener in listeners)
    _announce(proxy)
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


def _announce(proxy: Proxy) -> None:
    if not proxy.config.ape_api_key:
        proxy.logs.event("warning", "APE_API_KEY is not set: every client is served")
    for host, port in proxy.addresses:
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        upstream = str(proxy.config.cerebras_base_url)
        proxy.logs.event("info", "Listening", address=address, upstream=upstream, version=VERSION)


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
