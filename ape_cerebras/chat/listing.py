"""What the API's public list says of its models, beside our own table of prices, sans I/O.

An entry that is odd is passed over, and so is a price or a limit that is: a price that is wrong is
worse than none. What is no list is refused whole.
"""

import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import orjson

from ..config.prices import Price, PriceTable, read_price

__all__ = ("Drift", "Model", "closest", "drift", "merged", "read_listing")

_MODELS_AT_MOST = 100  # the API has a handful
_NAME = re.compile(r"[\x21-\x7e]{1,64}")
# A text. So many decimals per token are the 12 per million that a price may have.
_PER_TOKEN = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,18})?")
_MAX_LIMIT = 2**40

_PRICES = {"input": "prompt", "output": "completion"}
_LIMITS = {
    "context_tokens": "max_context_length",
    "completion_tokens": "max_completion_tokens",
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
}


class Model(NamedTuple):
    """What is said of one: its price, and its limits by the names that they have here."""

    price: Price | None
    limits: Mapping[str, int]
    deprecated: bool


def read_listing(text: bytes) -> dict[str, Model]:
    """The models in a list, by name. Raises ValueError where it is none."""
    try:
        entries = orjson.loads(text)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError("is no list of models") from None
    if not isinstance(entries, list) or len(entries) > _MODELS_AT_MOST:
        raise ValueError("is no list of models, or one that is too long")
    return {entry["id"]: _read_model(entry) for entry in entries if _is_named(entry)}


def _is_named(entry: Any) -> bool:
    name = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _read_model(entry: dict[str, Any]) -> Model:
    return Model(_read_price(entry), _read_limits(entry), entry.get("deprecated") is True)


def _read_limits(entry: dict[str, Any]) -> dict[str, int]:
    limits = entry.get("limits")
    if not isinstance(limits, dict):
        return {}
    told = ((here, limits.get(there)) for here, there in _LIMITS.items())
    return {name: limit for name, limit in told if type(limit) is int and 0 < limit <= _MAX_LIMIT}


def _read_price(entry: dict[str, Any]) -> Price | None:
    """From US dollars per token, as text, to those per million, exactly."""
    try:
        prices = {here: entry["pricing"][there] for here, there in _PRICES.items()}
        per_million = {name: format(_per_million(text), "f") for name, text in prices.items()}
        return read_price(entry["id"], per_million)
    except (KeyError, TypeError, ValueError):
        return None


def _per_million(per_token: Any) -> Decimal:
    if not isinstance(per_token, str) or not _PER_TOKEN.fullmatch(per_token):
        raise ValueError("is no price per token")
    return Decimal(per_token).scaleb(6)


def merged(table: PriceTable, models: Mapping[str, Model]) -> PriceTable:
    """The table with the prices of the list in it; those that the user has set stay."""
    listed = {name: model.price for name, model in models.items() if model.price is not None}
    if table.is_built_in:
        return PriceTable({**table.prices, **listed})
    return PriceTable({**listed, **table.prices})


class Drift(NamedTuple):
    """Models by how table and list differ in them: they have another price there, they are only
    there, they are only here."""

    price: tuple[str, ...]
    only_listed: tuple[str, ...]
    not_listed: tuple[str, ...]


def drift(table: PriceTable, models: Mapping[str, Model]) -> Drift:
    """What the table and the list differ in."""
    prices = table.prices
    return Drift(
        tuple(
            name
            for name, (price, *_) in models.items()
            if price is not None and name in prices and _differ(price, prices[name])
        ),
        tuple(name for name in models if name not in prices),
        tuple(name for name in prices if name not in models),
    )


def _differ(listed: Price, ours: Price) -> bool:
    """The list knows no price of cached input."""
    return listed[:2] != ours[:2]


def closest(model: str, served: Collection[str]) -> str | None:
    """Of the models served, the one whose name is most like this one's; None where none is
    served."""
    return max(served, key=lambda name: _likeness(model, name), default=None)


def _likeness(one: str, other: str) -> float:
    """From 0 to 1: how many of their pairs of neighbouring characters they share."""
    pairs, others = ({*pairwise(name.casefold())} for name in (one, other))
    return len(pairs & others) / max(1, len(pairs | others))
