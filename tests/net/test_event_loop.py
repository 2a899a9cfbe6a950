"""The event loop by name, and long work that yields to it."""

import anyio
import anyio.lowlevel
import pytest

from ape_cerebras.config.values import BACKENDS
from ape_cerebras.net.event_loop import current_backend, run_on, yield_shielded


async def seen(*arguments: int) -> tuple[str, tuple[int, ...]]:
    return current_backend(), arguments


@pytest.mark.parametrize("backend", BACKENDS)
def test_work_runs_on_the_named_backend(backend: str) -> None:
    assert run_on(backend, seen, 1, 2) == (backend, (1, 2))


@pytest.mark.anyio
async def test_other_tasks_run_while_long_work_yields() -> None:
    done: list[str] = []

    async def go_on() -> None:
        for number in range(2):
            done.append(f"other {number}")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        for number in range(3):
            done.append(f"step {number}")
            await yield_shielded()
    assert sorted(done) == ["other 0", "other 1", "step 0", "step 1", "step 2"]
    assert done.index("other 0") < done.index("step 2")


@pytest.mark.anyio
async def test_a_shielded_yield_is_not_cancelled() -> None:
    steps = 0
    with anyio.CancelScope() as scope:
        scope.cancel()
        for _ in range(3):
            await yield_shielded()
            steps += 1
        await anyio.lowlevel.checkpoint()
    assert steps == 3
    assert scope.cancelled_caught
