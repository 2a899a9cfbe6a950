"""Debian's redis-server, started for a test on a port of its own, killed and started again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from end_to_end import free_port

__all__ = ("PASSWORD", "RedisServer", "redis_server")

PASSWORD = "password-of-the-store"


class RedisServer:
    """It writes every change to disk before it responds, so that a kill loses nothing."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Return when it takes connections."""
        options = ("--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD)
        kept = ("--dir", str(self._directory), "--appendonly", "yes", "--appendfsync", "always")
        self._process = subprocess.Popen(
            ("redis-server", *options, *kept), stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        pytest.fail("redis-server does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """One that runs; the test is skipped where there is none to be run, but not by CI."""
    if shutil.which("redis-server") is None:
        missing = "redis-server is missing: apt-get install redis-server"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    server = RedisServer(directory)
    try:
        yield server
    finally:
        server.kill()
