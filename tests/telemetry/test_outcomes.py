"""The closed list of outcomes: each can happen, and no other can."""

import ast
from pathlib import Path

import pytest
from failure_examples import FAILURES

import ape_cerebras
from ape_cerebras.errors import UpstreamFailed
from ape_cerebras.telemetry.outcomes import CAUSES, OUTCOMES, SIDES
from ape_cerebras.telemetry.timings import outcome_of_status
from ape_cerebras.upstream import connect

LEVELS = ("info", "warning", "error")
PACKAGE = Path(ape_cerebras.__file__).parent
UPSTREAM = {each for each in FAILURES if issubclass(each, UpstreamFailed)}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "completed"),
        (204, "completed"),
        (304, "completed"),
        (399, "completed"),
        (400, "upstream_rejected"),
        (401, "upstream_key_refused"),
        (402, "upstream_payment_required"),
        (403, "upstream_key_refused"),
        (404, "upstream_rejected"),
        (428, "upstream_rejected"),
        (429, "upstream_rate_limited"),
        (430, "upstream_rejected"),
        (499, "upstream_rejected"),
        (500, "upstream_failed"),
        (503, "upstream_failed"),
        (599, "upstream_failed"),
    ],
)
def test_outcome_of_status(status: int, outcome: str) -> None:
    assert outcome_of_status(status) == outcome


def test_every_status_has_a_known_outcome() -> None:
    assert {outcome_of_status(status) for status in range(100, 1000)} <= OUTCOMES.keys()


def test_every_outcome_can_happen() -> None:
    of_failures = {each.outcome for each in FAILURES}
    of_statuses = {outcome_of_status(status) for status in (200, 400, 402, 429, 500)}
    in_a_stream = {"upstream_stream_error"}
    assert of_failures | of_statuses | in_a_stream == OUTCOMES.keys()


@pytest.mark.parametrize("name", OUTCOMES)
def test_each_outcome_is_consistent(name: str) -> None:
    outcome = OUTCOMES[name]
    assert outcome.level in LEVELS
    assert outcome.failed or not outcome.degrades
    assert outcome.failed == (outcome.level != "info")


def test_a_side_says_whether_the_service_is_degraded_and_who_has_to_act() -> None:
    assert {outcome.side for outcome in OUTCOMES.values()} == SIDES.keys()
    for name, outcome in OUTCOMES.items():
        assert outcome.failed == (outcome.side != "ok"), name
        if outcome.side in ("upstream", "account"):
            assert outcome.degrades, name
        if outcome.side in ("client", "limit"):
            assert not outcome.degrades, name


def test_every_cause_is_of_the_list_and_every_failure_upstream_has_one() -> None:
    """The words stand where failures are raised, and in the tables of ``connect``."""
    names = {each.__name__ for each in UPSTREAM}
    used: set[object] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names and node.args:
                words = ast.walk(node.args[0])
                used |= {each.value for each in words if isinstance(each, ast.Constant)}
    assert used >= {"redirect", "malformed_head", "tls_timeout"}
    defaults = {each.cause for each in UPSTREAM}
    from_tables = {*connect._EGRESS_CAUSES.values(), *connect._LOOKUP_CAUSES.values()}
    from_tables |= {*connect._VERIFY_CAUSES.values(), *connect._SAME_CAUSE.values()}
    assert used | (defaults - {None}) | from_tables <= CAUSES.keys()


def test_only_failures_of_the_service_degrade_it() -> None:
    spared = {name for name, outcome in OUTCOMES.items() if not outcome.degrades}
    assert spared == {
        *("completed", "client_disconnected", "client_stalled", "refused", "unauthorized"),
        *("budget_exceeded", "rate_limited", "draining", "shut_down", "upstream_rejected"),
    }


def test_only_upstream_failures_and_our_defects_have_level_error() -> None:
    errors = {name for name, outcome in OUTCOMES.items() if outcome.level == "error"}
    others = {name for name in errors if not name.startswith("upstream_")}
    assert others == {"exchange_timeout", "internal_error"}
    assert all(OUTCOMES[name].level == "error" for name in OUTCOMES if name.startswith("upstream_"))
