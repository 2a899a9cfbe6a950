"""The price table, and the cost of an exchange in exact decimals.

Prices are read strictly: a price that is wrong is worse than none.
"""

import json
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation, localcontext
from importlib.resources import files
from typing import Any, NamedTuple

__all__ = ("Price", "PriceTable", "read_price")

_MILLION = Decimal(1_000_000)

# Prices stay within these, so that 64 digits hold every cost without rounding.
_MAX_PRICE = 1_000_000
_MAX_DECIMALS = 12
_COST_DIGITS = 64


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
        with localcontext(prec=_COST_DIGITS):
            return (
                (prompt - cached) * price.input
                + cached * price.cached_input
                + completion * price.output
            ) / _MILLION

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
        return cls({model: read_price(model, row) for model, row in table.items()})


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError
    return table


def read_price(model: str, row: Any) -> Price:
    """Read a row of the table. Raises ValueError."""
    names = {"input", "output", "cached_input"}
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
    return amount
