"""The writer of log lines over real pipes: read, stalled, closed, and closed in mid-line."""

import fcntl
import os
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import TIMEOUT

from ape_cerebras.telemetry.logs import LineWriter

PIPE_BYTES = 4096
LINES = [b"%07d %s\n" % (number, b"x" * 52) for number in range(30_000)]


class Pipe:
    """A small pipe; ``read_all`` reads up to its end in a thread."""

    def __init__(self) -> None:
        self.source, self.sink = os.pipe()
        fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._open = {self.source, self.sink}
        self.received = bytearray()
        self._reader = threading.Thread(target=self._read)

    def start_reading(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        while chunk := os.read(self.source, 65_536):
            self.received += chunk

    def end(self) -> list[bytes]:
        """Close the writing end; return the lines read."""
        self.close(self.sink)
        if self._reader.ident is None:
            self.start_reading()
        self._reader.join()
        self.close(self.source)
        return bytes(self.received).splitlines(keepends=True)

    def close(self, *descriptors: int) -> None:
        for descriptor in self._open.intersection(descriptors):
            self._open.discard(descriptor)
            os.close(descriptor)

    @property
    def is_full(self) -> bool:
        unread = fcntl.ioctl(self.source, termios.FIONREAD, b"\0" * 4)
        return bool(struct.unpack("i", unread)[0] == PIPE_BYTES)


def test_the_thread_survives_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody expects a MemoryError, say; the line is lost, and counted."""
    path = tmp_path / "log"
    with path.open("wb") as file, LineWriter(file.fileno()) as writer:
        monkeypatch.setattr(os, "write", fail)
        writer(b"lost\n")
        wait_until(lambda: writer.dropped)
        monkeypatch.undo()
        writer(b"written\n")
    assert path.read_bytes() == b"written\n"
    assert writer.dropped == 1


def fail(*_: object) -> int:
    raise MemoryError


def wait_until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < ends_at
        os.sched_yield()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close(made.source, made.sink)


def test_lines_are_written_whole_and_in_order(pipe: Pipe) -> None:
    pipe.start_reading()
    with LineWriter(pipe.sink) as writer:
        for line in LINES[:9_000]:
            writer(line)
    assert writer.dropped == 0
    assert pipe.end() == LINES[:9_000]


def test_nothing_is_lost_at_exit(pipe: Pipe) -> None:
    for number in range(20):
        with LineWriter(pipe.sink) as writer:
            writer(LINES[number])
    assert pipe.end() == LINES[:20]


def test_lines_written_before_the_thread_runs_are_kept(pipe: Pipe) -> None:
    writer = LineWriter(pipe.sink)
    writer(LINES[0])
    with writer:
        pass
    assert pipe.end() == LINES[:1]


def test_a_stalled_pipe_drops_lines_and_blocks_nobody(pipe: Pipe) -> None:
    with LineWriter(pipe.sink) as writer:
        for line in LINES:
            writer(line)
        # The writer's batch and its queue are bounded; the other lines were dropped at once.
        dropped = writer.dropped
        assert dropped >= len(LINES) - 2 * 10_000 - PIPE_BYTES // len(LINES[0]) - 1
        pipe.start_reading()
    assert writer.dropped == dropped
    received = pipe.end()
    assert len(received) + dropped == len(LINES)
    assert received == sorted(received)
    assert set(received) <= set(LINES)


def test_a_non_blocking_pipe_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.sink, False)
    with LineWriter(pipe.sink) as writer:
        for line in LINES[:9_000]:
            writer(line)
        wait_until(lambda: pipe.is_full)
        pipe.start_reading()
    assert writer.dropped == 0
    assert pipe.end() == LINES[:9_000]


def test_a_closed_pipe_drops_lines(pipe: Pipe) -> None:
    pipe.close(pipe.source)
    with LineWriter(pipe.sink) as writer:
        for line in LINES[:100]:
            writer(line)
    assert writer.dropped == 100


def test_an_invalid_descriptor_drops_lines() -> None:
    with LineWriter(-1) as writer:
        writer(LINES[0])
    assert writer.dropped == 1


def test_a_full_disk_drops_lines() -> None:
    with Path("/dev/full").open("wb") as full, LineWriter(full.fileno()) as writer:
        writer(LINES[0])
        writer(LINES[1])
        wait_until(lambda: writer.dropped == 2)
    assert writer.dropped == 2


def test_a_line_cut_midway_does_not_garble_the_next(pipe: Pipe) -> None:
    second = Pipe()
    whole = PIPE_BYTES // len(LINES[0])
    writer = LineWriter(pipe.sink)
    for line in LINES[:100]:
        writer(line)
    with writer:
        wait_until(lambda: pipe.is_full)
        pipe.close(pipe.source)
        wait_until(lambda: writer.dropped)
        assert writer.dropped == 100 - whole
        os.dup2(second.sink, pipe.sink)  # the output is back
        writer(LINES[100])
        writer(LINES[101])
    assert writer.dropped == 100 - whole
    pipe.close(pipe.sink)
    assert second.end() == [b"\n", LINES[100], LINES[101]]


def test_writers_that_share_a_pipe_keep_lines_whole(pipe: Pipe) -> None:
    whose = (b"first ", b"second ")
    writers = [LineWriter(pipe.sink, shared=True) for _ in whose]
    for writer, name in zip(writers, whose, strict=True):
        for line in LINES[:3_000]:
            writer(name + line)
    with writers[0], writers[1]:
        pipe.start_reading()
    received = pipe.end()
    for name in whose:
        kept = [line for line in received if line.startswith(name)]
        assert kept == [name + line for line in LINES[:3_000]]


def test_a_line_longer_than_the_pipe_buffer_is_written(pipe: Pipe) -> None:
    lines = [b"short\n", b"x" * 3 * PIPE_BYTES + b"\n", b"short\n"]
    pipe.start_reading()
    with LineWriter(pipe.sink, shared=True) as writer:
        for line in lines:
            writer(line)
    assert pipe.end() == lines
