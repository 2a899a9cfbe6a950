"""The flags of ``ape-cerebras simulate``; ``test_main`` runs it."""

import argparse

import pytest

from ape_cerebras.simulator.command import SimulatorCommand, add_flags
from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.quota import AccountLimits


def parsed(*arguments: str) -> SimulatorCommand:
    parser = argparse.ArgumentParser()
    add_flags("simulate", parser)
    return SimulatorCommand.of(parser.parse_args(arguments))


def test_without_flags_the_defaults_hold() -> None:
    command = parsed()
    assert (command.simulation, command.limits) == (Simulation(), AccountLimits())
    assert (command.host, command.port) == ("127.0.0.1", 8001)
    assert command.ssl_context is None


def test_simulation_options_and_account_limits_have_flags() -> None:
    command = parsed(
        *("--ttft", "0.5", "--tokens", "9", "--tokens-per-minute", "30000"),
        *("--requests-per-hour", "150", "--queue-length", "4", "--reservations", "kept"),
        *("--host", "::1", "--port", "7"),
    )
    assert command.simulation == Simulation(ttft=0.5, tokens=9)
    assert command.limits == AccountLimits(
        tokens_per_minute=30_000, requests_per_hour=150, queue_length=4, reservations="kept"
    )
    assert (command.host, command.port) == ("::1", 7)


@pytest.mark.parametrize(
    "arguments",
    [("--tokens-per-minute", "many"), ("--queue-length", "-1"), ("--reservations", "lent")],
)
def test_an_invalid_limit_is_named(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    assert f"argument {arguments[0]}: invalid" in capsys.readouterr().err


def test_a_missing_certificate_file_is_an_error() -> None:
    with pytest.raises(OSError, match=r"."):
        parsed("--certificate", "/nonexistent", "--private-key", "/nonexistent")
