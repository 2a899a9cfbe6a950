"""The proxy of a soak: a process of its own, so that its resources can be counted. Its connections
upstream take the given paths; it obeys the lines on its standard input.

``report``: wait until nothing is in flight, and log what it holds. ``end``: drain, and end.
"""

import gc
import os
import random
import resource
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import orjson
from fault_player import files_open, tasks_alive
from upstream_paths import Ways, strange_names

from ape_cerebras import Config, Proxy, serve
from ape_cerebras.net.event_loop import run_on
from ape_cerebras.process.hardening import report_crashes

__all__ = ("main",)

_SETTLED_WITHIN = 30.0  # seconds


async def soaked(ways: Ways) -> None:
    config = Config.from_environment(os.environ)
    commands = b""
    async with anyio.create_task_group() as tasks:
        proxy = await tasks.start(partial(serve, config, connect=ways.connect))
        while not commands.endswith(b"end\n"):
            await anyio.wait_readable(0)
            commands = os.read(0, 100)
            if not commands:  # whoever began this has ended
                break
            if commands == b"report\n":
                await report(proxy, ways)
        proxy.begin_drain()


async def report(proxy: Proxy, ways: Ways) -> None:
    pool, trouble = proxy._upstream.pool, ways.trouble
    with anyio.move_on_after(_SETTLED_WITHIN):
        while proxy._connections or pool.active:  # noqa: ASYNC110 - it has no event for this
            await anyio.sleep(0.01)
    ways.trouble = 0.0
    slots = await free_slots(proxy)
    ways.trouble = trouble
    gc.collect()
    proxy.logs.event(
        "info",
        "State",
        slots=slots,
        in_flight=proxy._in_flight,
        clients=len(proxy._connections),
        connections=pool.active + pool.idle,
        tasks=tasks_alive(),
        descriptors=files_open(),
        objects=len(gc.get_objects()),
        resident=resident(),
    )


def resident() -> int:
    """Resident memory in bytes; elsewhere than on Linux its peak."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def free_slots(proxy: Proxy) -> int:
    """How many connections upstream can be had at the same time."""
    pool = proxy._upstream.pool
    with ExitStack() as stack:
        for _ in range(proxy.config.connection_pool_size):
            stack.callback(pool.give_back, (await pool.lease()).connection)
        slots = pool.active
    pool.close()
    return slots


def main() -> None:
    options = orjson.loads(sys.argv[1])
    ways = Ways(options["addresses"], random.Random(options["seed"]))
    ways.trouble = options["trouble"]
    report_crashes()
    with strange_names():
        run_on(options["backend"], soaked, ways)


if __name__ == "__main__":
    main()
