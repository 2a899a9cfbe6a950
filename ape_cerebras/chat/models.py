"""The API's models: which there are, their prices and limits, and how their tokens are estimated.

``ModelList`` serves ``/v1/models``: upstream's list, kept for a minute; the last one while upstream
fails; the models of the price table while there has been none.

``Catalogue`` fetches the API's public list where PRICE_CATALOGUE is on: in the background, without
the key, when the proxy starts and an hour after each attempt. While that fails, the last one stays.
Its entries are read permissively: an odd one is skipped, and so is an odd limit. A price that
cannot be, or cannot have become of the one before, is refused and the one before stays, because a
wrong price is worse than none. A response that is no list is refused whole.

``UsageEstimates`` estimates the tokens of a response whose usage did not come, from what did.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import orjson

from ..config.config import Config
from ..config.prices import Price, PriceTable, is_plausible_change, read_price_per_token
from ..errors import InvalidResponse, ModelNotFound, ProxyError
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange, Usage
from ..telemetry.logs import Logs
from ..telemetry.metrics import Metrics
from ..upstream.client import UpstreamClient, UpstreamRequest, waiting_for_upstream

__all__ = (
    "Catalogue",
    "Drift",
    "Model",
    "ModelList",
    "UsageEstimates",
    "checked",
    "closest",
    "drift",
    "merged",
    "read_catalogue",
)

# The list that clients get
_LIST_PATH = "/v1/models"
_LIST_MAX_BYTES = 64 * 1024  # many times the API's; to parse more would hold the event loop
_FRESH_FOR = 60.0  # seconds
_RETRY_AFTER = 5.0  # seconds, so that an upstream that is down does not delay every caller
_LIST_TIMEOUT = 10.0  # seconds; all callers wait for the same response

# The public list
_CATALOGUE_PATH = "/public/v1/models"
_CATALOGUE_MAX_BYTES = 256 * 1024  # an entry has one or two thousand
_CATALOGUE_INTERVAL = 3600.0  # seconds
_CATALOGUE_TIMEOUT = 30.0  # seconds
_MAX_MODELS = 100  # the API has a handful
_NAME = re.compile(r"[\x21-\x7e]{1,64}")
_MAX_LIMIT = 2**40
_LIMITS = {
    "context_tokens": "max_context_length",
    "completion_tokens": "max_completion_tokens",
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
}

# Tokens, where neither the request nor the list says: the most of all models (late 2026).
_MAX_COMPLETION = 40_960

# Log lines
_NAMES_PER_LINE = 5  # of a kind
_NAME_CHARACTERS = 64
_MISSING_AT_MOST = 100  # models of which it is logged once that they are; clients choose the names
_MISSING_CHARACTERS = 256

# Estimates. Recorded in 2026: an event of gpt-oss-120b has 7 to 8 tokens, one of zai-glm-4.7 has 3.
_TOKENS_PER_EVENT = 6.0  # of a model of which no stream has ended yet
_PAST_COUNTS = 0.9  # of what it did one stream before, so that the last ten count most
_BYTES_PER_TOKEN = 4
_BYTES_BESIDES_TEXT = 280  # of a recorded plain body


async def _fetch(
    upstream: UpstreamClient, exchange: Exchange, path: str, max_bytes: int, *, with_key: bool
) -> bytes:
    request = UpstreamRequest("GET", path, with_key=with_key)
    with await upstream.send(exchange, request) as response:
        body = await response.read_all(max_bytes)
    if response.status != 200:
        raise InvalidResponse
    return body


class ModelList:
    """Fetches upstream's list when a client requests it, one fetch at a time, never by itself."""

    def __init__(self, config: Config, upstream: UpstreamClient) -> None:
        self._upstream = upstream
        self._aliases = config.model_aliases
        self._clock = loop_clock()
        self._fetching = anyio.Lock()
        self._good_until = float("-inf")
        entries = [
            {"id": name, "object": "model", "created": 0, "owned_by": "Cerebras"}
            for name in config.model_prices.prices
        ]
        self._text = orjson.dumps({"object": "list", "data": entries})
        self._by_id = _read_list(self._text)

    @property
    def names(self) -> Iterable[str]:
        """As far as they are known without a fetch."""
        return self._by_id.keys()

    async def text(self, exchange: Exchange) -> bytes:
        """The list as JSON: upstream's own bytes where there are any."""
        if self._clock() >= self._good_until:
            # Through another's fetch, which serves all.
            with waiting_for_upstream(exchange, self._clock):
                await self._fetching.acquire()
            try:
                if self._clock() >= self._good_until:
                    await self._refresh(exchange)
            finally:
                self._fetching.release()
        return self._text

    async def entry(self, exchange: Exchange, model: str) -> bytes:
        """One model as JSON; for an alias, the model that is served in its place, under the alias.
        Raises ModelNotFound."""
        await self.text(exchange)
        entry = self._by_id.get(self._aliases.get(model, model))
        if entry is None:
            raise ModelNotFound
        if model in self._aliases:
            entry = orjson.dumps({**orjson.loads(entry), "id": model})
        return entry

    async def _refresh(self, exchange: Exchange) -> None:
        fresh_for = _RETRY_AFTER
        with suppress(ProxyError), anyio.move_on_after(_LIST_TIMEOUT):
            text = await _fetch(
                self._upstream, exchange, _LIST_PATH, _LIST_MAX_BYTES, with_key=True
            )
            self._text, self._by_id = text, _read_list(text)
            fresh_for = _FRESH_FOR
        self._good_until = self._clock() + fresh_for


def _read_list(text: bytes) -> dict[str, bytes]:
    """The entries of a list of models, each as JSON by its id. Raises InvalidResponse where it is
    none."""
    try:
        entries = orjson.loads(text)["data"]
        if not isinstance(entries, list) or not all(isinstance(e["id"], str) for e in entries):
            raise InvalidResponse
        return {entry["id"]: orjson.dumps(entry) for entry in entries}
    except (orjson.JSONDecodeError, KeyError, TypeError):  # the last also where it nests too deep
        raise InvalidResponse from None


class Model(NamedTuple):
    """An entry of the public list: the price, and the limits by the names that they have here."""

    price: Price | None
    limits: Mapping[str, int]
    deprecated: bool
    price_refused: bool = False


class Drift(NamedTuple):
    """Models in which table and list differ: another price in the list, only in the list, only in
    the table, a price in the list that cannot be."""

    price: tuple[str, ...]
    only_listed: tuple[str, ...]
    not_listed: tuple[str, ...]
    price_refused: tuple[str, ...] = ()


class Catalogue:
    """What one proxy knows of the models. ``prices`` is the table that costs are computed with."""

    def __init__(
        self,
        config: Config,
        upstream: UpstreamClient,
        models: ModelList,
        metrics: Metrics,
        logs: Logs,
    ) -> None:
        self._table = config.model_prices
        self._upstream = upstream
        self._models = models
        self._metrics = metrics
        self._logs = logs
        self._listed: dict[str, Model] = {}
        self._logged: Drift | None = None
        self._missing: set[str] = set()
        self.prices = self._table

    async def refresh_hourly(self, exchange: Exchange) -> None:
        """Fetch the list, and again. ``exchange`` is one that nobody observes. Runs until
        cancelled."""
        while True:
            await self._refresh(exchange)
            await anyio.sleep(_CATALOGUE_INTERVAL)

    async def _refresh(self, exchange: Exchange) -> None:
        listed = None
        with suppress(ProxyError, ValueError), anyio.move_on_after(_CATALOGUE_TIMEOUT):
            text = await _fetch(
                self._upstream, exchange, _CATALOGUE_PATH, _CATALOGUE_MAX_BYTES, with_key=False
            )
            listed = checked(read_catalogue(text), self.prices)
        self._metrics.count_catalogue_fetch(listed is not None)
        if listed is None:
            self._logs.event("warning", "The API's public list of models could not be fetched")
            return
        self._listed = listed
        self.prices = merged(self._table, listed)
        found = drift(self._table, listed)
        self._metrics.set_catalogue(
            {name: model.limits for name, model in listed.items()},
            {kind: len(names) for kind, names in found._asdict().items()},
        )
        if any(found) and found != self._logged:
            level = "warning" if found.price or found.price_refused else "info"
            message = "The API's list of models differs from the price table"
            shown: dict[str, Any] = {
                kind: [name[:_NAME_CHARACTERS] for name in names[:_NAMES_PER_LINE]]
                for kind, names in found._asdict().items()
                if names
            }
            self._logs.event(level, message, **shown)
        self._logged = found

    def completion_at_most(self, model: str | None, limit: int | None, choices: int) -> int:
        """The completion tokens that a request may have, with ``limit`` for each of its
        ``choices``."""
        listed = self._listed.get(model or "")
        most = None if listed is None else listed.limits.get("completion_tokens")
        known = [number for number in (limit, most) if number is not None]
        return choices * min(known, default=_MAX_COMPLETION)

    def note_missing(self, model: str | None, trace_id: str) -> None:
        """Log once that the API does not have a model, with the name of the closest one that it
        has, for an alias."""
        missing = (model or "")[:_MISSING_CHARACTERS]
        if not missing or missing in self._missing or len(self._missing) >= _MISSING_AT_MOST:
            return
        self._missing.add(missing)
        served = [name for name, each in self._listed.items() if not each.deprecated]
        candidates = [name for name in served or self._models.names if name not in self._missing]
        found = closest(missing, candidates)
        fields = {"model": missing} if found is None else {"model": missing, "closest_model": found}
        message = "Upstream does not have this model; an alias in MODEL_ALIASES would help"
        self._logs.event("warning", message, trace_id=trace_id, **fields)


class UsageEstimates:
    """Tokens of responses that were cut, or came without usage, by what was seen of them.

    Of a stream that is the number of events with tokens. The first of them has one token, as
    recorded of the API, and the others have as many as those of the same model had lately. Of the
    first hundred models each is known by itself. A plain body has a token for every four bytes, and
    so has one that could not be decoded, for every four as they came.
    """

    def __init__(self) -> None:
        self._sums: dict[str | None, tuple[float, float]] = {}  # tokens, events

    def learn_from(self, exchange: Exchange) -> None:
        """Take in how many tokens an event had, of a whole stream with usage."""
        events = exchange.token_events - 1
        if exchange.usage is None or events < 1:
            return
        if exchange.model in self._sums or len(self._sums) < _MAX_MODELS:
            tokens = max(0, exchange.usage.completion_tokens - 1)
            past_tokens, past_events = self._sums.get(exchange.model, (0.0, 0.0))
            self._sums[exchange.model] = (
                past_tokens * _PAST_COUNTS + tokens,
                past_events * _PAST_COUNTS + events,
            )

    def usage_of(self, exchange: Exchange, prompt: int, most: int) -> Usage | None:
        """Estimate the usage of an exchange that has ended, and whose usage did not come, or before
        the last token. None where the API certainly did no work: it did not get the request, or did
        not accept it.

        ``prompt``: tokens of the prompt, where they are not reported. ``most``: completion tokens
        of the estimate at most. Counts that came before the last token are added to.
        """
        reported, later = exchange.usage, exchange.token_events - exchange.usage_events
        if not exchange.was_sent or (exchange.upstream_status or 200) >= 300:
            return None
        if reported is None:
            prompt = exchange.half_prompt_tokens or prompt
            estimate = min(most, self._completion_of(exchange))
            completion = exchange.half_completion_tokens or estimate
            return Usage(prompt, completion, prompt + completion)
        more = reported.completion_tokens + round(later * self._tokens_per_event(exchange.model))
        completion = max(reported.completion_tokens, min(most, more))
        total = reported.prompt_tokens + completion
        return reported._replace(completion_tokens=completion, total_tokens=total)

    def _completion_of(self, exchange: Exchange) -> int:
        unread = exchange.unread_bytes // _BYTES_PER_TOKEN
        if not exchange.streamed:
            text = max(0, exchange.plain_bytes - _BYTES_BESIDES_TEXT)
            return unread + text // _BYTES_PER_TOKEN
        events = exchange.token_events
        more = round((events - 1) * self._tokens_per_event(exchange.model))
        return unread + (1 + more if events else 0)

    def _tokens_per_event(self, model: str | None) -> float:
        tokens, events = self._sums.get(model, (_TOKENS_PER_EVENT, 1))
        return tokens / events


def read_catalogue(text: bytes) -> dict[str, Model]:
    """The models of a public list, by name. Raises ValueError where it is none."""
    try:
        entries = orjson.loads(text)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError("is no list of models") from None
    if not isinstance(entries, list) or len(entries) > _MAX_MODELS:
        raise ValueError("is no list of models, or one that is too long")
    return {
        entry["id"]: _read_model(entry)
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("id"), str)
        and _NAME.fullmatch(entry["id"])
    }


def _read_model(entry: dict[str, Any]) -> Model:
    price, refused = None, False
    if (pricing := entry.get("pricing")) is not None:
        try:
            price = read_price_per_token(entry["id"], pricing)
        except ValueError:
            refused = True
    deprecated = entry.get("deprecated") is True
    return Model(price, _read_limits(entry.get("limits")), deprecated, refused)


def _read_limits(limits: Any) -> dict[str, int]:
    if not isinstance(limits, dict):
        return {}
    found = ((here, limits.get(there)) for here, there in _LIMITS.items())
    return {name: limit for name, limit in found if type(limit) is int and 0 < limit <= _MAX_LIMIT}


def checked(models: Mapping[str, Model], before: PriceTable) -> dict[str, Model]:
    """The models of a list, with the price before in place of each that cannot have become of
    it."""
    found = dict(models)
    for name, model in models.items():
        old = before.prices.get(name)
        if model.price is not None and old is not None:
            model = model._replace(price_refused=not is_plausible_change(old, model.price))
        found[name] = model._replace(price=old) if model.price_refused else model
    return found


def merged(table: PriceTable, models: Mapping[str, Model]) -> PriceTable:
    """The table with the list's prices in it; those that the user has set stay."""
    listed = {name: model.price for name, model in models.items() if model.price is not None}
    if table.is_built_in:
        return PriceTable({**table.prices, **listed})
    return PriceTable({**listed, **table.prices})


def drift(table: PriceTable, models: Mapping[str, Model]) -> Drift:
    """The models in which the table and the list differ. The list has no price of cached input."""
    prices = table.prices
    return Drift(
        tuple(
            name
            for name, (price, *_) in models.items()
            if price is not None and name in prices and price[:2] != prices[name][:2]
        ),
        tuple(name for name in models if name not in prices),
        tuple(name for name in prices if name not in models),
        tuple(name for name, model in models.items() if model.price_refused),
    )


def closest(model: str, served: Collection[str]) -> str | None:
    """Return the served model whose name has most pairs of neighbouring characters in common with
    this one; None where none is served."""
    pairs = {*pairwise(model.casefold())}
    others = {name: {*pairwise(name.casefold())} for name in served}
    shares = {name: len(pairs & each) / max(1, len(pairs | each)) for name, each in others.items()}
    return max(served, key=shares.__getitem__, default=None)
