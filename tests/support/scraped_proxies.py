"""Proxies made to order for ``ape-cerebras top``: counters that a test sets, over real sockets."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ("buckets_text", "serving_text")


def buckets_text(
    name: str, counts: Mapping[str, float], total: float = 0.0, labels: str = ""
) -> str:
    """A histogram of cumulative counts by upper bound."""
    lines = [f'cerebras_proxy_{name}_bucket{{{labels}le="{le}"}} {n}' for le, n in counts.items()]
    plain = f"{{{labels.rstrip(',')}}}" if labels else ""
    lines += [
        f"cerebras_proxy_{name}_count{plain} {[*counts.values()][-1]}",
        f"cerebras_proxy_{name}_sum{plain} {total}",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def serving_text(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server that responds so to each GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that had enough."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
