"""Quota pacing: exact times against a simulated account, and over real sockets against the
simulator with its limits on."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
import pytest
import trio
from end_to_end import KEY, chat, running_proxy
from exchanges import chat_exchange
from trio.testing import MockClock

from ape_cerebras.config.config import Config
from ape_cerebras.errors import NotAdmitted
from ape_cerebras.limits.admission import Admission
from ape_cerebras.limits.api_keys import ApiKeys
from ape_cerebras.limits.quota_pacing import estimate_reservation
from ape_cerebras.limits.token_buckets import Charge, Decision, Hold, LimitStore
from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.quota import Account, AccountLimits
from ape_cerebras.simulator.replies import Rejected
from ape_cerebras.simulator.request import CompletionRequest
from ape_cerebras.simulator.server import Simulator
from ape_cerebras.telemetry.exchange import Usage
from ape_cerebras.upstream.client import read_quota

DAY = 86_400.0


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0))


@dataclass
class Fleet:
    """Agents of one account. Each request is sent once it is admitted, and arrives 0.05 s later;
    its prompt has 100 tokens, which both sides estimate."""

    account: Account
    admission: Admission
    duration: float = 1.0
    began_at: float = field(default_factory=anyio.current_time)
    sent_at: dict[str, float] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    given_up: dict[str, bytes] = field(default_factory=dict)

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.began_at, 3)

    async def request(
        self,
        name: str,
        arrives: float = 0.0,
        limit: int = 900,
        used: int = 100,
        cancelled: float = 1e9,
        body: bytes = b"",
    ) -> None:
        """The first letter of a request's name is its client."""
        await anyio.sleep(arrives)
        exchange = chat_exchange(
            client=name[0],
            reserved_tokens=100 + limit,
            upstream_status=None,
            sent_at=None,
            body=body,
        )
        with anyio.move_on_after(cancelled - arrives):
            try:
                async with self.admission.admitted(exchange):
                    self.sent_at[name] = self.now
                    exchange.sent_at = anyio.current_time()
                    await self._exchange(name, exchange, limit, used)
            except NotAdmitted as refusal:
                self.given_up[name] = dict(refusal.headers)[b"retry-after"]

    async def _exchange(self, name: str, exchange: object, limit: int, used: int) -> None:
        assert isinstance(exchange, type(chat_exchange()))
        await anyio.sleep(0.05)
        request = CompletionRequest(
            model="gpt-oss-120b", stream=True, prompt_tokens=100, limit=limit
        )
        now = anyio.current_time()
        try:
            reserved = self.account.admit(request, now)
            exchange.upstream_status = 200
        except Rejected:
            self.rejected.append(name)
            exchange.upstream_status = 429
        exchange.quota = read_quota(self.account.headers(now))
        await anyio.sleep(0.05)
        await self.admission.update_quota(exchange)
        if exchange.upstream_status == 200:
            await anyio.sleep(self.duration)
            exchange.usage = Usage(100, used, 100 + used, 0, 0)
            self.account.release(reserved, 100 + used, anyio.current_time())


def fleet(
    duration: float = 1.0,
    pacing: str = "on",
    wait: str = "600",
    store: LimitStore | None = None,
    **limits: int | str,
) -> Fleet:
    settings = {"QUOTA_PACING": pacing, "MAX_QUEUE_SECONDS": wait}
    config = Config.from_environment({"CEREBRAS_API_KEY": KEY, **settings})
    account = Account(AccountLimits(**limits))  # type: ignore[arg-type]
    return Fleet(account, Admission(config, ApiKeys(config), store), duration)


def test_no_quota_is_exceeded_and_no_wait_is_too_long() -> None:
    """60 requests that reserve and use 1,000 tokens each, with a quota of 30,000 a minute."""

    async def test() -> None:
        made = fleet(tokens_per_minute=30_000)
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(made.request, f"a{number}", 0.0, 900, 900)
        assert made.rejected == []
        assert len(made.sent_at) == 60
        times = sorted(made.sent_at.values())
        assert times[1] == 0.1  # the first goes alone, to learn the quota
        assert times[29] == 0.1
        # Then one request fits every two seconds: as soon as the account has refilled, plus the
        # time that a response takes to arrive.
        for number, at in enumerate(times[30:], 1):
            assert 2 * number <= at + 0.05 <= 2 * number + 0.2

    on_mock_clock(test)


def test_without_pacing_the_same_fleet_is_rejected() -> None:
    async def test() -> None:
        made = fleet(pacing="off", tokens_per_minute=30_000)
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(made.request, f"a{number}", 0.0, 900, 900)
        assert len(made.rejected) == 30

    on_mock_clock(test)


def test_over_reserved_tokens_are_available_to_the_next_request() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=10_000)
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(made.request, f"a{number}", 0.0, 900, 100)
        assert made.rejected == []
        assert max(made.sent_at.values()) < 10  # 30,000 reserved, 6,000 used

    on_mock_clock(test)


def test_an_account_without_refunds_is_recognised_by_its_responses() -> None:
    """A wrong refund costs one rejection a minute at most."""

    async def test() -> None:
        made = fleet(tokens_per_minute=10_000, reservations="kept")
        for number in range(60):
            await made.request(f"a{number}", 0.0, 900, 100)
        assert 0 < len(made.rejected) <= made.now / 60 + 1
        assert made.now >= 0.9 * 60 * (60 - len(made.rejected) - 10) / 10

    on_mock_clock(test)


def test_requests_per_minute_are_paced_too() -> None:
    async def test() -> None:
        made = fleet(duration=0.0, requests_per_minute=6)
        async with anyio.create_task_group() as tasks:
            for number in range(9):
                tasks.start_soon(made.request, f"a{number}")
        times = sorted(made.sent_at.values())
        assert made.rejected == []
        assert times[5] == 0.1
        assert [round(at / 10) for at in times[6:]] == [1, 2, 3]

    on_mock_clock(test)


def test_clients_alternate_and_a_large_request_is_not_starved() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=6_000)
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(made.request, f"a{number}", 0.1 + number / 100, 900, 900)
            for number in range(6, 12):
                tasks.start_soon(made.request, f"a{number}", 1 + number / 100, 400, 400)
            tasks.start_soon(made.request, "b1", 2.0, 2900, 2900)
        order = sorted(made.sent_at, key=made.sent_at.__getitem__)
        assert order[:9] == ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "b1"]
        assert order[9:] == ["a8", "a9", "a10", "a11"]
        assert made.rejected == []

    on_mock_clock(test)


def test_a_cancelled_request_reserves_nothing() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=1_000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.request, "a1", 0.0, 900, 900)
            tasks.start_soon(made.request, "a2", 1.0, 900, 900, 5.0)
            tasks.start_soon(made.request, "b1", 2.0, 900, 900)
        assert made.sent_at.keys() == {"a1", "b1"}
        assert 60 <= made.sent_at["b1"] + 0.1 <= 60.3
        assert made.admission.waiting == 0

    on_mock_clock(test)


def test_a_client_that_leaves_before_the_response_blocks_nobody() -> None:
    """A day's quota, and an hour's: what is taken of them for nothing does not come back soon."""

    async def test() -> None:
        made = fleet(tokens_per_hour=30_000, tokens_per_day=30_000)
        await made.request("a0", limit=900, used=100)
        for number in range(5):  # of a prompt that is nearly nothing
            await made.request(f"b{number}", limit=29_000, cancelled=0.02, body=b"x" * 400)
        for number in range(5):
            await made.request(f"c{number}", limit=900, used=100)
        assert len(made.sent_at) == 11
        assert made.now == pytest.approx(6 * 1.1 + 5 * 0.02)

    on_mock_clock(test)


def test_a_probe_finds_that_a_long_prompt_was_not_counted() -> None:
    """Its estimate is more than the quota holds: pictures in the body, for example."""

    async def test() -> None:
        made = fleet(tokens_per_hour=30_000, tokens_per_day=30_000)
        await made.request("a0", limit=900, used=100)
        await anyio.sleep(DAY)
        await made.request("b0", limit=2_000_000, cancelled=0.02, body=b"x" * 8_000_000)
        began_at = made.now
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(made.request, f"c{number}", 0.0, 900, 100)
        probe, *others = sorted(made.sent_at[f"c{number}"] for number in range(5))
        assert probe == began_at
        assert others == [pytest.approx(began_at + 0.1)] * 4  # once it has its response head
        assert made.rejected == []

    on_mock_clock(test)


def test_a_probe_that_has_no_response_either_is_followed_by_another() -> None:
    async def test() -> None:
        made = fleet(tokens_per_day=30_000)
        await made.request("a0", limit=900, used=100)
        await anyio.sleep(DAY)
        long = b"x" * 8_000_000
        for number in range(4):
            await made.request(f"b{number}", limit=2_000_000, cancelled=0.02, body=long)
        await made.request("c0", limit=900, used=100)
        assert len(made.sent_at) == 6
        assert made.now == pytest.approx(DAY + 2 * 1.1 + 4 * 0.02)

    on_mock_clock(test)


class SlowStore(LimitStore):
    """It takes a while to decide, as one that is elsewhere does."""

    async def charge(
        self, charges: Sequence[Charge], now: float, hold: Hold | None = None
    ) -> Decision:
        if charges:
            await anyio.sleep(0.2)
        return await super().charge(charges, now, hold)


def test_the_time_that_a_store_takes_to_decide_is_no_waiting() -> None:
    async def test() -> None:
        made = fleet(wait="0", store=SlowStore(), tokens_per_minute=6_000)
        await made.request("a0", limit=900, used=900)
        began_at = made.now
        async with anyio.create_task_group() as tasks:
            for number in range(1, 8):
                tasks.start_soon(made.request, f"a{number}", 0.0, 900, 900)
        del made.sent_at["a0"]
        assert list(made.sent_at.values()) == [pytest.approx(began_at + 0.2)] * 5
        assert len(made.given_up) == 2
        assert made.rejected == []

    on_mock_clock(test)


def test_a_request_never_sent_upstream_is_refunded() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=2_000)
        await made.request("a0", limit=900, used=900)
        await anyio.sleep(60)
        for _ in range(5):
            exchange = chat_exchange(reserved_tokens=1_000, sent_at=None, upstream_status=None)
            async with made.admission.admitted(exchange):
                pass
        made.began_at = anyio.current_time()
        await made.request("a1", limit=900, used=900)
        assert made.sent_at["a1"] == 0.0

    on_mock_clock(test)


def test_a_lost_request_is_not_refunded() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=2_000)
        await made.request("a0", limit=900, used=900)
        exchange = chat_exchange(
            request_lost=True, reserved_tokens=1_000, sent_at=None, upstream_status=None
        )
        async with made.admission.admitted(exchange):
            pass
        await made.request("a1", limit=900, used=900)
        assert made.sent_at["a1"] > 0.0

    on_mock_clock(test)


def test_a_request_that_waited_too_long_gets_a_retry_after() -> None:
    async def test() -> None:
        config = Config.from_environment({"CEREBRAS_API_KEY": KEY, "QUOTA_PACING": "on"})
        account = Account(AccountLimits(tokens_per_minute=1_000, tokens_per_hour=1_000))
        made = Fleet(account, Admission(config, ApiKeys(config)))
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(made.request, f"a{number}", float(number), 900, 900)
        assert made.sent_at == {"a0": 0.0}
        assert made.given_up == {"a1": b"60", "a2": b"60"}
        assert made.now == 62  # 60 seconds after it arrived, the default

    on_mock_clock(test)


@pytest.mark.anyio
@pytest.mark.parametrize("pacing", ["on", "off"])
async def test_pacing_prevents_rejections_by_the_simulator(pacing: str) -> None:
    simulation = Simulation()
    simulator = Simulator(simulation, limits=AccountLimits(tokens_per_minute=3_000))
    body = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"hi"}],"max_tokens":500}'
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(simulator.serve, "127.0.0.1", 0)
        settings = {"QUOTA_PACING": pacing, "MAX_QUEUE_SECONDS": "60"}
        async with running_proxy(port, **settings) as it:
            statuses: list[int] = []

            async def request() -> None:
                client = await it.client()
                statuses.append((await client.request(chat(body))).status)

            async with anyio.create_task_group() as agents:
                for _ in range(12):
                    agents.start_soon(request)
            assert (429 in statuses) == (pacing == "off")
            assert await it.metric("cerebras_proxy_reserved_tokens_total") > 0
        tasks.cancel_scope.cancel()


def test_each_model_has_its_own_quota_and_unknown_names_are_bounded() -> None:
    async def test() -> None:
        made = fleet(tokens_per_minute=1_000)
        await made.request("a0", limit=900, used=900)
        for number in range(300):
            exchange = chat_exchange(
                model=f"invented-{number}",
                reserved_tokens=1000,
                sent_at=None,
                upstream_status=None,
            )
            async with made.admission.admitted(exchange):
                pass
        assert made.admission.waiting == 0
        other = chat_exchange(model="llama3.1-8b", reserved_tokens=1000, sent_at=None)
        async with made.admission.admitted(other):
            pass
        assert made.now < 2
        assert made.admission._pacing is not None
        assert len(made.admission._pacing._models) <= 110

    on_mock_clock(test)


@pytest.mark.parametrize(
    ("size", "limit", "tokens"),
    [(0, 0, 0), (1, 0, 1), (4, 0, 1), (5, 0, 2), (400, 100, 200), (400, 99_999, 16_484)],
)
def test_estimate_reservation(size: int, limit: int, tokens: int) -> None:
    assert estimate_reservation(size, limit) == tokens
    assert estimate_reservation(size, None) == -(-size // 4) + 16_384
