"""The price table, and the cost of an exchange in exact decimals.

Prices are read strictly: a price that is wrong is worse than none. The usual mistakes are of the
unit, dollars per token in place of a million or the other way, and give prices that cannot be.
"""

import json
import re
from dataclasses import dataclass, field
from decimal import Context, Decimal, InvalidOperation
from importlib.resources import files
from typing import Any, NamedTuple

__all__ = ("Price", "PriceTable", "is_plausible_change", "read_price", "read_price_per_token")

_MILLION = Decimal(1_000_000)

# No model is, or was, as dear as the one (the dearest of 2025 took 600 dollars), and none that is
# not free as cheap as the other. Per token, prices of models are below, and quoted as such above.
_MAX_PRICE = 1_000
_MIN_PRICE = Decimal("0.0001")
_MAX_CHANGE = 50  # times; a mistake of the unit is one of 100 (cents), 1,000 or a million
_MAX_MODELS = 1_000
_NAME_SHOWN = 64  # characters, of a model

# With prices so large and no more decimals than these, 64 digits hold every cost without rounding.
_MAX_DECIMALS = 12
_EXACT = Context(prec=64)

# A text. So many decimals per token are the 12 per million that a price may have.
_PER_TOKEN = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,18})?")
_PER_TOKEN_NAMES = {"input": "prompt", "output": "completion"}


class Price(NamedTuple):
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cached_input: Decimal


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices by model name. A model without a price has no cost, which is not a cost of 0."""

    prices: dict[str, Price]
    is_built_in: bool = field(default=False, compare=False)
    """Whether it is the built-in table, not one from MODEL_PRICES."""

    def cost(self, model: str, prompt: int, completion: int, cached: int) -> Decimal | None:
        """The exact cost in US dollars; None if the model has no price. ``cached`` tokens are part
        of the ``prompt`` tokens."""
        price = self.prices.get(model)
        if price is None:
            return None
        cached = min(cached, prompt)
        # By the context's methods: to make it the thread's takes as long again.
        cost = _EXACT.multiply(prompt - cached, price.input)
        cost = _EXACT.fma(cached, price.cached_input, cost)
        cost = _EXACT.fma(completion, price.output, cost)
        return _EXACT.divide(cost, _MILLION)

    def cost_at_most(self, model: str | None, prompt: int, completion: int) -> Decimal | None:
        """The cost if nothing is cached; of the dearest model where the model is not known."""
        names = self.prices if model is None else (model,)
        costs = [self.cost(name, prompt, completion, 0) for name in names]
        return max((cost for cost in costs if cost is not None), default=None)

    @classmethod
    def built_in(cls) -> "PriceTable":
        """The table of the package: the prices that Cerebras published, as of late 2026.

        No discount for cached tokens is published, so they cost the price of input.
        """
        table = cls.from_json((files(__package__) / "prices.json").read_text("utf-8"))
        return cls(table.prices, is_built_in=True)

    @classmethod
    def from_json(cls, text: str) -> "PriceTable":
        """Read ``{"model": {"input": 0.35, "output": 0.75, "cached_input": 0.35}, …}``.

        Values are US dollars per million tokens, as numbers or strings; the default of
        ``cached_input`` is the price of input. Raises ValueError with our own text.
        """
        try:
            table = json.loads(
                text, parse_float=str, parse_int=str, object_pairs_hook=_without_duplicates
            )
        except (ValueError, RecursionError):
            raise ValueError("is not valid JSON, or names something twice") from None
        if not isinstance(table, dict):
            raise ValueError("must be a JSON object of prices by model")
        if len(table) > _MAX_MODELS:
            raise ValueError(f"has more than {_MAX_MODELS} models")
        return cls({model: read_price(model, row) for model, row in table.items()})


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError
    return table


def read_price(model: str, row: Any) -> Price:
    """Read a row of the table. Raises ValueError."""
    names = {"input", "output", "cached_input"}
    model = model[:_NAME_SHOWN]
    if not isinstance(row, dict) or not {"input", "output"} <= row.keys() <= names:
        raise ValueError(f"model {model!r} needs input and output, and may have cached_input")
    row = {"cached_input": row["input"], **row}
    return Price(*(_read_amount(model, row[name]) for name in Price._fields))


def _read_amount(model: str, value: Any) -> Decimal:
    try:
        amount = Decimal(value if isinstance(value, str) and "_" not in value else "NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and 0 <= amount <= _MAX_PRICE):
        raise ValueError(f"model {model!r} has a price that is not a number from 0 to {_MAX_PRICE}")
    if amount != round(amount, _MAX_DECIMALS):
        raise ValueError(f"model {model!r} has a price of more than {_MAX_DECIMALS} decimals")
    if 0 < amount < _MIN_PRICE:
        raise ValueError(
            f"model {model!r} has a price below {_MIN_PRICE}: it is per million tokens"
        )
    return amount


def read_price_per_token(model: str, pricing: Any) -> Price:
    """Read ``{"prompt": "0.00000035", "completion": "0.00000075"}``, US dollars per token as text.
    Raises ValueError."""
    if not isinstance(pricing, dict):
        raise ValueError("is no object of prices")
    per_million = {}
    for here, there in _PER_TOKEN_NAMES.items():
        text = pricing.get(there)
        if not isinstance(text, str) or not _PER_TOKEN.fullmatch(text):
            raise ValueError("has no prices as decimal numbers")
        per_million[here] = format(Decimal(text).scaleb(6), "f")
    return read_price(model, per_million)


def is_plausible_change(old: Price, new: Price) -> bool:
    """Whether a model's price may have become the other: not free, and not another unit."""
    pairs = zip(old[:2], new[:2], strict=True)
    return all(
        before == after or (0 < before <= after * _MAX_CHANGE and after <= before * _MAX_CHANGE)
        for before, after in pairs
    )
