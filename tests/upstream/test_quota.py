"""The API's account of its limits."""

import pytest
from exchanges import chat_exchange
from scraping import observed, value

from ape_cerebras.telemetry.exchange import Quota
from ape_cerebras.upstream.quota import read_quota


def test_what_is_told_is_read_by_kind_and_window() -> None:
    headers = (
        (b"x-ratelimit-limit-tokens-minute", b"30000"),
        (b"x-ratelimit-remaining-tokens-minute", b"29123.5"),
        (b"x-ratelimit-reset-tokens-minute", b"11.382867097854614"),
        (b"x-ratelimit-remaining-requests-day", b"999997455"),
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-request-id", b"1"),
    )
    assert read_quota(headers) == Quota(
        {("tokens", "minute"): 30_000.0},
        {("tokens", "minute"): 29_123.5, ("requests", "day"): 999_997_455.0},
        0,
    )


@pytest.mark.parametrize("text", [b"", b"-1", b"1e5", b"nan", b"inf", b"5, 5", b"\xff", b"9" * 40])
def test_what_cannot_be_read_says_nothing_and_is_counted(text: bytes) -> None:
    headers = (
        (b"x-ratelimit-limit-tokens-minute", text),
        (b"x-ratelimit-remaining-tokens-minute", b"5"),
    )
    assert read_quota(headers) == Quota({}, {("tokens", "minute"): 5.0}, 1)
    metrics = observed(chat_exchange(quota=read_quota(headers)))
    assert value(metrics, "malformed_quota_headers_total") == 1
    told = {"kind": "tokens", "window": "minute"}
    assert value(metrics, "upstream_ratelimit_limit", **told) is None
    assert value(metrics, "upstream_ratelimit_remaining", **told) == 5
