"""The strict check of a request head, on its raw bytes, before h11 sees it.

h11 is not a strict front end: it takes a bare LF, folded lines, any ``HTTP/d.d``, Content-Length
beside Transfer-Encoding, control bytes in values and any Host. Each of these is a way to make two
parsers on one connection disagree (request smuggling), so each is refused here, as RFC 9112 says or
allows. What passes is a head that h11 and everybody else read alike.

The check is made of two plain functions over bytes. ``check_part`` refuses what can no longer
become a good head, while it is still arriving, so that nobody waits for a deadline to learn of it.
``read_whole`` refuses the rest. What it has read need not be read again: h11 gets no more than the
lines from which it knows whether the connection goes on, and who is waiting for what.
"""

import re
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple

from ..errors import (
    BadRequest,
    BodyTooLarge,
    CodingUnknown,
    HeadersTooLarge,
    TargetTooLong,
    VersionUnsupported,
)
from .grammar import FIELD_LINE, HEAD_END, NEVER_RIGHT, TOKEN
from .messages import Headers, Request

__all__ = ("HeadLimits", "check_part", "read_whole")

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/(1\.[01])")
_OTHER_VERSION = re.compile(TOKEN + rb" [\x21-\x7e]+ HTTP/\d\.\d")
_HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?))"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)((?:[/?][^#]*)?)", re.IGNORECASE)

# More than once, each of these lets one reader act on the first value and another on the last.
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
_FOR_H11 = {b"connection": b"close", b"expect": b"100-continue"}  # what matters in which field
_MAX_LENGTH_DIGITS = 19
_BESIDE_TARGET = 64  # bytes of a request line: method, version and two spaces


class HeadLimits(NamedTuple):
    """Limits of a request: bytes of the header block (request line apart), lines in it, bytes of
    the target and of the body."""

    header_bytes: int
    headers: int
    target_bytes: int
    body_bytes: int


def check_part(part: bytes, already_checked: int, limits: HeadLimits) -> None:
    """Refuse a head whose first bytes are ``part`` if no bytes to come could mend it.

    ``already_checked`` says how many of them an earlier call has seen.

    Raises BadRequest, TargetTooLong, HeadersTooLarge, VersionUnsupported.
    """
    line_end = part.find(b"\r\n")
    if NEVER_RIGHT.search(part, max(0, already_checked - 1)):
        raise BadRequest("The request head holds a control byte or a bare line end.", keeps=False)
    if line_end < 0:
        # One byte more may be the CR of a line that is just short enough.
        if len(part) > limits.target_bytes + _BESIDE_TARGET + 1:
            raise TargetTooLong
        return
    if already_checked < line_end + 2:
        _check_request_line(part[:line_end], limits)
    if len(part) - line_end - 2 > limits.header_bytes:
        raise HeadersTooLarge


def read_whole(head: bytes, limits: HeadLimits) -> tuple[Request, bytes]:
    """Check a complete head, empty line included. What it says, and what h11 has to know of it: a
    head too, with those lines only that concern the connection, and without target and body.

    The absolute form is reduced to its path once its authority agrees with Host (RFC 9112
    section 3.2.2), so that it can never choose where a request goes.

    Raises BadRequest, BodyTooLarge, CodingUnknown, HeadersTooLarge, TargetTooLong,
    VersionUnsupported.
    """
    first, *lines = head[: -len(HEAD_END)].split(b"\r\n")
    if len(lines) > limits.headers:
        raise HeadersTooLarge
    if len(head) - len(first) - 2 > limits.header_bytes:
        raise HeadersTooLarge
    method, target, version = _check_request_line(first, limits)
    headers = _read_fields(lines)
    fields = dict(headers)
    _check_framing(fields, version == b"1.1", limits)
    host = _check_host(fields.get(b"host"), version == b"1.1")
    request = Request(method.decode(), _check_target(method, target, host), version, headers)
    for_h11 = [
        line
        for line, (name, value) in zip(lines, headers, strict=True)
        if name in _FOR_H11 and _FOR_H11[name] in value.lower()
    ]
    first = b"%b / HTTP/%b\r\nHost: a" % (method, version)
    return request, b"\r\n".join((first, *for_h11, b"", b""))


def _check_request_line(line: bytes, limits: HeadLimits) -> tuple[bytes, bytes, bytes]:
    """Method, target and version, as "1.1"."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if _OTHER_VERSION.fullmatch(line):
            raise VersionUnsupported
        raise BadRequest("The request line is malformed.", keeps=False)
    method, target, version = match.groups()
    if len(target) > limits.target_bytes or len(line) > limits.target_bytes + _BESIDE_TARGET:
        raise TargetTooLong
    return method, target, version


def _read_fields(lines: list[bytes]) -> Headers:
    """The fields in their order, with lower-case names."""
    fields = []
    seen = set()
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None:  # among others a folded line (RFC 9112 section 5.2)
            raise BadRequest("A header line is malformed.", keeps=False)
        name = match[1].lower()
        if name in _ONCE:
            if name in seen:
                raise BadRequest("A header that may stand once stands twice.", keeps=False)
            seen.add(name)
        fields.append((name, match[2].rstrip(b" \t")))
    return tuple(fields)


def _check_framing(fields: dict[bytes, bytes], is_http_11: bool, limits: HeadLimits) -> None:
    """Where the body ends must be beyond doubt (RFC 9112 sections 6.1 to 6.3)."""
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_http_11:
            raise BadRequest("Transfer-Encoding does not go with this request.", keeps=False)
        if coding.lower() != b"chunked":
            raise _refusal_of_coding(coding)
    if length is not None:
        if not length.isdigit():
            raise BadRequest("Content-Length is not a number.", keeps=False)
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > limits.body_bytes:
            raise BodyTooLarge


def _refusal_of_coding(coding: bytes) -> BadRequest | CodingUnknown:
    """501 for one coding too many, 400 for a list that does not end in chunked, or in it twice."""
    names = [name.strip().lower() for name in coding.split(b",")]
    is_list_of_tokens = all(re.fullmatch(TOKEN, name) for name in names)
    if is_list_of_tokens and b"chunked" not in names[:-1]:
        return CodingUnknown()
    return BadRequest("Transfer-Encoding is malformed.", keeps=False)


def _check_host(host: bytes | None, is_http_11: bool) -> bytes | None:
    """Host's grammar (RFC 9112 section 3.2, RFC 3986 section 3.2.2)."""
    if host is None:
        if is_http_11:
            raise BadRequest("Host is missing.", keeps=False)
        return None
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > 65535 or not _is_ipv6(match["v6"]):
        raise BadRequest("Host is malformed.", keeps=False)
    return host


def _is_ipv6(text: bytes | None) -> bool:
    """True too where there is no IPv6 literal to check."""
    try:
        return text is None or bool(IPv6Address(text.decode()))
    except AddressValueError:
        return False


def _check_target(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """The origin form of the target (RFC 9112 section 3.2)."""
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute:
        if host is not None and absolute[1].lower() != host.lower():
            raise BadRequest("The target names another host than Host does.", keeps=False)
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not target.startswith(b"/") or b"#" in target:
        if method == b"CONNECT":  # its own form, answered 405 by the routes
            return target
        raise BadRequest("The request target is malformed.", keeps=False)
    return target
