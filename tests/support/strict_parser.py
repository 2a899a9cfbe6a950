"""A strict parser of request heads, line by line: the oracle of the guard in front of h11.

It reads a head by itself, with the patterns of RFC 9110 and RFC 9112. Whatever the guard and h11
accept together, this parser accepts too and reads alike.
"""

import re
from ipaddress import AddressValueError, IPv6Address

from ape_cerebras.errors import (
    BadRequest,
    BodyTooLarge,
    CodingUnknown,
    HeadersTooLarge,
    TargetTooLong,
    VersionUnsupported,
)
from ape_cerebras.http1.messages import Request
from ape_cerebras.http1.request_head import HeadLimits

__all__ = ("strictly_parsed",)

_HEAD_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/(1\.[01])")
_OTHER_VERSION = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/\d\.\d")
_HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?))"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)((?:[/?][^#]*)?)", re.IGNORECASE)
_ONCE = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"transfer-encoding",
    )
)
_BESIDE_TARGET = 64


def strictly_parsed(head: bytes, limits: HeadLimits) -> Request:
    """The request of a complete head, empty line included. Raises RequestRefused."""
    first, *lines = head[: -len(_HEAD_END)].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise VersionUnsupported if _OTHER_VERSION.fullmatch(first) else _bad()
    method, target, version = match.groups()
    if len(target) > limits.target_bytes or len(first) > limits.target_bytes + _BESIDE_TARGET:
        raise TargetTooLong
    if len(lines) > limits.headers or len(head) - len(first) - 2 > limits.header_bytes:
        raise HeadersTooLarge
    found = [_FIELD_LINE.fullmatch(line) for line in lines]
    if None in found:
        raise _bad()
    headers = tuple((each[1].lower(), each[2].rstrip(b" \t")) for each in found if each)
    names = [name for name, _ in headers if name in _ONCE]
    if len(names) > len(set(names)):
        raise _bad()
    fields = dict(headers)
    _check_framing(fields, version == b"1.1", limits)
    host = fields.get(b"host")
    if host is None:
        if version == b"1.1":
            raise _bad()
    else:
        parts = _HOST.fullmatch(host)
        if parts is None or int(parts["port"] or 0) > 65535 or not _is_ipv6(parts["v6"]):
            raise _bad()
    return Request(method.decode(), _origin_form(method, target, host), version, headers)


def _bad() -> BadRequest:
    return BadRequest("malformed", keeps=False)


def _check_framing(fields: dict[bytes, bytes], is_http_11: bool, limits: HeadLimits) -> None:
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_http_11:
            raise _bad()
        if coding.lower() != b"chunked":
            names = [name.strip().lower() for name in coding.split(b",")]
            if all(re.fullmatch(_TOKEN, name) for name in names) and b"chunked" not in names[:-1]:
                raise CodingUnknown
            raise _bad()
    if length is not None:
        if not length.isdigit():
            raise _bad()
        if len(length) > 19 or int(length) > limits.body_bytes:
            raise BodyTooLarge


def _is_ipv6(text: bytes | None) -> bool:
    try:
        return text is None or bool(IPv6Address(text.decode()))
    except AddressValueError:
        return False


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    if (target.startswith(b"/") and b"#" not in target) or (target, method) == (b"*", b"OPTIONS"):
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute:
        if host is not None and absolute[1].lower() != host.lower():
            raise _bad()
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not target.startswith(b"/") or b"#" in target:
        if method == b"CONNECT":
            return target
        raise _bad()
    return target
