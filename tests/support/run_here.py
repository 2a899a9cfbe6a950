"""A command in the process of the tests: its exit status, and what it prints. For commands that
print and end, where the process is not the subject: starting Python, and the imports, take half a
second of CPU, their work a millisecond."""

import os
import signal
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
from key_leaks import check_for_keys
from server_process import environment

from ape_cerebras.commands import run_command

__all__ = ("run_here",)


def run_here(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Like ``server_process.run``, and looked through for keys as the output of a process is."""
    output, errors = StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            status = run_command([*arguments])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    for text in (output.getvalue(), errors.getvalue()):
        check_for_keys(text.encode())
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
