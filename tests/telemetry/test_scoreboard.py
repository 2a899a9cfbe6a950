"""The scoreboard of the workers: its numbers, and which worker has more connections than others."""

import pytest

from ape_cerebras.telemetry.multiprocess import Scoreboard


def scoreboard_of(*connections: int | None) -> Scoreboard:
    """The scoreboard of workers with so many connections; None is a worker that does not serve."""
    scoreboard = Scoreboard(len(connections))
    for number, count in enumerate(connections, 1):
        if count is not None:
            scoreboard.mark_up(number)
            scoreboard.set_connections(number, count)
    return scoreboard


def test_a_new_scoreboard_is_empty() -> None:
    scoreboard = Scoreboard(3)
    assert (scoreboard.workers, scoreboard.up, scoreboard.restarts) == (3, 0, 0)
    assert not scoreboard.has_served
    assert not scoreboard.must_end_now()


def test_workers_and_restarts_are_counted() -> None:
    scoreboard = scoreboard_of(0, None, 0)
    assert scoreboard.up == 2
    scoreboard.mark_down(1)
    scoreboard.mark_down(3)
    assert (scoreboard.up, scoreboard.has_served) == (0, True)
    scoreboard.count_restart()
    scoreboard.count_restart()
    scoreboard.end_now()
    assert (scoreboard.restarts, scoreboard.must_end_now()) == (2, True)


@pytest.mark.parametrize(
    ("connections", "more"),
    [
        ((0, 0), ()),
        ((4, 4), ()),
        ((5, 4), (1,)),
        ((4, 5), (2,)),
        ((3, 9, 4), (2, 3)),
        ((5, None), ()),
        ((5, None, 4), (1,)),
        ((5,), ()),
    ],
)
def test_a_worker_compares_its_connections_with_serving_workers_only(
    connections: tuple[int | None, ...], more: tuple[int, ...]
) -> None:
    scoreboard = scoreboard_of(*connections)
    serving = [n for n, count in enumerate(connections, 1) if count is not None]
    assert tuple(number for number in serving if scoreboard.has_more_connections(number)) == more


def test_the_connections_of_a_dead_worker_are_forgotten() -> None:
    scoreboard = scoreboard_of(7, 3)
    scoreboard.mark_down(1)
    scoreboard.mark_up(1)
    assert not scoreboard.has_more_connections(1)
    assert scoreboard.has_more_connections(2)
