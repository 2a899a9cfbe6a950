"""The file of client keys, each with a name and limits::

    [[keys]]
    name = "alice"
    key = "…"                      # or sha256 = "…", in hexadecimal digits
    requests_per_minute = 60       # this and all that follows is optional
    concurrent_requests = 8
    usd_per_day = 5.00
    models = ["gpt-oss-120b"]

Error messages name the entry and the setting, and quote nothing of the file: any text in it may be
a key in the wrong place.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from .values import KEY, KEY_NAME, MODEL, ClientKey

__all__ = ("KeysFile", "read_keys_file")

_MAX_BYTES = 1024 * 1024
_SHA256 = re.compile("[0-9a-fA-F]{64}")
_MOST = 10_000_000


@dataclass(frozen=True)
class KeysFile:
    """The path of the file, and the keys in it when it was read."""

    path: str
    keys: tuple[ClientKey, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.path


def _text(pattern: str, what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {what}")
        return value

    return read


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"must be a whole number from 1 to {_MOST}")
    return value


def _dollars(value: Any) -> Decimal:
    if type(value) not in (int, Decimal) or Decimal(value).is_nan() or not 0 < value <= _MOST:
        raise ValueError(f"must be a number above 0, and {_MOST} at most")
    return Decimal(value)


def _models(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of model names")
    return frozenset(map(_text(MODEL, "a list of model names"), value))


_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "name": _text(KEY_NAME, "1 to 64 of A-Z a-z 0-9 . _ -"),
    "key": _text(KEY, "visible ASCII without white space"),
    "sha256": _text(_SHA256.pattern, "64 hexadecimal digits"),
    "requests_per_minute": _count,
    "concurrent_requests": _count,
    "usd_per_day": _dollars,
    "models": _models,
}


def read_keys_file(path: str) -> KeysFile:
    """Read and check the file. Raises ValueError with a text that follows the variable's name."""
    import tomllib  # here, because few proxies have such a file

    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        table = tomllib.loads(content.decode("utf-8"), parse_float=Decimal)
    except OSError:
        raise ValueError("names a file that cannot be read") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        raise ValueError("names a file that is not valid TOML") from None
    if len(content) > _MAX_BYTES:
        raise ValueError("names a file that is too large for a keys file")
    return KeysFile(path, _read_keys(table))


def _read_keys(table: dict[str, Any]) -> tuple[ClientKey, ...]:
    entries = table.pop("keys", None)
    if table or not isinstance(entries, list) or not entries:
        raise ValueError("names a file that must hold tables [[keys]] and nothing else")
    keys = tuple(_read_key(number, entry) for number, entry in enumerate(entries, 1))
    for what in ("name", "digest"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise ValueError(f"names a file with the same {_CALLED[what]} twice")
    return keys


_CALLED = {"name": "name", "digest": "key"}


def _read_key(number: int, entry: Any) -> ClientKey:
    where = f"names a file in which [[keys]] number {number}"
    if not isinstance(entry, dict) or not entry.keys() <= _SETTINGS.keys():
        raise ValueError(f"{where} has a setting that is none of {', '.join(_SETTINGS)}")
    if "name" not in entry or ("key" in entry) == ("sha256" in entry):
        raise ValueError(f"{where} needs a name, and either key or sha256")
    values = {}
    for setting, value in entry.items():
        try:
            values[setting] = _SETTINGS[setting](value)
        except ValueError as problem:
            raise ValueError(f"{where} has a wrong {setting}: it {problem}") from None
    key, sha256 = values.pop("key", None), values.pop("sha256", "")
    digest = bytes.fromhex(sha256) if key is None else hashlib.sha256(key.encode()).digest()
    return ClientKey(digest, **values)
