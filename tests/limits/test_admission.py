"""Admission: exact waits on a mock clock; no slot is lost when requests end or are cancelled."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
import trio
from end_to_end import KEY
from exchanges import chat_exchange
from trio.testing import MockClock

from ape_cerebras.config.config import Config
from ape_cerebras.errors import (
    BadRequest,
    BudgetReserved,
    BudgetSpent,
    ModelNotFound,
    NotAdmitted,
    RateLimited,
)
from ape_cerebras.limits.admission import Admission
from ape_cerebras.limits.api_keys import ApiKeys
from ape_cerebras.telemetry.exchange import Exchange


class Wall:
    """A wall clock that a test sets."""

    now = 0.0


WALL = Wall()


def admission(**settings: str) -> Admission:
    config = Config.from_environment({"CEREBRAS_API_KEY": KEY, **settings})
    return Admission(config, ApiKeys(config), wall_clock=lambda: WALL.now)


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0))


def test_without_a_limit_admission_is_off() -> None:
    async def test() -> None:
        assert not admission().is_limited
        assert not admission(MAX_QUEUE_SECONDS="5").is_limited
        assert admission(MAX_CONCURRENT_REQUESTS="1").is_limited
        assert admission(RATE_LIMIT_PER_MINUTE="1").is_limited

    on_mock_clock(test)


class Visits:
    """Requests with an arrival time and a duration each; records when each was admitted."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began_at = anyio.current_time()
        self.admitted: dict[str, float] = {}
        self.refused: dict[str, tuple[float, type[Exception], dict[bytes, bytes]]] = {}
        self.exchanges: dict[str, Exchange] = {}

    @property
    def now(self) -> float:
        return anyio.current_time() - self.began_at

    async def visit(
        self, name: str, arrives: float, duration: float, cancelled: float = 1e9
    ) -> None:
        """The first letter of a request's name is its client."""
        await anyio.sleep(arrives)
        self.exchanges[name] = exchange = chat_exchange(client=name[0])
        with anyio.move_on_after(cancelled - arrives):
            try:
                async with self.admission.admitted(exchange):
                    self.admitted[name] = self.now
                    await anyio.sleep(duration)
            except (NotAdmitted, RateLimited) as error:
                self.refused[name] = self.now, type(error), dict(error.headers)


async def visits(
    admission: Admission, *plan: tuple[str, float, float] | tuple[str, float, float, float]
) -> Visits:
    made = Visits(admission)
    async with anyio.create_task_group() as tasks:
        for each in plan:
            tasks.start_soon(made.visit, *each)
    assert admission.waiting == 0
    return made


def test_waiting_requests_are_admitted_as_slots_become_free() -> None:
    async def test() -> None:
        limited = admission(MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="100")
        made = await visits(
            limited, ("a1", 0, 10), ("a2", 1, 10), ("a3", 2, 10), ("b1", 3, 5), ("b2", 36, 1)
        )
        assert made.admitted == {"a1": 0, "a2": 10, "b1": 20, "a3": 25, "b2": 36}
        waits = {name: each.admission_wait_seconds for name, each in made.exchanges.items()}
        assert waits == {"a1": None, "a2": 9, "a3": 23, "b1": 17, "b2": None}

    on_mock_clock(test)


def test_no_request_waits_longer_than_max_queue_seconds() -> None:
    async def test() -> None:
        limited = admission(MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="7")
        made = await visits(limited, ("a1", 0, 20), ("a2", 1, 1), ("b1", 15, 1))
        assert made.admitted == {"a1": 0, "b1": 20}
        at, kind, headers = made.refused["a2"]
        assert (at, kind, headers) == (8, NotAdmitted, {b"retry-after": b"8"})
        assert made.exchanges["a2"].admission_wait_seconds == 7

    on_mock_clock(test)


def test_without_queue_time_a_refusal_carries_the_estimated_wait() -> None:
    async def test() -> None:
        limited = admission(MAX_CONCURRENT_REQUESTS="2")
        made = await visits(limited, ("a1", 0, 90), ("a2", 1, 90), ("b1", 2, 1), ("b2", 80, 1))
        assert made.admitted == {"a1": 0, "a2": 1}
        assert made.refused == {
            "b1": (2, NotAdmitted, {b"retry-after": b"1"}),
            "b2": (80, NotAdmitted, {b"retry-after": b"60"}),
        }

    on_mock_clock(test)


def test_a_full_queue_refuses_at_once() -> None:
    async def test() -> None:
        limited = admission(
            MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="100", MAX_QUEUE_LENGTH="2"
        )
        made = await visits(
            limited, ("a1", 0, 10), ("a2", 1, 1), ("a3", 2, 1), ("a4", 4, 1), ("b1", 5, 1)
        )
        assert made.admitted == {"a1": 0, "a2": 10, "b1": 11}
        refused = {name: each[:2] for name, each in made.refused.items()}
        assert refused == {"a4": (4, NotAdmitted), "a3": (5, NotAdmitted)}
        assert made.refused["a4"][2] == {
            b"retry-after": b"12"
        }  # 4 s without a release, 3 are waited for

    on_mock_clock(test)


def test_a_cancelled_request_leaves_the_queue_at_once() -> None:
    async def test() -> None:
        limited = admission(
            MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="100", MAX_QUEUE_LENGTH="1"
        )
        made = await visits(limited, ("a1", 0, 10), ("a2", 1, 1, 3), ("b1", 3.5, 5), ("c1", 12, 1))
        assert made.admitted == {"a1": 0, "b1": 10, "c1": 15}
        assert made.exchanges["a2"].admission_wait_seconds == 2

    on_mock_clock(test)


def test_a_cancelled_exchange_frees_its_slot() -> None:
    async def test() -> None:
        limited = admission(MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="100")
        made = await visits(limited, ("a1", 0, 50, 4), ("b1", 1, 1), ("c1", 2, 1))
        assert made.admitted == {"a1": 0, "b1": 4, "c1": 5}

    on_mock_clock(test)


def test_requests_per_minute_over_all_clients() -> None:
    async def test() -> None:
        limited = admission(RATE_LIMIT_PER_MINUTE="3")
        made = await visits(
            limited,
            *(("a1", 0, 1), ("b1", 0, 1), ("a2", 1, 1), ("b2", 5, 1), ("a3", 20, 1), ("b3", 21, 1)),
        )
        assert made.admitted == {"a1": 0, "b1": 0, "a2": 1, "a3": 20}
        assert made.refused["b2"] == (
            5,
            RateLimited,
            {
                b"retry-after": b"15",
                b"x-ratelimit-limit-requests-minute": b"3",
                b"x-ratelimit-remaining-requests-minute": b"0",
                b"x-ratelimit-reset-requests-minute": b"15.000",
            },
        )
        assert made.refused["b3"][2][b"retry-after"] == b"19"

    on_mock_clock(test)


@pytest.mark.anyio
async def test_no_cancellation_loses_a_slot() -> None:
    """Cancel many requests, each in another event-loop iteration; then all slots are free."""
    limited = admission(MAX_CONCURRENT_REQUESTS="3", MAX_QUEUE_SECONDS="10")
    most = inside = 0

    async def visit(number: int) -> None:
        nonlocal most, inside
        with anyio.CancelScope() as scope:
            if number % 3:
                tasks.start_soon(cancel_after, number % 11, scope)
            async with limited.admitted(chat_exchange(client=f"c{number % 4}")):
                inside += 1
                most = max(most, inside)
                try:
                    for _ in range(number % 7):
                        await anyio.lowlevel.checkpoint()
                finally:
                    inside -= 1

    async def cancel_after(iterations: int, scope: anyio.CancelScope) -> None:
        for _ in range(iterations):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(visit, number)
    assert most == 3
    assert limited.waiting == 0
    with anyio.fail_after(5):
        async with (
            limited.admitted(chat_exchange()),
            limited.admitted(chat_exchange()),
            limited.admitted(chat_exchange()),
        ):
            limited_now = admission(MAX_CONCURRENT_REQUESTS="3")
            assert limited_now.waiting == limited.waiting == 0


def limited_keys(path: Path, **limits: object) -> dict[str, str]:
    """A keys file in which alice, whose name is "a", has limits, and bob has none."""
    lines = "".join(f"{name} = {value}\n" for name, value in limits.items())
    (path / "keys.toml").write_text(
        f'[[keys]]\nname = "a"\nkey = "key-a"\n{lines}[[keys]]\nname = "b"\nkey = "key-b"\n'
    )
    return {"APE_API_KEYS_FILE": str(path / "keys.toml")}


def test_a_keys_own_requests_per_minute(tmp_path: Path) -> None:
    async def test() -> None:
        file = limited_keys(tmp_path, requests_per_minute=2)
        made = await visits(
            admission(**file, RATE_LIMIT_PER_MINUTE="5"),
            *(("a1", 0, 1), ("a2", 1, 1), ("a3", 2, 1), ("b1", 2, 1), ("b2", 2, 1), ("b3", 2, 1)),
            ("b4", 3, 1),
        )
        assert made.admitted == {"a1": 0, "a2": 1, "b1": 2, "b2": 2, "b3": 2}
        at, kind, headers = made.refused["a3"]
        assert (at, kind, headers[b"retry-after"]) == (2, RateLimited, b"28")
        assert headers[b"x-ratelimit-limit-requests-minute"] == b"2"
        assert made.refused["b4"][2][b"x-ratelimit-limit-requests-minute"] == b"5"

    on_mock_clock(test)


def test_a_keys_own_concurrent_requests(tmp_path: Path) -> None:
    async def test() -> None:
        file = limited_keys(tmp_path, concurrent_requests=1)
        made = await visits(
            admission(**file, MAX_QUEUE_SECONDS="7"),
            *(("a1", 0, 5), ("a2", 1, 10), ("a3", 2, 1), ("b1", 2, 10), ("b2", 3, 10)),
        )
        assert made.admitted == {"a1": 0, "b1": 2, "b2": 3, "a2": 5}
        assert made.refused == {"a3": (9, NotAdmitted, {b"retry-after": b"9"})}

    on_mock_clock(test)


def test_a_key_without_limits_needs_no_admission(tmp_path: Path) -> None:
    async def test() -> None:
        assert not admission(**limited_keys(tmp_path)).is_limited
        assert admission(**limited_keys(tmp_path, models=["x"])).is_limited

    on_mock_clock(test)


def test_a_key_is_limited_to_its_models(tmp_path: Path) -> None:
    async def test() -> None:
        limited = admission(**limited_keys(tmp_path, models=["gpt-oss-120b"]))
        for model, client, refusal in (
            ("gpt-oss-120b", "a", None),
            ("llama3.1-8b", "a", ModelNotFound),
            (None, "a", BadRequest),
            ("llama3.1-8b", "b", None),
            (None, None, None),
        ):
            expected = pytest.raises(refusal) if refusal else nullcontext()
            with expected:
                async with limited.admitted(chat_exchange(client=client, model=model)):
                    pass

    on_mock_clock(test)


DAY = 24 * 60 * 60


async def spends(
    limited: Admission, dollars: str | None, client: str = "a", reserves: str | None = None
) -> None:
    reserved = None if reserves is None else Decimal(reserves)
    exchange = chat_exchange(client=client, reserved_cost=reserved)
    async with limited.admitted(exchange):
        exchange.cost = None if dollars is None else Decimal(dollars)


@pytest.mark.anyio
async def test_a_budget_holds_until_midnight_also_when_the_clock_is_set(tmp_path: Path) -> None:
    limited = admission(**limited_keys(tmp_path, usd_per_day=0.3))
    WALL.now = 20_000 * DAY + 100
    for dollars in ("0.1", "0.1", None, "0.0999999"):
        await spends(limited, dollars)
    await spends(limited, "5")  # the last cent was not spent yet
    await spends(limited, "5", client="b")
    for now, seconds in (
        (20_000 * DAY + 100, b"60"),
        (20_000 * DAY, b"60"),
        (20_001 * DAY - 7.5, b"8"),
    ):
        WALL.now = now
        with pytest.raises(BudgetSpent) as caught:
            await spends(limited, "1")
        assert caught.value.headers == ((b"retry-after", seconds), (b"x-should-retry", b"false"))
    WALL.now = 20_001 * DAY + 1
    await spends(limited, "0.3")
    for _ in range(3):  # set back and forth over midnight: neither day begins anew
        for day in (20_000, 20_001):
            WALL.now = day * DAY + DAY / 2
            with pytest.raises(BudgetSpent):
                await spends(limited, "1")
    WALL.now = 30_000 * DAY
    await spends(limited, "0.1")
    WALL.now = 20_001 * DAY
    with pytest.raises(BudgetSpent):
        await spends(limited, "1")
    WALL.now = 20_002 * DAY
    await spends(limited, "0.1")


@pytest.mark.anyio
async def test_a_cancelled_exchange_is_charged_its_cost(tmp_path: Path) -> None:
    limited = admission(**limited_keys(tmp_path, usd_per_day=0.3))
    exchange = chat_exchange(client="a")
    with anyio.CancelScope() as scope:
        async with limited.admitted(exchange):
            exchange.cost = Decimal(1)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    with pytest.raises(BudgetSpent):
        await spends(limited, None)


NO_RETRY = (b"x-should-retry", b"false")


@pytest.mark.anyio
async def test_a_reservation_has_to_fit_beside_those_in_flight(tmp_path: Path) -> None:
    limited = admission(**limited_keys(tmp_path, usd_per_day=1))
    WALL.now = DAY - 90.5
    in_flight = chat_exchange(client="a", reserved_cost=Decimal("0.6"))
    async with limited.admitted(in_flight):
        with pytest.raises(BudgetReserved) as caught:
            await spends(limited, "0", reserves="0.5")
        assert caught.value.headers == ((b"retry-after", b"1"), (b"x-should-retry", b"true"))
        with pytest.raises(BudgetReserved) as caught:
            await spends(limited, "0", reserves="1.01")
        assert caught.value.headers == ((b"retry-after", b"60"), NO_RETRY)
        await spends(limited, "0.1", reserves="0.4")
        await spends(limited, "0", client="b", reserves="5")
        in_flight.cost = Decimal("0.5")
    await spends(limited, "0.2", reserves="0.4")
    with pytest.raises(BudgetReserved) as caught:
        await spends(limited, "0", reserves="0.3")
    assert caught.value.headers[1] == NO_RETRY
    await spends(limited, "0.2", reserves="0.2")
    with pytest.raises(BudgetSpent) as spent:
        await spends(limited, "0", reserves="0")
    assert not isinstance(spent.value, BudgetReserved)


@pytest.mark.anyio
async def test_whatever_refuses_or_cancels_a_request_its_reservation_is_given_back(
    tmp_path: Path,
) -> None:
    WALL.now = 0.0
    file = limited_keys(tmp_path, usd_per_day=1, requests_per_minute=1, concurrent_requests=1)
    limited = admission(**file, MAX_QUEUE_SECONDS="100")
    async with anyio.create_task_group() as tasks:
        exchange = chat_exchange(client="a", reserved_cost=Decimal("0.9"))
        async with limited.admitted(exchange):
            for _ in range(3):
                with pytest.raises(RateLimited):
                    await spends(limited, "0", reserves="0.1")
            tasks.cancel_scope.cancel()
    limited = admission(**limited_keys(tmp_path, usd_per_day=1, concurrent_requests=1))
    async with limited.admitted(chat_exchange(client="a", reserved_cost=Decimal("0.5"))):
        for _ in range(3):
            with pytest.raises(NotAdmitted):
                await spends(limited, "0", reserves="0.5")
    await spends(limited, "1", reserves="1")


@pytest.mark.anyio
async def test_a_reservation_is_settled_on_the_day_on_which_it_was_made(tmp_path: Path) -> None:
    limited = admission(**limited_keys(tmp_path, usd_per_day=1))
    WALL.now = DAY - 1.0
    exchange = chat_exchange(client="a", reserved_cost=Decimal(1), cost=Decimal(1))
    async with limited.admitted(exchange):
        WALL.now = DAY + 1.0
        await spends(limited, "0.5", reserves="1")
    await spends(limited, "0.5", reserves="0.5")
    WALL.now = DAY - 1.0
    with pytest.raises(BudgetSpent):
        await spends(limited, "0")


@pytest.mark.anyio
async def test_a_key_may_refuse_models_without_a_price(tmp_path: Path) -> None:
    for rule, model, cost, refusal in (
        ("refuse", "gpt-oss-120b", "0.1", None),
        ("refuse", "unheard-of", None, "no price"),
        ("refuse", None, "0.1", "plain JSON"),
        ("allow", "unheard-of", None, None),
        ("allow", None, "0.1", None),
    ):
        limited = admission(**limited_keys(tmp_path, unpriced=f'"{rule}"'))
        assert limited.is_limited == (rule == "refuse")
        reserved = None if cost is None else Decimal(cost)
        exchange = chat_exchange(client="a", model=model, reserved_cost=reserved)
        with pytest.raises(BadRequest, match=refusal) if refusal else nullcontext():
            async with limited.admitted(exchange):
                pass
