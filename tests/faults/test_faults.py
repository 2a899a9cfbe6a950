"""Every fault that a hostile network can cause, as a table in the order of the list (A request
line, B fields, C Host, D framing, E chunks, F deadlines, G connections, H keys, I bodies, J the way
upstream, K its responses, L streams, M process, N limits, O the surroundings of the process), on
both event loops and over real sockets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from cases_a_to_d import CASES as A_TO_D
from cases_e_f import CASES as E_F
from cases_g import CASES as G
from cases_h import CASES as H
from cases_i_j import CASES as I_J
from cases_k import CASES as K
from cases_l import CASES as L
from cases_m import CASES as M
from cases_n import CASES as N
from cases_o import CASES as O
from fault_bench import Bench, Case, benched
from fault_player import assert_no_new_series, play_case

pytestmark = pytest.mark.faults

CASES = [*A_TO_D, *E_F, *G, *H, *I_J, *K, *L, *M, *N, *O]


@pytest.fixture(scope="module")
def play(loop: tuple[str, dict[str, Any]]) -> Iterator[Callable[[Case], None]]:
    """Plays a case in an event loop that goes on, with one proxy for each choice of settings."""
    benches: dict[tuple[tuple[str, str], ...], Bench] = {}
    authority = trustme.CA()
    with start_blocking_portal(*loop) as portal, ExitStack() as stack:

        def on_its_bench(case: Case) -> None:
            settings = tuple(case.settings.items())
            if settings not in benches:
                bench = portal.wrap_async_context_manager(benched(case.settings, authority))
                benches[settings] = stack.enter_context(bench)
            portal.call(play_case, benches[settings], case)

        yield on_its_bench
        for bench in benches.values():
            portal.call(assert_no_new_series, bench)


@pytest.mark.parametrize("case", [case for case in CASES if case.once], ids=lambda case: case.id)
def test_fault_before_an_event_loop(case: Case) -> None:
    assert case.process is not None
    case.process("asyncio")


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.once], ids=lambda case: case.id
)
def test_fault(case: Case, backend: str, play: Callable[[Case], None]) -> None:
    if case.needs:
        pytest.skip(f"needs {case.needs}")
    if case.process is not None:
        case.process(backend)
    else:
        play(case)


def test_the_table_is_whole_and_in_order() -> None:
    """Every number of the list is there, and no row twice."""
    last = {"A": 28, "B": 17, "C": 5, "D": 18, "E": 13, "F": 9, "G": 20, "H": 18, "I": 12}
    last |= {"J": 8, "K": 22, "L": 16, "M": 13, "N": 6, "O": 8}
    numbers = [(case.id[0], int(case.id[1:].split()[0])) for case in CASES]
    assert list(dict.fromkeys(numbers)) == [
        (letter, number) for letter, count in last.items() for number in range(1, count + 1)
    ]
    assert numbers == sorted(numbers)
    assert len({case.id for case in CASES}) == len(CASES)
