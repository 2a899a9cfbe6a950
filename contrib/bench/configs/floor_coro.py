"""The floor without HTTP: two coroutines for each connection pass on the bytes, each read as one
write. Nothing is parsed; the API gets the client's own key."""

import asyncio

from floor_sockets import READ_BYTES, Streams, run, wrote


async def pump(source: Streams, sink: Streams) -> None:
    while data := await source[0].read(READ_BYTES):
        await wrote(sink[1], data)
    sink[1].write_eof()


async def relay(client: Streams, upstream: Streams) -> None:
    up = asyncio.ensure_future(pump(client, upstream))
    try:
        await pump(upstream, client)
    finally:
        up.cancel()


if __name__ == "__main__":
    run(relay)
