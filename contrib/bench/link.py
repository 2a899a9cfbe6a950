"""A link with a delay and a rate, between two programs on one machine: a relay of TCP connections
that forwards what it reads after a fixed time, and no more of it than the rate allows.

    python link.py PORT UPSTREAM_PORT [--delay-ms 20] [--rate-mbit 20]

The delay is that of each direction: 20 ms are 40 ms of round trip. It keeps the order and limits no
rate. The rate is that of each connection in each direction: pieces of a segment's size follow one
another as on a wire, and behind them is room for a small queue only; while that is full nothing is
read, so that the sender's kernel has to wait.

The relay does not see TCP's handshake, which its own kernel does at once. So it keeps a new
connection's first bytes for a round trip more, as they would have left that much later. Other
effects of a long link on TCP (slow start, losses) are not imitated.
"""

import argparse
import math
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

PIECE = 1460  # bytes: a segment
QUEUE = 64 * 1024  # bytes that wait for the wire

Pieces = SimpleQueue[tuple[float, bytes]]  # when each is due; the empty one is the end


@dataclass(frozen=True)
class Link:
    delay: float = 0.0  # seconds, one way
    rate: float = math.inf  # bytes a second, one way

    @property
    def round_trip(self) -> float:
        return 2 * self.delay


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _read(source: socket.socket, pieces: Pieces, link: Link, free_at: float) -> None:
    """Put arriving bytes on the wire, which is free from ``free_at`` on."""
    data = b"first"
    while data:
        _sleep_until(free_at - QUEUE / link.rate)
        try:
            data = source.recv(PIECE)
        except OSError:
            data = b""
        free_at = max(time.monotonic(), free_at) + len(data) / link.rate
        pieces.put((free_at + link.delay, data))


def _write(sink: socket.socket, pieces: Pieces) -> None:
    """Forward the bytes of the wire, up to its end; bytes for a closed connection are lost."""
    data = b"first"
    while data:
        due_at, data = pieces.get()
        _sleep_until(due_at)
        with suppress(OSError):
            if data:
                sink.sendall(data)
            else:
                sink.shutdown(socket.SHUT_WR)


def relay(client: socket.socket, upstream_port: int, link: Link) -> None:
    opened_at = time.monotonic()
    with client, socket.create_connection(("127.0.0.1", upstream_port)) as server:
        threads = []
        for source, sink, free_at in (
            (client, server, opened_at + link.round_trip),
            (server, client, opened_at),
        ):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces: Pieces = SimpleQueue()
            threads.append(Thread(target=_read, args=(source, pieces, link, free_at), daemon=True))
            threads.append(Thread(target=_write, args=(sink, pieces), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def serve(port: int, upstream_port: int, link: Link) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        if link.rate < math.inf:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE)
        while True:
            client, _ = listener.accept()
            Thread(target=relay, args=(client, upstream_port, link), daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of each direction")
    parser.add_argument("--rate-mbit", type=float, default=math.inf, help="of each direction")
    options = parser.parse_args()
    link = Link(options.delay_ms / 1e3, options.rate_mbit * 1e6 / 8)
    serve(options.port, options.upstream_port, link)


if __name__ == "__main__":
    main()
