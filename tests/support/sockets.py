"""Socket streams over a real TCP connection, and clients of a listening socket."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ape_cerebras.net.socket_stream import SocketStream

__all__ = ("client_of", "sockets")


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
    ends = SocketStream(ours), SocketStream(theirs)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


def client_of(listener: socket.socket) -> socket.socket:
    """A client whose connection is under way."""
    client = socket.socket(listener.family)
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
    return client
