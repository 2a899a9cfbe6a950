"""Which cases of a test run on which event loop."""

import sys

import pytest

TESTS = """
import pytest

pytestmark = pytest.mark.anyio
in_turn = pytest.mark.loops_in_turn

@pytest.mark.parametrize("a", [1, 2])
async def test_unmarked(a): pass

@in_turn
@pytest.mark.parametrize("a", [1, 2, 3])
@pytest.mark.parametrize("b", ["x", "y"])
async def test_two(a, b): pass

@in_turn
async def test_of_one_case(): pass

@in_turn
@pytest.mark.parametrize("a", [1, 2, 3])
def test_without_a_loop(a): pass

@in_turn
@pytest.mark.parametrize("a", [1, 2, 3])
def test_of_a_process(a, backend): pass
"""
EACH = [f"test_without_a_loop[{a}]" for a in (1, 2, 3)]


EXPECTED = {
    "asyncio,trio": [
        *(f"test_unmarked[{loop}-{a}]" for loop in ("asyncio", "trio") for a in (1, 2)),
        *("test_two[asyncio-x-1]", "test_two[asyncio-x-3]", "test_two[asyncio-y-2]"),
        *("test_two[trio-x-2]", "test_two[trio-y-1]", "test_two[trio-y-3]"),
        *("test_of_one_case[asyncio]", "test_of_one_case[trio]"),
        *EACH,
        *("test_of_a_process[asyncio-1]", "test_of_a_process[asyncio-3]"),
        "test_of_a_process[trio-2]",
    ],
    "trio": [
        *(f"test_unmarked[trio-{a}]" for a in (1, 2)),
        *(f"test_two[trio-{b}-{a}]" for b in "xy" for a in (1, 2, 3)),
        "test_of_one_case[trio]",
        *EACH,
        *(f"test_of_a_process[trio-{a}]" for a in (1, 2, 3)),
    ],
}
# Both collections in one process: what a conftest imports takes most of its time.
COLLECT = """
import sys

import pytest

for loops in sys.argv[1:]:
    print("loops", loops)
    pytest.main(["--collect-only", "--quiet", "--loops", loops])
"""


def test_cases_take_the_loops_in_turn(
    pytester: pytest.Pytester, request: pytest.FixtureRequest
) -> None:
    own = request.config.rootpath
    pytester.makeini(
        f"[pytest]\npythonpath = {own}/tests/support\nmarkers =\n    loops_in_turn: a\n"
        "    every_loop: b\n"
    )
    pytester.makepyfile(TESTS)
    pytester.makeconftest((own / "tests" / "conftest.py").read_text())
    result = pytester.run(sys.executable, "-c", COLLECT, *EXPECTED)
    listed: dict[str, list[str]] = {}
    for line in result.outlines:
        if line.startswith("loops "):
            cases = listed[line.removeprefix("loops ")] = []
        elif "::" in line:
            cases.append(line.partition("::")[2])
    assert {loops: sorted(cases) for loops, cases in listed.items()} == {
        loops: sorted(cases) for loops, cases in EXPECTED.items()
    }
