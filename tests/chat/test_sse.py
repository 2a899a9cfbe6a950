"""The event reader against an oracle written from the WHATWG text, however a stream is cut."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import BOM, dispatched_by_the_standard
from recorded_streams import TEXT, TEXT_PAYLOADS, TOOL_CALL, TOOL_CALL_PAYLOADS

from ape_cerebras.chat import sse
from ape_cerebras.chat.sse import END_OF_BODY, EventReader

FRAGMENTS = (
    *(b"data: ", b"data:", b"data", b"DATA: ", b" data: ", b"event: x", b"id: 7", b"retry: 1"),
    *(b"event: error", b"event:error", b"event", b'{"error":1}', b"event: error\ndata: {}\n\n"),
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"\r\n\r\n",
        b"data: a\n\n",
        b"data: b\n\ndata: c\n\n",
    ),
    *(b":", b": ping", b" ", b"{}", b"[DONE]", b"a" * 40, BOM, "é".encode(), "😀".encode()),
    *(b"\xf0", b"\x9f", b"\xef\xbb", b"\xbf", b"\x85", b"\x0b", b"\x0c", b"\x1c", b"\0"),
)
streams = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=30).map(b"".join)
# Most of these begin and end so that the reader's fast path takes them, and some do not.
odd = st.sampled_from(FRAGMENTS)
events = st.builds(
    lambda start, inside, end: start + inside + end,
    st.sampled_from([b"data: "] * 8 + [b"data:", b"", BOM + b"data: ", b"\n"]),
    st.sampled_from([b"a", b"{}", b"[DONE]", b"data: ", b"", BOM]) | odd,
    st.sampled_from([b"\n\n"] * 8 + [b"\n", b"\r\n\r\n", b"\r", b""]),
)
streams |= st.lists(events, max_size=8).map(b"".join)
cuts = st.lists(st.integers(0, 300), max_size=12)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(place, len(stream)) for place in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(bounds)]


@settings(max_examples=600)
@given(streams, cuts)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(30)))
@example(BOM + b"data: a\n\n", [1, 2, 3])
@example(BOM + BOM + b"data: a\n\n", [3])
@example(b"data: a\r", [])
@example(b"data: a\n\r\n\ndata: b\n\n", [9, 10])
@example(b"data: a\n\n" + BOM + b"data: b\n\n", [])
@example(b"data: a\n\n" + BOM + b"data: b\n\n", [9])
@example(b"data: a\rdata: b\n\n", [])
@example(b"\n" + BOM + b"data: a\n\n", [])
@example(b"data: a\n\n: ping\n\n", [])
@example(b"data: \n\ndata: a\n\n", [])
def test_any_chunking_gives_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    reader = EventReader()
    got = [payload for piece in pieces(stream, cuts) for payload in reader.feed(piece)]
    dispatched, at_boundary = dispatched_by_the_standard(stream)
    assert got == dispatched
    assert reader.at_boundary == at_boundary


@settings(max_examples=600)
@given(streams, cuts, st.integers(1, 50))
@example(b":" + b"x" * 60 + b"\ndata: a\n\n", [], 5)
@example(b"event: " + b"x" * 60 + b"\ndata: a\n\n", [20], 5)
@example(b"data: abcdef\n\ndata: abc\n\n", [3], 5)
@example(BOM + b"data: abcdef\n\n", [], 5)
@example(b"data: a\n" * 3 + b"\n", [5], 5)
@example(b"data: a\n" * 4 + b"\ndata: b\n\n", [5], 5)
def test_only_payloads_that_are_too_long_are_dropped(
    stream: bytes, cuts: list[int], most: int
) -> None:
    reader = EventReader(max_event_bytes=most)
    got = [payload for piece in pieces(stream, cuts) for payload in reader.feed(piece)]
    dispatched, at_boundary = dispatched_by_the_standard(stream, most)
    assert got == dispatched
    assert reader.at_boundary == at_boundary


@pytest.mark.parametrize(
    ("stream", "count"), [(TEXT, TEXT_PAYLOADS), (TOOL_CALL, TOOL_CALL_PAYLOADS)]
)
@pytest.mark.parametrize("step", [1, 2, 7, 64, 250, 100_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_recorded_streams(stream: bytes, count: int, step: int, line_end: bytes) -> None:
    sent = stream.replace(b"\n", line_end)
    reader = EventReader()
    got = []
    for begin in range(0, len(sent), step):
        got += reader.feed(sent[begin : begin + step])
    assert got == [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line]
    assert len(got) == count
    assert got[-1] == b"[DONE]"
    assert all(orjson.loads(each)["object"] == "chat.completion.chunk" for each in got[:-1])
    assert reader.at_boundary


@pytest.mark.parametrize(
    ("stream", "payload"),
    [
        (b'event: error\ndata: {"message":"no"}\n\n', b'{"error":{"message":"no"}}'),
        (b'data: {"message":"no"}\nevent:error\n\n', b'{"error":{"message":"no"}}'),
        (b'event: error\ndata: {"error":"no"}\n\n', b'{"error":"no"}'),
        (b"event: error\ndata: not JSON\n\n", b'{"error":"not JSON"}'),
        (b"event: error\ndata: \xff\n\n", '{"error":"\ufffd"}'.encode()),
        (b"event: error\ndata: {}\n\n", b'{"error":"error"}'),
        (b"event: error\n\n", b'{"error":"error"}'),
        (b"event: error\nevent: message\ndata: {}\n\n", b"{}"),
        (b"event: errors\ndata: {}\n\n", b"{}"),
        (b"event: error\n\ndata: {}\n\n", b'{"error":"error"}{}'),
    ],
)
def test_an_event_of_type_error_is_an_error_object(stream: bytes, payload: bytes) -> None:
    assert b"".join(EventReader().feed(stream)) == payload


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r"])
def test_the_end_of_the_body_ends_the_last_event_once(end: bytes) -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: b" + end) + reader.feed(END_OF_BODY) == [b"a", b"b"]


def test_a_payload_is_returned_with_the_byte_that_ends_its_event() -> None:
    reader = EventReader()
    came_at = [at for at, byte in enumerate(TEXT) if reader.feed(bytes([byte]))]
    assert came_at == [at + 1 for at in range(len(TEXT)) if TEXT[at : at + 2] == b"\n\n"]


@pytest.mark.parametrize(
    ("stream", "at_boundary"),
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\r\n\r", True),  # the LF that follows ends nothing
        (b"data: a\r\r", True),
        (b": ping\n", True),
        (b": ping", False),
        (b"data: a\n", False),
        (b"data: a\r\n", False),
        (b"data: a", False),
        (b"event: x\n", False),
        (b"data\n", False),
        (b"data: a\n\nd", False),
    ],
)
def test_at_boundary(stream: bytes, at_boundary: bool) -> None:
    whole, by_byte = EventReader(), EventReader()
    whole.feed(stream)
    for byte in stream:
        by_byte.feed(bytes([byte]))
    assert whole.at_boundary == by_byte.at_boundary == at_boundary


@contextmanager
def bytes_kept() -> Iterator[Callable[[], int]]:
    """Bytes that the reader's module has allocated and not freed; not what other threads of the
    tests, or finalizers of earlier ones, allocate meanwhile."""
    ours = tracemalloc.Filter(inclusive=True, filename_pattern=str(sse.__file__))
    tracemalloc.start()
    try:
        yield lambda: sum(
            each.size for each in tracemalloc.take_snapshot().filter_traces([ours]).traces
        )
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opening", [b"data: ", b": ", b"event: ", b""])
def test_an_endless_line_takes_no_memory_and_the_next_event_is_read(opening: bytes) -> None:
    reader = EventReader(max_event_bytes=1000)
    chunk = b"x" * 65_536
    with bytes_kept() as kept:
        assert reader.feed(opening) == []
        assert not any(reader.feed(chunk) for _ in range(500))
        assert kept() < 10_000
    assert not reader.at_boundary
    assert reader.feed(b"\n\ndata: next\n\n") == [b"next"]


def test_by_default_an_event_may_have_4_mib() -> None:
    longest = b"x" * 4 * 2**20
    for cut in ([], [7]):
        reader = EventReader()
        stream = b"data: %s\n\ndata: %sx\n\n" % (longest, longest)
        assert [got for piece in pieces(stream, cut) for got in reader.feed(piece)] == [longest]


def test_endless_data_lines_take_no_memory() -> None:
    reader = EventReader(max_event_bytes=1000)
    with bytes_kept() as kept:
        assert not any(reader.feed(b"data\n" * 1000) for _ in range(40))
        assert kept() < 10_000
    assert reader.feed(b"\ndata: next\n\n") == [b"next"]


def test_a_long_event_in_small_pieces() -> None:
    """About 0.03 s; with a copy of all that came before for each piece it would be minutes."""
    event = b"data: " + b"x" * 2**20 + b"\n\n"
    reader = EventReader()
    got = [
        payload for at in range(0, len(event), 64) for payload in reader.feed(event[at : at + 64])
    ]
    assert got == [event[6:-2]]
