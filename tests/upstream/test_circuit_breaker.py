"""The circuit breaker by itself, over a clock that is a number."""

from collections.abc import Callable

import pytest
from failure_examples import FAILURES, example
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_cerebras.errors import ProxyError, UpstreamUnavailable
from ape_cerebras.telemetry.metric_table import CIRCUIT_STATES
from ape_cerebras.upstream.circuit_breaker import CircuitBreaker, is_outage

DOWN = {
    *("UpstreamFailed", "ConnectFailed", "ConnectTimeout", "TlsFailed", "FirstByteTimeout"),
    *("InvalidResponse", "Truncated", "IdleTimeout"),
}
RESPONDED = {"KeyRefused", "ResponseWithheld"}


@pytest.mark.parametrize("failure", FAILURES)
def test_which_failures_are_an_outage(failure: type[ProxyError]) -> None:
    expected = {True: DOWN, False: RESPONDED}
    outage = is_outage(example(failure))
    assert outage is None or failure.__name__ in expected[outage]
    assert outage is not None or failure.__name__ not in DOWN | RESPONDED


def fail(circuit: CircuitBreaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        circuit.leave(circuit.enter(now), True, now)


def opened(now: float = 0.0) -> CircuitBreaker:
    circuit = CircuitBreaker(3)
    fail(circuit, now, 3)
    return circuit


def refusal(circuit: CircuitBreaker, now: float) -> bytes:
    """The Retry-After of a request that is refused."""
    with pytest.raises(UpstreamUnavailable) as refused:
        circuit.enter(now)
    [(name, value)] = refused.value.headers
    assert name == b"retry-after"
    return value


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    circuit = CircuitBreaker(3)
    fail(circuit, 0.0, 2)
    circuit.leave(circuit.enter(0.0), False, 0.0)
    fail(circuit, 0.0, 2)
    assert circuit.state == "closed"
    circuit.leave(circuit.enter(0.0), None, 0.0)  # no result, so the run goes on
    fail(circuit, 0.0)
    assert circuit.state == "open"
    assert refusal(circuit, 0.0) == b"1"


def test_after_its_time_one_is_let_through_and_no_other() -> None:
    circuit = opened(10.0)
    assert refusal(circuit, 10.999) == b"1"
    circuit.enter(11.0)
    assert circuit.state == "half_open"
    assert refusal(circuit, 11.0) == refusal(circuit, 500.0) == b"1"


def test_a_probe_with_a_response_closes_it() -> None:
    circuit = opened()
    circuit.leave(circuit.enter(1.0), False, 1.5)
    assert circuit.state == "closed"
    fail(circuit, 2.0, 2)
    assert circuit.state == "closed"
    fail(circuit, 2.0)
    assert refusal(circuit, 2.0) == b"1"  # not longer than the first time


def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    circuit, now = opened(), 0.0
    for time in (1, 2, 4, 8, 16, 30, 30):
        assert refusal(circuit, now) == str(time).encode()
        assert refusal(circuit, now + time - 0.001) == b"1"
        now += time
        fail(circuit, now)
        assert circuit.state == "open"


def test_a_probe_without_a_result_is_followed_by_another() -> None:
    circuit = opened()
    circuit.leave(circuit.enter(1.0), None, 5.0)
    assert circuit.state == "open"
    circuit.leave(circuit.enter(5.0), False, 5.0)
    assert circuit.state == "closed"


def test_retry_after_is_no_longer_than_the_time() -> None:
    """Though 1.2 + 1 - 1.2 is a little more than 1."""
    assert refusal(opened(1.2), 1.2) == b"1"


@pytest.mark.parametrize("failed", [True, False, None])
def test_results_of_requests_sent_before_it_opened_do_not_count(failed: bool | None) -> None:
    circuit = CircuitBreaker(3)
    late = circuit.enter(0.0)
    fail(circuit, 0.0, 3)
    circuit.leave(late, failed, 0.5)
    assert (circuit.state, refusal(circuit, 0.5)) == ("open", b"1")
    probe = circuit.enter(1.0)
    circuit.leave(late, failed, 1.0)
    assert circuit.state == "half_open"
    refusal(circuit, 1.0)
    circuit.leave(probe, False, 1.0)
    for _ in range(3):
        circuit.leave(late, failed, 1.0)
    assert circuit.state == "closed"


class Played:
    """Requests at random, and which of them were sent while it was not closed."""

    def __init__(self, failures: int) -> None:
        self.circuit = CircuitBreaker(failures)
        self.now = 0.0
        self.out: list[tuple[int, bool]] = []  # era, whether it is a probe
        self.retry_after: list[int] = []  # seconds, of those that were refused

    def check(self) -> None:
        probes = sum(is_probe for _, is_probe in self.out)
        assert self.circuit.state in CIRCUIT_STATES
        assert probes == (self.circuit.state == "half_open")

    def enter(self, _: int) -> None:
        was_closed = self.circuit.state == "closed"
        try:
            self.out.append((self.circuit.enter(self.now), not was_closed))
        except UpstreamUnavailable as error:
            assert not was_closed
            self.retry_after.append(int(error.headers[0][1]))
        self.check()

    def leave(self, number: int) -> None:
        self.leave_one_of(list(range(len(self.out))), number, (True, False, None)[number % 3])

    def leave_one_of(self, places: list[int], number: int, failed: bool | None) -> None:
        if places:
            era, _ = self.out.pop(places[number % len(places)])
            self.circuit.leave(era, failed, self.now)
        self.check()

    def wait(self, number: int) -> None:
        self.now += number / 10
        self.check()

    def try_again(self, number: int) -> None:
        """After as long as the last one that was refused was told, or a little less or more."""
        told = self.retry_after[-1] if self.retry_after else 1
        self.now += told + (-0.001, 0, 0.001)[number % 3]
        self.enter(0)

    def leave_late(self, number: int) -> None:
        """One that is no probe."""
        places = [at for at, (_, is_probe) in enumerate(self.out) if not is_probe]
        self.leave_one_of(places, number // 3, (True, False, None)[number % 3])

    def leave_probe(self, number: int) -> None:
        places = [at for at, (_, is_probe) in enumerate(self.out) if is_probe]
        self.leave_one_of(places, 0, (True, False, None)[number % 3])

    def fail(self, number: int) -> None:
        """All fail, the probes too; and at once behind each comes another, which may be refused."""
        for _ in range(number % 11):
            self.wait(300)
            self.enter(0)
            self.leave_one_of([*range(len(self.out))][-1:], 0, True)
            self.enter(0)


STEPS = (
    *(Played.enter, Played.enter, Played.leave, Played.wait, Played.try_again),
    *(Played.leave_late, Played.leave_probe, Played.fail),
)
Step = tuple[Callable[[Played, int], None], int]
_steps = st.tuples(st.sampled_from(STEPS), st.integers(0, 1000))
# Of bytes, a long list is as quickly drawn as a short one.
_many_steps = st.binary(min_size=30, max_size=80).map(
    lambda drawn: [(STEPS[byte % len(STEPS)], byte // len(STEPS)) for byte in drawn]
)


@settings(max_examples=500)
@given(st.integers(1, 4), st.lists(_steps, max_size=80) | _many_steps)
def test_never_more_than_one_probe_is_out(failures: int, steps: list[Step]) -> None:
    played = Played(failures)
    for step, number in steps:
        step(played, number)
    assert all(1 <= seconds <= 30 for seconds in played.retry_after)
