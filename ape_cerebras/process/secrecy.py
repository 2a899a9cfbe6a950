"""What a process keeps to itself, because its memory holds keys: no core file, no debugger.

For a process that is all ours, the command line's; who embeds a proxy decides for himself. Forked
workers inherit both.
"""

import ctypes
import resource
import sys

__all__ = ("forbid_dumps",)

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_dumps() -> None:
    """Leave no core file, whatever happens.

    The limit keeps the kernel from writing a file, but not from feeding a program (a pipe in
    core_pattern), and can be raised again from outside. On Linux the process is also not dumpable
    (prctl(2), PR_SET_DUMPABLE): no core at all, and its memory, environment and descriptors are
    closed to all other processes of the same user. Debuggers, and profilers like py-spy, then have
    to be root's.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
