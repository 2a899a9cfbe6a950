"""Exchanges leave no cyclic garbage, so that full garbage collections can be disabled."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from end_to_end import (
    FINISH,
    TOKEN,
    Conversation,
    Script,
    chat,
    events,
    running_proxy,
    running_upstream,
)
from upstream_scripts import closes, resets, responds, silent, streams
from waiting import until

pytestmark = pytest.mark.anyio

STREAM = b'{"model":"gpt-oss-120b","messages":[],"stream":true}'
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(STREAM), STREAM)
)
WHOLE = streams(events(TOKEN, FINISH, b"[DONE]"))


async def short(peer: Conversation) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}")


# Upstream's script, the request, and whether the client disconnects before the response ends.
KINDS = {
    "plain": (responds, chat(), False),
    "stream": (WHOLE, chat(STREAM), False),
    "chunked": (WHOLE, CHUNKED, False),
    "reassembled": (WHOLE, chat(), False),
    "refused": (responds, chat(b"{"), False),
    "malformed": (responds, b"GET / HTTP/9\r\n\r\n", False),
    "no response": (closes, chat(), False),
    "reset": (resets, chat(), False),
    "cut": (streams(events(TOKEN), then="leave"), chat(STREAM), False),
    "short": (short, chat(), False),
    "late": (silent, chat(), False),
    "disconnected": (silent, chat(STREAM), True),
    "disconnected midway": (streams(events(TOKEN), then="stay"), chat(STREAM), True),
}


@pytest.fixture(autouse=True)
def objects_of_earlier_tests() -> Iterator[None]:
    """They are left out: the traceback of one that failed can hold its event loop until now."""
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def garbage_kept() -> Iterator[list[str]]:
    """The names of our own types in the cyclic garbage of the block."""
    names: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield names
        gc.collect()
        kinds = (type(each) for each in gc.garbage)
        ours = (kind for kind in kinds if kind.__module__.startswith("ape_cerebras"))
        names += sorted({kind.__qualname__ for kind in ours})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def run_exchange(script: Script, request: bytes, disconnects: bool, mode: str) -> None:
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, UPSTREAM_FIRST_BYTE_TIMEOUT="0.2", TTFT_MODE=mode) as running,
    ):
        client = await running.client()
        with garbage_kept() as names:
            await client.send(request)
            if disconnects:
                await until(lambda: bool(upstream.requests))
            else:
                await client.response("POST")
            client.stream.close()
            await running.lines.exchange()
            await running.until_metric("cerebras_proxy_client_connections", lambda n: n <= 1)
        assert names == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exchange_and_its_connection_leave_no_cyclic_garbage(kind: str) -> None:
    script, request, disconnects = KINDS[kind]
    await run_exchange(
        script, request, disconnects, "exact" if kind == "reassembled" else "passthrough"
    )


SCRIPT = """
import gc
from ape_cerebras.process.hardening import tune_garbage_collector
tune_garbage_collector()
full_passes = gc.get_stats()[2]["collections"]
kept = [[] for _ in range(500_000)]
print(gc.get_freeze_count() > 1000, len(gc.callbacks), gc.get_stats()[0]["collections"] > 0)
print(gc.get_stats()[2]["collections"] - full_passes)
"""


def test_the_program_is_frozen_and_no_full_collection_runs() -> None:
    done = subprocess.run(
        (sys.executable, "-c", SCRIPT), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "0", "True", "0"]
