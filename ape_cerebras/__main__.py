"""The command line ``ape-cerebras``, also ``python -m ape_cerebras``: see ``commands``.

Whoever may look into a process sees its environment, and the keys in it, from its first moment
(/proc/PID/environ). So the process is closed before anything else is done, and only then are the
commands imported, which takes most of a second.
"""

import sys
from collections.abc import Sequence

from .process.hardening import (
    end_now,
    ends_with_its_reader,
    forbid_core_dumps,
    report_crashes,
    show_any_text,
)

__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    forbid_core_dumps()
    report_crashes()
    show_any_text()
    from .commands import run_command

    status = 0
    with ends_with_its_reader():
        status = run_command(sys.argv[1:] if arguments is None else list(arguments))
    end_now(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
