"""Waiting until all other tasks wait."""

import anyio
import anyio.lowlevel
import pytest
from waiting import TIMEOUT, wait_all_tasks_blocked

pytestmark = pytest.mark.anyio


async def test_a_task_that_wakes_again_and_again_does_not_hold_it_up() -> None:
    """One that begins to sleep just after somebody has looked at it, and sleeps as long as anyio's
    function on asyncio does between two looks."""

    async def wake_again_and_again() -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        while True:  # noqa: ASYNC110 - the sleeps are the subject
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wake_again_and_again)
        with anyio.fail_after(TIMEOUT):
            await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_whoever_can_run_has_run() -> None:
    passed = 0

    async def run() -> None:
        nonlocal passed
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
            passed += 1
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await wait_all_tasks_blocked()
        assert passed == 5
        tasks.cancel_scope.cancel()
