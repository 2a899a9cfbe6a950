"""What a whole process has only one of: its signals, its standard output, its exit status."""

import os
import sys
from collections.abc import Awaitable, Callable

import anyio

from ..downstream.listener import CannotListen
from ..net.event_loop import run_on
from ..telemetry.logs import Logs
from .signals import until_stopped

__all__ = ("report_not_listening", "run_until_stopped", "to_standard_output")


def run_until_stopped(
    work: Callable[[anyio.Event], Awaitable[None]],
    address: str,
    backend: str,
    *,
    hang_ups_held: bool = False,
) -> int:
    """Run ``work`` with an event that the first signal sets, where ``hang_ups_held`` but SIGHUP;
    the exit status. What it cannot listen on is ``address``, where the failure does not say."""
    status = 0
    try:
        run_on(backend, until_stopped, work, hang_ups_held)
    except* OSError as errors:
        report_not_listening(address, errors)
        status = 1
    return status


def report_not_listening(address: str, errors: BaseException) -> None:
    """Log why nothing is served."""
    error = _first_of(errors)
    if isinstance(error, CannotListen):
        address = error.filename
    number = getattr(error, "errno", None) or 0
    reason = os.strerror(number) if number > 0 else "no such address"
    to_standard_output().event("error", "Cannot listen", address=address, reason=reason)


def _first_of(errors: BaseException) -> BaseException:
    """The first of those that came together in groups."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def to_standard_output() -> Logs:
    """What logs while nothing is served, and no thread has to write."""

    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    return Logs("debug", write)
