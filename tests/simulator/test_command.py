"""What the flags of ``ape-cerebras simulate`` come to. What it serves is in ``test_main``."""

import argparse

import pytest

from ape_cerebras.simulator.server import AccountLimits, Simulation
from ape_cerebras.simulator.stand_in import StandIn, add_flags, stand_in_of


def parsed(*arguments: str) -> StandIn:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    parser.add_argument("--host")
    return stand_in_of(parser.parse_args(arguments), 7)


def test_without_flags_everything_is_as_by_default() -> None:
    stand_in = parsed()
    assert (stand_in.simulation, stand_in.limits) == (Simulation(), AccountLimits())
    assert stand_in.address == "127.0.0.1:7"
    assert stand_in.ssl_context is None


def test_options_of_answers_and_limits_of_the_account_are_flags_alike() -> None:
    stand_in = parsed(
        *("--ttft", "0.5", "--tokens", "9", "--tokens-per-minute", "30000"),
        *("--requests-per-hour", "150", "--queue-length", "4", "--reservations", "kept"),
        *("--host", "::1"),
    )
    assert stand_in.simulation == Simulation(ttft=0.5, tokens=9)
    assert stand_in.limits == AccountLimits(
        tokens_per_minute=30_000, requests_per_hour=150, queue_length=4, reservations="kept"
    )
    assert stand_in.address == "::1:7"


@pytest.mark.parametrize(
    "arguments",
    [("--tokens-per-minute", "many"), ("--queue-length", "-1"), ("--reservations", "lent")],
)
def test_a_wrong_limit_is_named(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert f"argument {arguments[0]}: invalid" in capsys.readouterr().err


def test_files_that_do_not_exist_are_no_certificate() -> None:
    with pytest.raises(OSError, match=r"."):
        parsed("--certificate", "/nonexistent", "--private-key", "/nonexistent")
