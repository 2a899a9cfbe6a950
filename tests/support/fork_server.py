"""Processes of the program without the cost of its start: forked from one that has imported it.

A start until it serves takes 0.95 s of CPU, a fork 0.12 (one of two cores, shared). A process that
is forked is one of its own in all that most tests look at: a child of the tests, with arguments,
environment, directory and standard streams, and with Python's hooks as they are at its start. Where
the start itself, the environment that the kernel shows, what is imported, or what else a process
inherits (signals that are ignored, limits) is the subject, a test starts a process instead.

Run as a program, this is the process that forks.
"""

import atexit
import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

__all__ = ("CAN_FORK", "ForkedProcess")

_CLONE_PARENT = 0x8000  # linux/sched.h
_CLONE = {"x86_64": 56, "aarch64": 220}  # its number, in asm/unistd.h
CAN_FORK = sys.platform == "linux" and platform.machine() in _CLONE

_MESSAGE_BYTES = 2**17
_STANDARD_STREAMS = 3
_one_at_a_time = threading.Lock()


class ForkedProcess(subprocess.Popen[Any]):
    """A process that runs a program's text, instead of a command."""

    def _execute_child(
        self,
        args: list[str],
        executable: object,
        preexec: object,
        close_fds: object,
        pass_fds: object,
        cwd: str | None,
        env: dict[str, str] | None,
        startup: object,
        flags: object,
        shell: object,
        *rest: int,
    ) -> None:
        pipes = rest[:6]
        own = (pipes[0], pipes[3], pipes[5])
        streams = [mine if mine != -1 else number for number, mine in enumerate(own)]
        program, *arguments = args
        wanted = {
            "program": program,
            "arguments": arguments,
            "environment": dict(os.environ if env is None else env),
            "directory": os.getcwd() if cwd is None else cwd,
        }
        with _one_at_a_time:
            server = _server()
            socket.send_fds(server, [json.dumps(wanted).encode()], streams)
            self.pid = int(server.recv(_MESSAGE_BYTES))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


@cache
def _server() -> socket.socket:
    """The connection to a server that ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = theirs.fileno()
    with theirs:
        command = (sys.executable, __file__, str(number))
        process = subprocess.Popen(command, pass_fds=(number,), stdin=subprocess.DEVNULL)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each message. Returns in each child what it is to be, and None at the end."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, _STANDARD_STREAMS)
        if not message:
            return None
        child = _fork()
        if not child:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.closerange(_STANDARD_STREAMS, max(streams) + 1)
            wanted: dict[str, Any] = json.loads(message)
            return wanted
        for stream in streams:
            os.close(stream)
        connection.send(b"%d" % child)


def _fork() -> int:
    """``os.fork``, but for the child's parent, which is that of this process: who wants the child
    waits for it himself."""
    ctypes.pythonapi.PyOS_BeforeFork()
    flags = _CLONE_PARENT | signal.SIGCHLD
    child = ctypes.pythonapi.syscall(_CLONE[platform.machine()], flags, 0, 0, 0, 0)
    if child:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return int(child)


def _become(wanted: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["directory"])
    sys.argv = ["ape-cerebras", *wanted["arguments"]]
    sys.path[0] = ""
    # The one that is there has looked at what was standard output when this process began.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - to the end
    exec(wanted["program"], {"__name__": "__main__"})


def _main() -> None:
    import ape_cerebras.commands
    import ape_cerebras.server
    import ape_cerebras.simulator.command
    import ape_cerebras.simulator.server  # noqa: F401

    with suppress(KeyboardInterrupt), socket.socket(fileno=int(sys.argv[1])) as connection:
        wanted = _serve(connection)
        connection.detach()
    if wanted is not None:
        _become(wanted)


if __name__ == "__main__":
    _main()
