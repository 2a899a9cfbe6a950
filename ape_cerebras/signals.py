"""Ending when the system says so: a process's signals as events."""

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

__all__ = ("unless_stopped", "until_stopped")

_T = TypeVar("_T")
# Their default would be a silent death. SIGPIPE is ignored by Python itself.
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2)


async def until_stopped(work: Callable[[anyio.Event], Awaitable[None]]) -> None:
    """Run ``work`` with an event that the first signal sets; end it at the second."""
    stop = anyio.Event()

    async def watch_signals() -> None:
        with anyio.open_signal_receiver(*_ending_signals(), *_IGNORED) as signals:
            async for number in signals:
                if number in _IGNORED:
                    continue
                if stop.is_set():
                    break
                stop.set()
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_signals)
        await work(stop)
        tasks.cancel_scope.cancel()


async def unless_stopped(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """What ``work`` returns; None where a signal came before. What it has started is ended then."""
    result = None

    async def end_at_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(aiter(signals))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_at_signal)
        result = await work()
        tasks.cancel_scope.cancel()
    return result


def _ending_signals() -> tuple[signal.Signals, ...]:
    """A terminal that closes is a reason to end like any other, but for ``nohup``."""
    stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    always = (signal.SIGTERM, signal.SIGINT)
    return always if stays else (*always, signal.SIGHUP)
