"""A warning, once an hour, where little of what is reserved is used."""

import anyio
import pytest
import trio
from end_to_end import KEY, Lines
from exchanges import chat_exchange, with_timings
from trio.testing import MockClock

from ape_cerebras import Config
from ape_cerebras.telemetry.exchange import Exchange, Usage
from ape_cerebras.telemetry.health import Health
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.waste import Waste, Wasted

HOUR = 3600.0


def ended(reserved: int | None, used: int, limit: int | None = None) -> Exchange:
    usage = Usage(used - 1, 1, used, 0, 0)
    return chat_exchange(reserved_tokens=reserved, completion_limit=limit, usage=usage)


@pytest.mark.parametrize(
    ("exchanges", "wasted"),
    [
        ([], None),
        ([ended(1000, 200)], None),
        ([ended(1000, 199)], Wasted(1000, 199, "MAX_COMPLETION_TOKENS_DEFAULT")),
        ([ended(1000, 199, limit=900)], Wasted(1000, 199, "MAX_COMPLETION_TOKENS_CAP")),
        (
            [ended(1000, 10), ended(5000, 10, limit=4000)],
            Wasted(6000, 20, "MAX_COMPLETION_TOKENS_CAP"),
        ),
        ([ended(None, 10), chat_exchange(reserved_tokens=1000)], None),
    ],
)
def test_what_an_hour_has_wasted(exchanges: list[Exchange], wasted: Wasted | None) -> None:
    waste = Waste(100.0)
    for exchange in exchanges:
        waste.observe(exchange)
    assert waste.look(100.0 + HOUR - 0.001) is None
    assert waste.look(100.0 + HOUR) == wasted
    assert waste.look(100.0 + HOUR) is None
    assert waste.look(100.0 + 2 * HOUR) is None  # each hour has its own account


def test_the_warning_comes_once_an_hour_and_names_the_setting() -> None:
    async def test() -> None:
        lines, config = Lines(), Config.from_environment({"CEREBRAS_API_KEY": KEY})
        metrics, logs = Metrics(config, "trio"), Logs("info", lines.write)
        health = Health(config, metrics, logs, None, lambda: False, None)
        for hour in range(5):
            if hour < 3:
                health.observe(*with_timings(ended(1000, 100)))
            for _ in range(60):
                await anyio.sleep(60)
                health.look()
        told = [(line["level"], line["reserved_tokens"], line["setting"]) for line in lines.all()]
        assert told == [("warning", 1000, "MAX_COMPLETION_TOKENS_DEFAULT")] * 3

    trio.run(test, clock=MockClock(autojump_threshold=0))
