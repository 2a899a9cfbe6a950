"""Ending when the system says so: a process's signals as events."""

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

__all__ = (
    "IGNORED",
    "at_each_hang_up",
    "ending_signals",
    "hold_hang_ups",
    "unless_stopped",
    "until_stopped",
    "until_told",
)

_T = TypeVar("_T")
# Their default would be a silent death. SIGPIPE is ignored by Python itself.
IGNORED = (signal.SIGUSR1, signal.SIGUSR2)


async def until_stopped(
    work: Callable[[anyio.Event], Awaitable[None]], hang_ups_held: bool = False
) -> None:
    """Run ``work`` with an event that the first signal sets; end it at the second."""
    stop = anyio.Event()
    await _work_until(work, stop, ending_signals(hang_ups_held), stop.is_set)


async def until_told(
    work: Callable[[anyio.Event], Awaitable[None]], lifeline: int, is_hurried: Callable[[], bool]
) -> None:
    """Run ``work`` with an event that SIGTERM sets, or the end of ``lifeline``, a pipe; end it at a
    SIGTERM when it ``is_hurried``."""
    stop = anyio.Event()

    async def watch_lifeline() -> None:
        await anyio.wait_readable(lifeline)
        stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_lifeline)
        await _work_until(work, stop, (signal.SIGTERM,), is_hurried)
        tasks.cancel_scope.cancel()


async def _work_until(
    work: Callable[[anyio.Event], Awaitable[None]],
    stop: anyio.Event,
    ending: tuple[signal.Signals, ...],
    is_last: Callable[[], bool],
) -> None:
    """A signal of ``ending`` sets ``stop``, and ends ``work`` if it ``is_last``."""

    async def watch_signals() -> None:
        with anyio.open_signal_receiver(*ending, *IGNORED) as signals:
            async for number in signals:
                if number in IGNORED:
                    continue
                if is_last():
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


def ending_signals(hang_ups_held: bool = False) -> tuple[signal.Signals, ...]:
    """A terminal that closes is a reason to end like any other, but for ``nohup``; and where SIGHUP
    asks for something else."""
    stays = hang_ups_held or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    always = (signal.SIGTERM, signal.SIGINT)
    return always if stays else (*always, signal.SIGHUP)


def hold_hang_ups() -> None:
    """Have SIGHUP wait for ``at_each_hang_up``, also in processes that are forked from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Elsewhere than on Linux one that is ignored may be gone at once.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def at_each_hang_up(work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work`` for each SIGHUP that has been held, or comes."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        async for _ in signals:
            await work()
