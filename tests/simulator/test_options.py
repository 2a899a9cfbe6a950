"""The simulator's options, and the deadlines that follow from them."""

from dataclasses import fields

import pytest

from ape_cerebras.simulator.options import FAULTS, SIMULATION_FLAGS, Simulation
from ape_cerebras.simulator.replies import ERRORS


def test_every_option_but_the_key_has_a_flag() -> None:
    names = {each.name for each in fields(Simulation)}
    assert names - {name for name, _, _ in SIMULATION_FLAGS} == {"api_key"}


def test_the_repr_hides_the_key() -> None:
    assert "secret" not in repr(Simulation(api_key="secret"))


@pytest.mark.parametrize("flag", SIMULATION_FLAGS, ids=lambda flag: str(flag[0]))
def test_a_flag_reads_its_own_default(flag: tuple[str, object, str]) -> None:
    name, kind, text = flag
    default = getattr(Simulation(), name)
    assert callable(kind)
    assert default is None or kind(str(default)) == default
    assert text
    assert "%" not in text  # argparse would take it for a format


def test_the_header_overrides_options() -> None:
    overridden = Simulation(ttft=9, tokens=5).overridden(
        "ttft=0.5, rate=1e3,tokens = 100,fault=429,at=0"
    )
    assert overridden == Simulation(ttft=0.5, rate=1000.0, tokens=100, fault="429", at=0)


@pytest.mark.parametrize("name", [*FAULTS, *ERRORS, "500", "429"])
def test_every_fault_can_be_chosen(name: str) -> None:
    assert Simulation().overridden(f"fault={name}").fault == name


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_has_the_name_of_an_error(name: str) -> None:
    assert name not in ERRORS


def test_a_fault_can_be_cleared() -> None:
    assert Simulation(fault="cut").overridden("fault=").fault == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ttft",
        "ttft=",
        "ttft=soon",
        "ttft=-1",
        "ttft=nan",
        "ttft=inf",
        "tokens=1.5",
        "tokens=-1",
        "tokens=9999999999",
        "tokens_per_chunk=0",
        "at=two",
        "fault=bad",
        "fault=200",
        "api_key=mine",
        "speed=1",
        "ttft=1,,tokens=2",
    ],
)
def test_a_malformed_header_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^x-simulate: "):
        Simulation().overridden(text)


@pytest.mark.parametrize(
    ("rate", "made", "due"),
    [(10.0, 0, 2.0), (10.0, 1, 2.0), (10.0, 2, 2.2), (10.0, 50, 7.0), (0.0, 50, 2.0)],
)
def test_when_tokens_are_due(rate: float, made: int, due: float) -> None:
    assert Simulation(ttft=2.0, rate=rate).due(made) == pytest.approx(due)


@pytest.mark.parametrize(
    ("options", "queue", "prompt"),
    [
        (Simulation(ttft=2.0, queue_time=0.5), 0.5, 1.5),
        (Simulation(ttft=2.0, queue_time=0.5, prompt_time=1.0), 0.5, 1.0),
        (Simulation(ttft=2.0, queue_time=0.5, prompt_time=9.0), 0.5, 1.5),
        (Simulation(ttft=2.0, queue_time=9.0), 2.0, 0.0),
    ],
)
def test_queue_and_prompt_time_fit_into_ttft(
    options: Simulation, queue: float, prompt: float
) -> None:
    timing = options.timing(100, created=7.0)
    assert timing == (7.0, queue, prompt, 0.05, 2.05)
