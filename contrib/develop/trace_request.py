"""Trace one plain request through a proxy: the modules in the order in which it enters them.

    python contrib/develop/trace_request.py [--calls]

A proxy serves on a loopback port, with an upstream of canned bytes in a thread of its own. Three
requests warm it up; the fourth is traced, from its first byte to its log line. All take no time by
their own account, so that each of their times is known and observed, however quick the machine is.
Each line is a stay in one module: the functions that were called there, in order. The last line
counts the calls, the functions, the modules, and how often a call led from one module to another.
``--calls`` prints each call instead, indented by its depth.
"""

import argparse
import socket
import sys
import threading
from functools import partial
from itertools import groupby
from pathlib import Path
from types import FrameType

import anyio

import ape_cerebras
from ape_cerebras import Config, Proxy, serve

PACKAGE = str(Path(ape_cerebras.__file__).parent) + "/"
WARM_UP = 3
IN_BACKGROUND = {"Proxy._go_on", "Proxy.run_in_background"}
BODY = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"hi"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
COMPLETION = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-oss-120b","choices":'
    b'[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hello"}}],"usage":'
    b'{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12},"time_info":{"queue_time":0.0,'
    b'"prompt_time":0.0,"completion_time":0.0,"total_time":0.0,"created":1}}'
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(COMPLETION),
    COMPLETION,
)

Call = tuple[int, str, str]


def serve_upstream(listener: socket.socket) -> None:
    """Respond to every request on every connection alike; ends with the process."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=converse, args=(connection,), daemon=True).start()


def converse(connection: socket.socket) -> None:
    received = b""
    while data := connection.recv(65536):
        received += data
        if received.endswith(b"]}"):
            received = b""
            connection.sendall(RESPONSE)


class Tracer:
    """Records each call of a function of the package, with the depth of its caller among those.

    The proxy's background tasks are left out: they run beside any request.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._stack: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            if not IN_BACKGROUND.intersection((*self._stack, code.co_qualname)):
                module = code.co_filename.removeprefix(PACKAGE).removesuffix(".py")
                self.calls.append((len(self._stack), module, code.co_qualname))
            self._stack.append(code.co_qualname)
        elif event == "return" and self._stack:
            self._stack.pop()


async def trace() -> list[Call]:
    """The calls of one plain request, once everything has been used before."""
    upstream = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_upstream, args=(upstream,), daemon=True).start()
    config = Config.from_environment(
        {
            "CEREBRAS_API_KEY": "csk-traced",
            "CEREBRAS_BASE_URL": f"http://127.0.0.1:{upstream.getsockname()[1]}",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "METRICS_ENABLED": "true",
        }
    )
    tracer = Tracer()
    lines: list[bytes] = []

    def write_line(line: bytes) -> None:
        if b"/v1/chat/completions" in line:
            lines.append(line)

    async with anyio.create_task_group() as tasks:
        proxy: Proxy = await tasks.start(partial(serve, config, write_line=write_line))
        [address] = proxy.addresses
        async with await anyio.connect_tcp(*address) as client:
            for number in range(WARM_UP + 1):
                lines.clear()
                sys.setprofile(tracer if number == WARM_UP else None)
                await client.send(REQUEST)
                received = b""
                while COMPLETION not in received:
                    received += await client.receive()
                while not lines:  # the line is written after the response
                    await anyio.lowlevel.checkpoint()
                sys.setprofile(None)
        tasks.cancel_scope.cancel()
    return tracer.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", action="store_true", help="print every call")
    calls = anyio.run(trace) if (options := parser.parse_args()) else []
    if options.calls:
        for depth, module, name in calls:
            print(f"{'  ' * depth}{module}: {name}")
    else:
        for module, stay in groupby(calls, key=lambda call: call[1]):
            print(f"{module}: {', '.join(name for _, _, name in stay)}")
    modules = [module for module, _ in groupby(module for _, module, _ in calls)]
    functions = {(module, name) for _, module, name in calls}
    print(
        f"{len(calls)} calls of {len(functions)} functions in {len(set(modules))} modules, "
        f"{len(modules) - 1} changes of module"
    )


if __name__ == "__main__":
    main()
