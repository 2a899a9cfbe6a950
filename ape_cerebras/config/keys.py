"""The account's key, the clients' keys, and the file of them, each with a name and limits::

    [[keys]]
    name = "alice"
    key = "…"                      # or sha256 = "…", in hexadecimal digits
    requests_per_minute = 60       # this and all that follows is optional
    concurrent_requests = 8
    usd_per_day = 5.00
    models = ["gpt-oss-120b"]
    unpriced = "refuse"            # models without a price; by default "allow"

Error messages have the line, the entry and the setting. They quote nothing of the file but an
entry's short name: any other text in it may be a key in the wrong place.

The file is read again while the service runs (SIGHUP), so nothing in it may raise anything but
ValueError, or take long.
"""

import hashlib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .values import MODEL, read_file, reject_unfinished

__all__ = (
    "ClientKey",
    "KeysFile",
    "UpstreamKey",
    "read_client_keys",
    "read_keys_file",
    "read_secret",
)

_SECRET = re.compile(r"[\x21-\x7e]+")
_KEY_NAME = r"[A-Za-z0-9._-]{1,64}"
_KEY = r"[\x21-\x7e]{1,4096}"
# A name without a key is rejected: "name:${KEY}" with an unset KEY must not let everybody in.
_NAMED_KEY = re.compile(
    rf"(?![A-Za-z0-9._-]+:$)(?:(?P<name>{_KEY_NAME}):)?(?P<key>[\x21-\x2b\x2d-\x7e]+)"
)
# Examples of documentation.
_PLACEHOLDER = re.compile(
    r"(?:\w+[-_])?(?:your|insert|enter|paste|replace|put)[-_][a-z_-]*|(?:change|replace)[-_]?me"
    r"|(?:\w+[-_])?(?:x{3,}|\.{3,}|\*{3,})|\$[a-z_]\w*|%\w+%|<.*>"
    r"|(?:\w+[-_])?(?:api|secret)[-_]?key(?:[-_]here)?|placeholder|none|null|undefined|todo",
    re.IGNORECASE,
)

_MAX_BYTES = 1024 * 1024
_MAX_KEYS = 10_000  # a request is compared with all of them
_SHA256 = re.compile("[0-9a-fA-F]{64}")
_OF_NO_KEY = {hashlib.sha256(text).hexdigest() for text in (b"", b"\n")}
_MOST = 10_000_000
_DECIMALS = 12  # of a dollar, which limit stores count in whole numbers
_AT_LINE = re.compile(r"\(at line (\d+), ")
_HEADER = re.compile(r"\s*\[\[\s*keys\s*\]\]")
_SHOWN_NAME = re.compile("[A-Za-z0-9._-]{1,20}")  # longer ones may be keys
# Of a dotted key: the library takes minutes for one of ten thousand, and none has any here.
_MAX_DOTS = 16
_LONG_NUMBER = re.compile("[0-9_]{1000}")  # Python refuses to read one of 4,300 digits
_PARTS_OF_A_KEY = re.compile(r"[^\w.\"' \t-]+")


class UpstreamKey(str):
    """The account's key. Only ``encode`` reveals it; printing and formatting do not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(secret)'"

    def __str__(self) -> str:
        return "(secret)"

    def __format__(self, spec: str) -> str:
        return "(secret)"


class ClientKey(NamedTuple):
    """A client key: the SHA-256 of the key, its name if it has one, and its limits; None: no
    limit. ``unpriced``: "allow" or "refuse" models without a price."""

    digest: bytes
    name: str | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    usd_per_day: Decimal | None = None
    models: frozenset[str] | None = None
    unpriced: str = "allow"

    @property
    def is_limited(self) -> bool:
        return self[2:] != _NO_LIMITS


_NO_LIMITS = ClientKey(b"")[2:]


@dataclass(frozen=True)
class KeysFile:
    """The path of the file, and the keys in it when it was read."""

    path: str
    keys: tuple[ClientKey, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.path


def read_key(text: str) -> str:
    """A key of whatever kind. Raises ValueError."""
    reject_unfinished(text)
    if _PLACEHOLDER.fullmatch(text):
        raise ValueError("is a placeholder and no key")
    return text


def read_secret(text: str) -> UpstreamKey:
    if not _SECRET.fullmatch(text):
        raise ValueError("must be visible ASCII without white space")
    return UpstreamKey(read_key(text))


def read_client_keys(text: str) -> tuple[ClientKey, ...]:
    """``key`` or ``name:key``, several separated by commas."""
    keys = []
    for item in text.split(","):
        match = _NAMED_KEY.fullmatch(item.strip())
        if match is None:
            raise ValueError("must be keys of visible ASCII, comma-separated, each key or name:key")
        key = read_key(match["key"])
        keys.append(ClientKey(hashlib.sha256(key.encode()).digest(), match["name"]))
    return tuple(keys)


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
    dollars = Decimal(value)
    if dollars != round(dollars, _DECIMALS):
        raise ValueError(f"must have {_DECIMALS} decimals at most")
    return dollars


def _models(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of model names")
    return frozenset(map(_text(MODEL, "a list of model names"), value))


def _key(value: Any) -> str:
    return read_key(_text(_KEY, "visible ASCII without white space")(value))


def _sha256(value: Any) -> str:
    digest = _text(_SHA256.pattern, "64 hexadecimal digits")(value).lower()
    if digest in _OF_NO_KEY:
        raise ValueError("is the one of an empty text")
    return digest


_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "name": _text(_KEY_NAME, "1 to 64 of A-Z a-z 0-9 . _ -"),
    "key": _key,
    "sha256": _sha256,
    "requests_per_minute": _count,
    "concurrent_requests": _count,
    "usd_per_day": _dollars,
    "models": _models,
    "unpriced": _text("allow|refuse", 'either "allow" or "refuse"'),
}


def read_keys_file(path: str) -> KeysFile:
    """Read and check the file. Raises ValueError with a text that follows the variable's name."""
    text = _read_text(path)
    entries = _read_toml(text)
    keys = tuple(_read_key(text, entries, index) for index in range(len(entries)))
    for what in ("name", "digest"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise ValueError(f"names a file with the same {_CALLED[what]} twice")
    return KeysFile(path, keys)


def _read_text(path: str) -> str:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # the latter: no path at all
        raise ValueError("names a file that cannot be read") from None
    if not stat.S_ISREG(mode):  # a pipe or a device would be waited for, at some SIGHUP
        raise ValueError("names something that is no regular file")
    try:
        return read_file(path, "a keys file", _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8") from None


def _read_toml(text: str) -> list[Any]:
    """The entries of the file."""
    import tomllib  # here, because few proxies have such a file

    for number, line in enumerate(text.split("\n"), 1):
        parts = () if line.lstrip().startswith("#") else _PARTS_OF_A_KEY.split(line)
        if any(part.count(".") > _MAX_DOTS for part in parts):
            raise ValueError(f"names a file with too many dots in a name, at line {number}")
        if _LONG_NUMBER.search(line):
            raise ValueError(f"names a file with a number of too many digits, at line {number}")
    try:
        table = tomllib.loads(text, parse_float=_number)
    except Exception as error:  # the library's own, and those of the values that it makes
        found = (
            _AT_LINE.search(error.args[0]) if isinstance(error, tomllib.TOMLDecodeError) else None
        )
        where = f", at line {found[1]}" if found else ""
        raise ValueError(f"names a file that is not valid TOML{where}") from None
    entries = table.pop("keys", None)
    if table or not isinstance(entries, list) or not entries:
        raise ValueError("names a file that must hold tables [[keys]] and nothing else")
    if len(entries) > _MAX_KEYS:
        raise ValueError(f"names a file of more than {_MAX_KEYS} keys")
    return entries


def _number(text: str) -> Decimal:
    """A number with a decimal point or an exponent; not a number where there is no such one, for
    its setting to reject."""
    try:
        return Decimal(text)
    except ArithmeticError:
        return Decimal("NaN")


_CALLED = {"name": "name", "digest": "key"}


def _read_key(text: str, entries: list[Any], index: int) -> ClientKey:
    entry = entries[index]
    where = partial(_where, text, entries, index)
    if not isinstance(entry, dict) or not entry.keys() <= _SETTINGS.keys():
        raise ValueError(f"{where()} has a setting that is none of {', '.join(_SETTINGS)}")
    if "name" not in entry or ("key" in entry) == ("sha256" in entry):
        raise ValueError(f"{where()} needs a name, and either key or sha256")
    values = {}
    for setting, value in entry.items():
        try:
            values[setting] = _SETTINGS[setting](value)
        except ValueError as problem:
            raise ValueError(f"{where(setting)} has a wrong {setting}: it {problem}") from None
    key, sha256 = values.pop("key", None), values.pop("sha256", "")
    digest = bytes.fromhex(sha256) if key is None else hashlib.sha256(key.encode()).digest()
    return ClientKey(digest, **values)


def _where(text: str, entries: list[Any], index: int, setting: str = "") -> str:
    """An entry by its number; its name where that is short, and the line of the setting, or of the
    entry, where it can be found: the library reports none."""
    entry, lines = entries[index], text.split("\n")
    name = entry.get("name") if isinstance(entry, dict) else None
    where = f"names a file in which [[keys]] number {index + 1}"
    if isinstance(name, str) and _SHOWN_NAME.fullmatch(name):
        where += f" ({name})"
    headers = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    if len(headers) != len(entries):
        return where
    own = range(headers[index], [*headers, len(lines)][index + 1])
    begins = re.compile(rf"\s*[\"']?{setting}\b")
    of_setting = (number for number in own if setting and begins.match(lines[number]))
    return f"{where}, line {next(of_setting, own[0]) + 1},"
