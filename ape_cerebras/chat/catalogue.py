"""What is known of the API's models: prices, limits, and which of them there are.

With PRICE_CATALOGUE the API's public list is asked for in the background, without the key, when the
proxy begins and an hour after each answer. While it fails, what was known stays.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import anyio

from ..config.config import Config
from ..errors import InvalidResponse, ProxyError
from ..telemetry.exchange import Exchange
from ..telemetry.logs import Logs
from ..telemetry.model_metrics import ModelMetrics
from ..upstream.client import UpstreamClient
from .listing import Drift, Model, closest, drift, merged, read_listing
from .models import ModelList

__all__ = ("Catalogue",)

_PATH = "/public/v1/models"
_EVERY = 3600.0  # seconds
_WITHIN = 30.0  # seconds
_MAX_BYTES = 256 * 1024  # an entry has one or two thousand

_SHOWN_AT_MOST = 5  # names of a kind in a line
_NAME_AT_MOST = 64  # characters
_MISSING_AT_MOST = 100  # models of which it is told once that they are; clients choose the names
_ASKED_AT_MOST = 256  # characters of such a name


class Catalogue:
    """Of one proxy. ``prices`` is the table that holds."""

    def __init__(
        self,
        config: Config,
        upstream: UpstreamClient,
        models: ModelList,
        metrics: ModelMetrics,
        logs: Logs,
    ) -> None:
        self._table = config.model_prices
        self._upstream = upstream
        self._models = models
        self._metrics = metrics
        self._logs = logs
        self._listed: dict[str, Model] = {}
        self._told: Drift | None = None
        self._missing: set[str] = set()
        self.prices = self._table

    async def keep(self, begin: Callable[[], Exchange]) -> None:
        """Ask, and ask again. ``begin`` opens an exchange that nobody observes. Runs until
        cancelled."""
        while True:
            await self._refresh(begin())
            await anyio.sleep(_EVERY)

    async def _refresh(self, exchange: Exchange) -> None:
        listed = None
        with suppress(ProxyError, ValueError), anyio.move_on_after(_WITHIN):
            listed = read_listing(await self._ask(exchange))
        self._metrics.note_fetch(listed is not None)
        if listed is None:
            self._logs.event("warning", "The API's public list of models could not be fetched")
            return
        self._listed = listed
        self.prices = merged(self._table, listed)
        self._tell(drift(self._table, listed))

    async def _ask(self, exchange: Exchange) -> bytes:
        with await self._upstream.send(exchange, "GET", _PATH, (), with_key=False) as response:
            body = await response.whole(_MAX_BYTES)
        if response.status != 200:
            raise InvalidResponse
        return body

    def _tell(self, found: Drift) -> None:
        """Metrics each time; the log where it is news."""
        self._metrics.tell(self._listed, found)
        if any(found) and found != self._told:
            level = "warning" if found.price else "info"
            message = "The API's list of models is not as the price table"
            self._logs.event(level, message, **_shown(found))
        self._told = found

    def _served(self) -> Iterable[str]:
        """The models that there are, as far as that is known."""
        listed = [name for name, model in self._listed.items() if not model.deprecated]
        return listed or self._models.names

    def note_missing(self, model: str | None, trace_id: str) -> None:
        """Tell, once, of a model that the API says it does not have; and which one that it has
        comes closest, for an alias."""
        missing = (model or "")[:_ASKED_AT_MOST]
        if not missing or missing in self._missing or len(self._missing) >= _MISSING_AT_MOST:
            return
        self._missing.add(missing)
        found = closest(missing, [name for name in self._served() if name not in self._missing])
        fields = {"model": missing} if found is None else {"model": missing, "closest_model": found}
        message = "Upstream does not have this model; an alias in MODEL_ALIASES would help"
        self._logs.event("warning", message, trace_id=trace_id, **fields)


def _shown(found: Drift) -> dict[str, Any]:
    """As much of it as fits into a line."""
    return {
        kind: [name[:_NAME_AT_MOST] for name in names[:_SHOWN_AT_MOST]]
        for kind, names in found._asdict().items()
        if names
    }
