"""The timings of a plain response that was reassembled from a stream."""

import pytest
from exchanges import assembled_exchange, stream_exchange

from ape_cerebras.errors import ClientGone, Truncated
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.timings import Timings

TIMES = {
    "ttft_seconds": 0.202,  # 100.2 - 100.0, and 2 ms to pass the reply on
    "upstream_ttft_seconds": 0.199,
    "proxy_ttft_seconds": 0.003,
    "ttfb_seconds": 0.099,
    "ttfo_seconds": 0.302,
    "total_time_seconds": 0.702,
    "overhead_seconds": 0.004,
    "generation_seconds": 0.4,
    "tpot_seconds": 0.1,
    "queue_seconds": 0.05,
    "prompt_seconds": 0.06,
    "completion_seconds": 0.4,
    "network_seconds": 0.089,
    "tokens_per_second": 12.5,
}


def test_the_times_of_a_reassembled_response() -> None:
    timings = Timings.of(assembled_exchange(upstream_wait_seconds=0.698))
    assert timings.ttft_source == "measured"
    assert {name: getattr(timings, name) for name in TIMES} == TIMES


@pytest.mark.parametrize(
    "exchange",
    [
        assembled_exchange(error=ClientGone()),
        assembled_exchange(error=Truncated()),
        assembled_exchange(stream_failed=True),
        stream_exchange(first_token_sent_at=None, error=ClientGone()),
        stream_exchange(first_token_sent_at=None),
    ],
)
def test_a_token_that_never_reached_the_client_has_no_ttft(exchange: Exchange) -> None:
    timings = Timings.of(exchange)
    assert timings.ttft_source is None
    for name in ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "network_seconds"):
        assert getattr(timings, name) is None, name


@pytest.mark.parametrize(
    "exchange",
    [
        assembled_exchange(has_reasoning=False),
        assembled_exchange(first_output_at=None),
        assembled_exchange(error=Truncated()),
        assembled_exchange(stream_failed=True),
    ],
)
def test_no_ttfo_without_an_output_token(exchange: Exchange) -> None:
    assert Timings.of(exchange).ttfo_seconds is None
