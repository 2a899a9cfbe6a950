"""The simulator over real sockets: its faults, and client disconnects."""

import anyio
import pytest
from anyio.abc import ByteStream
from memory_stream import MemoryStream, memory_pair
from running_simulator import DONE, STREAM, bare, chat, rig

from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.replies import ERRORS, stream_error
from ape_cerebras.simulator.server import Simulator

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", [*ERRORS, "429", "503"])
async def test_an_error_on_request(name: str) -> None:
    async with rig() as running:
        client = await running.client()
        response = await client.request(chat(STREAM, f"X-Simulate: fault={name}"))
        again = await client.request(chat(STREAM))
    expected = ERRORS[{"429": "requests", "503": "unavailable"}.get(name, name)]
    assert (response.status, response.body) == (expected.status, expected.body)
    assert ("retry-after" in response.headers) == (expected.status == 429)
    assert response.headers["cf-ray"]
    assert again.status == 200


# gemma with 10 tokens, 4 to a chunk: role, 1, 4, 4 and 1 tokens, finish, end mark.
EVENTS = 7
CUT = [
    ("cut", 0, 0, b""),
    ("cut", 3, 3, b""),
    ("cut", 99, EVENTS - 1, b""),
    ("cut_inside", 0, 0, b""),
    ("cut_inside", 3, 2, b"data: {"),
    ("cut_inside", 99, EVENTS - 1, b"data: ["),
]


def whole_events(body: bytes) -> tuple[int, bytes]:
    """The number of whole events, and the bytes after them."""
    *events, rest = body.split(b"\n\n")
    return len(events), rest


@pytest.mark.parametrize(("fault", "at", "whole", "rest"), CUT)
async def test_a_stream_cut_midway(fault: str, at: int, whole: int, rest: bytes) -> None:
    async with rig(tokens=10, tokens_per_chunk=4, fault=fault, at=at) as running:
        response = await running.request(chat(STREAM))
        await running.simulator.until(lambda simulator: simulator.in_flight == 0)
        assert running.simulator.cancelled == 0
        assert running.simulator.truth[0].events_written == whole
    assert response.status == 200
    assert not response.complete
    count, begun = whole_events(response.body)
    assert count == whole
    assert begun.startswith(rest)
    assert bool(begun) == bool(rest)


class Foreign(ByteStream):
    """A foreign byte stream, which takes some event-loop iterations to close."""

    def __init__(self, stream: MemoryStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._stream.close()
        with anyio.CancelScope(shield=True):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("fault", ["cut", "cut_inside", "close"])
async def test_a_cut_is_not_counted_as_a_client_disconnect(fault: str) -> None:
    client, server = memory_pair()
    simulator = Simulator(Simulation(ttft=0.0, rate=0.0, fault=fault))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(simulator.handle, Foreign(server))
        await client.send(chat(STREAM))
    assert simulator.in_flight == 0
    assert simulator.cancelled == 0
    assert not simulator.truth[0].client_disconnected


@pytest.mark.parametrize(("at", "whole"), [(0, 0), (3, 3), (99, EVENTS - 1)])
async def test_a_stream_that_ends_early(at: int, whole: int) -> None:
    async with rig(tokens=10, tokens_per_chunk=4, fault="end", at=at) as running:
        response = await running.request(chat(STREAM))
    assert response.complete
    assert whole_events(response.body) == (whole, b"")
    assert DONE not in response.body


@pytest.mark.parametrize(("at", "whole"), [(0, 0), (1, 0), (3, 2), (99, EVENTS - 1)])
async def test_an_error_event(at: int, whole: int) -> None:
    async with rig(tokens=10, tokens_per_chunk=4, fault="error_event", at=at) as running:
        response = await running.request(chat(STREAM))
    assert response.complete
    assert response.body.endswith(stream_error())
    assert whole_events(response.body) == (whole + 1, b"")


@pytest.mark.parametrize("fault", ["cut", "cut_inside", "end", "error_event"])
async def test_the_same_faults_in_a_plain_reply(fault: str) -> None:
    async with rig(fault=fault) as running:
        response = await running.request(chat())
    if fault == "error_event":
        assert (response.status, response.body) == (500, ERRORS["server_error"].body)
    else:
        assert response.status == 200
        assert response.complete == (fault == "end")
        assert bool(response.body) == (fault == "cut_inside")
        assert not response.body.endswith(b"}")


@pytest.mark.parametrize("fault", ["garbage", "close"])
@pytest.mark.parametrize("request_", [chat(STREAM), bare("GET /v1/models")])
async def test_no_response_at_all(fault: str, request_: bytes) -> None:
    async with rig(fault=fault) as running:
        client = await running.client()
        await client.send(request_)
        response = await client.until_closed()
        await running.simulator.until(lambda simulator: simulator.in_flight == 0)
        assert running.simulator.cancelled == 0
    assert not response.startswith(b"HTTP/")
    assert bool(response) == (fault == "garbage")


@pytest.mark.parametrize(
    "overrides",
    ["fault=silence", "fault=stall, at=1", "ttft=1000", "rate=0.001", "fault=slow_head"],
)
async def test_a_client_disconnect_is_noticed(overrides: str) -> None:
    async with rig() as running:
        client = await running.client()
        await client.send(chat(STREAM, f"X-Simulate: {overrides}"))
        with anyio.fail_after(5):
            await running.simulator.until(lambda simulator: simulator.in_flight == 1)
            if overrides in ("fault=stall, at=1", "rate=0.001"):
                await client.until(b"data: ")
            client.stream.close()
            await running.simulator.until(lambda simulator: simulator.in_flight == 0)
        assert running.simulator.cancelled == 1
        assert running.simulator.truth[0].client_disconnected
