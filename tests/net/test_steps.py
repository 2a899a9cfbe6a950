"""Turns for the event loop in long work."""

from collections.abc import Generator

import anyio
import anyio.lowlevel
import pytest

from ape_cerebras.net.steps import run_in_steps, yield_shielded

pytestmark = pytest.mark.anyio


async def test_others_go_on_between_two_steps() -> None:
    done: list[str] = []

    def work() -> Generator[None, None, str]:
        for number in range(3):
            done.append(f"step {number}")
            yield
        return "result"

    async def go_on() -> None:
        for number in range(2):
            done.append(f"other {number}")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        assert await run_in_steps(work()) == "result"
    assert sorted(done) == ["other 0", "other 1", "step 0", "step 1", "step 2"]
    assert done.index("other 0") < done.index("step 2")


async def test_work_ends_where_it_is_cancelled() -> None:
    def work() -> Generator[None, None, None]:
        while True:
            yield

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_steps(work())
    assert scope.cancelled_caught


async def test_what_has_to_come_to_its_end_does() -> None:
    steps = 0
    with anyio.CancelScope() as scope:
        scope.cancel()
        for _ in range(3):
            await yield_shielded()
            steps += 1
        await anyio.lowlevel.checkpoint()
    assert steps == 3
    assert scope.cancelled_caught
