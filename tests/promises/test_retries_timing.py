"""How long retries wait, and the times that are recorded of them, on a clock that only moves when
everybody waits."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio
import pytest
import trio
from end_to_end import KEY
from exchanges import ended_exchanges, stream_exchange
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_stream import MemoryStream, memory_pair
from mock_clock import STREAMED, on_mock_clock, rig, slow_stream

from ape_cerebras import Config
from ape_cerebras.errors import ConnectFailed, ProxyError, UpstreamUnavailable
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.timings import Timings
from ape_cerebras.upstream.circuit_breaker import CircuitBreaker
from ape_cerebras.upstream.client import UpstreamClient, UpstreamRequest
from ape_cerebras.upstream.retry import RetryingClient

# An attempt: how long it takes, and its response; None where it finds no connection.
Attempt = tuple[float, bytes | None]


def response_of(status: int, *lines: bytes, body: bytes = b"{}") -> bytes:
    fields = b"".join(line + b"\r\n" for line in lines)
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)


FULL = b'{"code":"queue_exceeded"}'
OK = response_of(200)


class Played:
    """A request whose attempts end so, one after another."""

    def __init__(
        self,
        tasks: trio.Nursery,
        attempts: tuple[Attempt, ...],
        circuit: CircuitBreaker | None = None,
        **settings: str,
    ) -> None:
        self._tasks = tasks
        self._left = list(attempts)
        config = Config.from_environment(
            {
                "CEREBRAS_API_KEY": KEY,
                "CEREBRAS_BASE_URL": "http://upstream",
                "RETRY_ATTEMPTS": "3",
                "RETRY_BACKOFF": "2",
                **settings,
            }
        )
        self.began_at: list[float] = []
        logs = Logs("debug", print)
        self.client = RetryingClient(
            UpstreamClient(config, self.connect),
            config.retry_attempts,
            config.retry_backoff,
            circuit,
            logs,
            lambda: 0.5,
        )
        self.exchange = Exchange(started_at=0.0)

    async def connect(self, host: str, port: int) -> TimestampedStream:
        self.began_at.append(trio.current_time())
        takes, reported = self._left.pop(0)
        if reported is None:
            await anyio.sleep(takes)
            raise ConnectionRefusedError
        ours, theirs = memory_pair()
        self._tasks.start_soon(self._serve, theirs, takes, reported)
        return ours

    async def _serve(self, peer: MemoryStream, takes: float, reported: bytes) -> None:
        await peer.receive()
        await anyio.sleep(takes)
        await peer.send(reported)
        peer.close()

    async def play(self) -> int:
        """The status that the client would get."""
        request = UpstreamRequest("POST", "/x", body=b"{}")
        with await self.client.send(self.exchange, request) as response:
            return response.status


def play(
    attempts: tuple[Attempt, ...], seconds: float = float("inf"), /, **settings: str
) -> Played:
    """Play these attempts, with so much time for all of them."""
    played: list[Played] = []

    async def test() -> None:
        async with trio.open_nursery() as tasks:
            played.append(Played(tasks, attempts, None, **settings))
            with trio.move_on_after(seconds):
                await played[0].play()

    on_mock_clock(test)
    return played[0]


def test_pauses_double_up_to_eight_seconds() -> None:
    """Half of what is allowed, which is what is drawn here."""
    played = play((*[(0.0, None)] * 5, (0.0, OK)), RETRY_ATTEMPTS="5", RETRY_BACKOFF="2")
    assert played.began_at == [0.0, 1.0, 3.0, 7.0, 11.0, 15.0]
    assert (played.exchange.attempts, played.exchange.retry_seconds) == (6, 15.0)
    assert played.exchange.upstream_wait_seconds == 15.0
    assert played.exchange.retry_reasons == ("connect",) * 5


def test_retry_after_is_waited_for_and_up_to_a_quarter_more() -> None:
    refusal = response_of(429, b"Retry-After: 16", body=FULL)
    played = play(((3.0, refusal), (2.0, OK)))
    assert played.began_at == [0.0, 3.0 + 18.0]
    assert (played.exchange.attempts, played.exchange.retry_seconds) == (2, 21.0)
    assert played.exchange.sent_at == 21.0
    assert played.exchange.head_at == 23.0
    assert played.exchange.upstream_wait_seconds == 23.0


@pytest.mark.parametrize(("seconds", "attempts"), [(21.1, 2), (21.0, None)])
def test_a_wait_that_would_end_after_the_deadline_is_not_begun(
    seconds: float, attempts: int | None
) -> None:
    refusal = response_of(429, b"Retry-After: 16", body=FULL)
    played = play(((3.0, refusal), (0.0, OK)), seconds)
    assert played.exchange.attempts == attempts
    assert played.exchange.retry_suppressed == ("deadline" if attempts is None else None)
    assert len(played.began_at) == (attempts or 1)


def test_a_wait_that_is_cut_short_is_recorded() -> None:
    """As where the client disconnects, or the process ends."""

    async def test() -> None:
        async with trio.open_nursery() as tasks:
            played = Played(tasks, ((0.0, response_of(503, b"Retry-After: 40")), (0.0, OK)))
            with trio.CancelScope() as scope:

                async def disconnect() -> None:
                    await trio.sleep(7)
                    scope.cancel()

                tasks.start_soon(disconnect)
                await played.play()
            assert (played.exchange.attempts, played.exchange.retry_seconds) == (1, 7.0)
            assert played.exchange.upstream_wait_seconds == 7.0

    on_mock_clock(test)


def test_a_failure_that_is_not_retried_is_raised_as_it_is() -> None:
    async def test() -> None:
        async with trio.open_nursery() as tasks:
            played = Played(tasks, ((1.0, None),) * 3, RETRY_ATTEMPTS="2")
            raised: list[ProxyError] = []
            try:
                await played.play()
            except ProxyError as error:
                raised.append(error)
            assert type(raised[0]) is ConnectFailed
            assert played.began_at == [0.0, 1.0 + 1.0, 3.0 + 2.0]
            assert (played.exchange.attempts, played.exchange.retry_seconds) == (3, 5.0)
            assert played.exchange.retry_suppressed == "attempts"

    on_mock_clock(test)


def test_a_circuit_that_opens_while_a_retry_is_waited_for_ends_it() -> None:
    async def test() -> None:
        circuit = CircuitBreaker(2)
        async with trio.open_nursery() as tasks:
            played = Played(tasks, ((0.0, response_of(500)), (0.0, OK)), circuit, RETRY_BACKOFF="1")
            raised: list[ProxyError] = []

            async def play_it() -> None:
                try:
                    await played.play()
                except ProxyError as error:
                    raised.append(error)

            tasks.start_soon(play_it)
            await trio.sleep(0.2)
            circuit.leave(circuit.enter(0.2), True, 0.2)  # by another request
        assert type(raised[0]) is UpstreamUnavailable
        assert played.began_at == [0.0]
        assert (played.exchange.attempts, played.exchange.retry_seconds) == (2, 0.5)
        assert played.exchange.upstream_status is None

    on_mock_clock(test)


# In the log line


def refuses_first(script: Callable[[MemoryStream], Awaitable[None]]) -> Callable[..., Any]:
    attempts = 0

    async def responses(stream: MemoryStream) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await anyio.sleep(4)
            await stream.send(response_of(429, b"Retry-After: 40", body=FULL))
            stream.close()
        else:
            await script(stream)

    return responses


async def what_retrying_took_is_part_of_ttft() -> None:
    """Connections take 3 s each; the second attempt's stream has its first token after 20."""
    settings = {"RETRY_ATTEMPTS": "1", "WARM_CONNECTIONS": "0"}
    async with rig(refuses_first(slow_stream), 3, **settings) as running:
        await running.client.send(STREAMED)
        line = await running.line()
    # 3 to connect, 4 for the response, 40 to 50 of waiting
    assert 47 <= line["retry_seconds"] <= 57
    assert (line["tries"], line["connect_seconds"]) == (2, 3.0)
    assert line["upstream_ttft_seconds"] == 20.0
    assert line["ttfb_seconds"] == 2.0
    assert line["proxy_ttft_seconds"] == pytest.approx(line["retry_seconds"] + 3.0)
    assert line["ttft_seconds"] == pytest.approx(line["retry_seconds"] + 23.0)
    assert line["proxy_own_seconds"] == 0.0
    assert line["overhead_seconds"] == 0.0
    parts = ("retry", "connect", "proxy_own", "queue", "prompt", "network")
    reported = sum(Decimal(repr(line[f"{part}_seconds"])) for part in parts)
    assert reported == Decimal(repr(line["ttft_seconds"]))


def test_retry_time_is_part_of_ttft() -> None:
    on_mock_clock(what_retrying_took_is_part_of_ttft)


async def a_request_lost_before_the_client_left_is_charged() -> None:
    """Connections take 3 s each. The second request is lost with its connection, and the client
    disconnects while there is no other yet: the API may have carried out what it had read."""
    read: list[bytes] = []

    async def loses_the_second(stream: MemoryStream) -> None:
        await stream.send(OK)
        read.append(b"")
        while not read[0].endswith(b"]}"):
            read[0] += await stream.receive()
        stream.close()

    async with rig(loses_the_second, 3, WARM_CONNECTIONS="0") as running:
        await running.client.send(STREAMED)
        await running.line()
        await running.client.send(STREAMED)
        await anyio.sleep(1)
        running.client.close()
        line = await running.lines.exchange(2, timeout=1e6)
    assert read[0].endswith(b"]}")
    assert (line["outcome"], line["tries"]) == ("client_disconnected", 2)
    assert (line["usage_source"], line["prompt_tokens"], line["completion_tokens"]) == (
        *("estimated", -(-len(STREAMED.partition(b"\r\n\r\n")[2]) // 4), 0),
    )
    assert line["cost_usd"] > 0


def test_a_request_lost_before_the_client_left_is_charged() -> None:
    on_mock_clock(a_request_lost_before_the_client_left_is_charged)


_seconds = st.floats(0, 1000).map(lambda seconds: round(seconds, 6))


@settings(max_examples=400)
@given(ended_exchanges(), st.none() | _seconds)
def test_all_parts_of_ttft_add_up_with_retry_time(
    exchange: Exchange, retried: float | None
) -> None:
    exchange.retry_seconds = retried
    timings = Timings.of(exchange)
    waits = (timings.wait_seconds, exchange.connect_seconds, exchange.tls_seconds, retried)
    ours = [timings.proxy_own_seconds, *(each for each in waits if each is not None)]
    theirs = [timings.queue_seconds, timings.prompt_seconds, timings.network_seconds]
    parts = [Decimal(repr(part)) for part in (*ours, *theirs) if part is not None]
    if len(parts) == len(ours) + len(theirs):
        assert sum(parts) == Decimal(repr(timings.ttft_seconds))


def test_the_proxys_own_time_excludes_retry_time() -> None:
    timings = Timings.of(stream_exchange(retry_seconds=0.001, connect_seconds=0.0005))
    assert timings.proxy_ttft_seconds == 0.004
    assert timings.proxy_own_seconds == 0.0025
