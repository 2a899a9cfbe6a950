"""The floor with h11 on both sides: it reads and frames heads and bodies, up and down.

For requests and responses with a length or in chunks, of HTTP/1.1.
"""

import h11
from floor_sockets import READ_BYTES, Streams, run, wrote


def onward(event: h11.Event) -> h11.Event:
    """The event as the other side's h11 sends it."""
    if isinstance(event, h11.Request):
        fields = event.headers.raw_items()
        return h11.Request(method=event.method, target=event.target, headers=fields)
    if isinstance(event, h11.Response):
        fields = event.headers.raw_items()
        return h11.Response(status_code=event.status_code, headers=fields, reason=event.reason)
    if isinstance(event, h11.Data):
        return h11.Data(data=event.data)
    return h11.EndOfMessage()


async def relay_message(
    source: h11.Connection, here: Streams, sink: h11.Connection, there: Streams
) -> bool:
    """Pass one message on, each read as one write. Return whether there was one."""
    framed: list[bytes] = []
    while True:
        event = source.next_event()
        if event is h11.NEED_DATA:
            if framed:
                await wrote(there[1], b"".join(framed))
                framed.clear()
            source.receive_data(await here[0].read(READ_BYTES))
        elif isinstance(event, h11.Event) and not isinstance(event, h11.ConnectionClosed):
            framed.append(sink.send(onward(event)) or b"")
            if isinstance(event, h11.EndOfMessage):
                await wrote(there[1], b"".join(framed))
                return True
        else:
            return False


async def relay(client: Streams, upstream: Streams) -> None:
    down, up = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    while await relay_message(down, client, up, upstream):
        if not await relay_message(up, upstream, down, client):
            raise ConnectionError
        down.start_next_cycle()
        up.start_next_cycle()


if __name__ == "__main__":
    run(relay)
