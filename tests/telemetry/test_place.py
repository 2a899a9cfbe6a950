"""The board of the workers: what stands on it, and who is ahead of the others."""

import pytest

from ape_cerebras.telemetry.place import Board


def board_of(*connections: int | None) -> Board:
    """Of workers with so many connections; None is one that does not serve."""
    board = Board(len(connections))
    for number, count in enumerate(connections, 1):
        if count is not None:
            board.set_up(number)
            board.set_open(number, count)
    return board


def test_a_new_board_is_empty() -> None:
    board = Board(3)
    assert (board.workers, board.up, board.restarts) == (3, 0, 0)
    assert not board.was_up
    assert not board.is_hurried()


def test_what_is_put_up_stands_there() -> None:
    board = board_of(0, None, 0)
    assert board.up == 2
    board.set_down(1)
    board.set_down(3)
    assert (board.up, board.was_up) == (0, True)
    board.count_restart()
    board.count_restart()
    board.hurry()
    assert (board.restarts, board.is_hurried()) == (2, True)


@pytest.mark.parametrize(
    ("connections", "ahead"),
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
def test_who_has_more_connections_than_another_that_serves_is_ahead(
    connections: tuple[int | None, ...], ahead: tuple[int, ...]
) -> None:
    board = board_of(*connections)
    serving = [n for n, count in enumerate(connections, 1) if count is not None]
    assert tuple(number for number in serving if board.is_ahead(number)) == ahead


def test_the_connections_of_one_that_is_gone_are_nobodys() -> None:
    board = board_of(7, 3)
    board.set_down(1)
    board.set_up(1)
    assert not board.is_ahead(1)
    assert board.is_ahead(2)
