"""The scoreboard of the workers: its numbers, and how each worker sees the others."""

from ape_cerebras.telemetry.multiprocess import Scoreboard, WorkerState


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


def test_a_worker_sees_the_others_that_accept_connections() -> None:
    scoreboard = scoreboard_of(4, 5, None, 6)
    scoreboard.tick(4)
    assert scoreboard.connections(1) == 4
    assert scoreboard.others(1) == {2: WorkerState(5, 0), 4: WorkerState(6, 1)}
    assert scoreboard.others(3) == {
        1: WorkerState(4, 0),
        2: WorkerState(5, 0),
        4: WorkerState(6, 1),
    }
    scoreboard.set_accepting(4, False)
    assert scoreboard.others(1) == {2: WorkerState(5, 0)}
    scoreboard.set_accepting(4, True)
    assert set(scoreboard.others(1)) == {2, 4}


def test_the_connections_of_a_dead_worker_are_forgotten() -> None:
    scoreboard = scoreboard_of(7, 3)
    scoreboard.mark_down(1)
    assert scoreboard.others(2) == {}
    scoreboard.mark_up(1)
    assert scoreboard.others(2) == {1: WorkerState(0, 0)}
