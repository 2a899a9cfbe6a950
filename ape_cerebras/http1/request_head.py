"""The strict guard in front of h11: checks of a request head on its raw bytes.

h11 accepts a bare LF, folded lines, any ``HTTP/d.d``, Content-Length beside Transfer-Encoding,
control bytes in values and any Host. Each of these lets two parsers on one connection disagree
(request smuggling), so each is rejected here, as RFC 9112 requires or allows. What passes is a head
that h11 and everybody else read alike.

``check_part`` rejects an incomplete head as soon as no further bytes could mend it, so that a
client does not wait for a timeout to learn of it. ``parse_head`` checks a complete head, its
request line included, and checks nothing twice.

h11 gets a reduced head (method, version, ``Connection: close``, ``Expect``) with a target and a
Host of ours, because heads so reduced are few and ``http1/framing`` can keep h11's rules for each
of them: given the true bytes of a plain exchange, h11 takes 79 µs for heads and bodies, the guard 8
(CPython 3.11, one core of a server). Tests hold that messages end alike for both heads.
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
from .messages import FORBIDDEN, HEAD_END, TOKEN, Request, parse_fields

__all__ = ("HeadLimits", "check_part", "parse_head")

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
_FOR_H11 = {b"connection": b"close", b"expect": b"100-continue"}  # field -> the value that matters
_BAD_BYTE = "The request head holds a control byte or a bare line end."
_MAX_LENGTH_DIGITS = 19
_BESIDE_TARGET = 64  # bytes of a request line: method, version and two spaces


class HeadLimits(NamedTuple):
    """Bytes of the header block (request line excluded), its lines, bytes of target and of body."""

    header_bytes: int
    headers: int
    target_bytes: int
    body_bytes: int


def check_part(part: bytes, already_checked: int, limits: HeadLimits) -> None:
    """Reject an incomplete head if no further bytes could mend it.

    ``part``: all that has arrived of it. ``already_checked``: how many of these bytes an earlier
    call has checked. Raises BadRequest, TargetTooLong, HeadersTooLarge, VersionUnsupported.
    """
    if FORBIDDEN.search(part, max(0, already_checked - 1)):
        raise BadRequest(_BAD_BYTE, keeps=False)
    line_end = part.find(b"\r\n")
    if line_end < 0:
        # One byte more may be the CR of a line that is just short enough.
        if len(part) > limits.target_bytes + _BESIDE_TARGET + 1:
            raise TargetTooLong
        return
    if already_checked < line_end + 2:
        _check_request_line(part[:line_end], limits)
    if len(part) - line_end - 2 > limits.header_bytes:
        raise HeadersTooLarge


def parse_head(head: bytes, limits: HeadLimits) -> tuple[Request, bytes]:
    """Check a complete head, empty line included. Return the request and a reduced head for h11.

    The absolute form of a target is reduced to its path once its authority agrees with Host
    (RFC 9112 section 3.2.2), so that it can never choose where a request goes.

    Raises BadRequest, BodyTooLarge, CodingUnknown, HeadersTooLarge, TargetTooLong,
    VersionUnsupported.
    """
    first, *lines = head[: -len(HEAD_END)].split(b"\r\n")
    method, target, version = _check_request_line(first, limits)
    if len(lines) > limits.headers or len(head) - len(first) - 2 > limits.header_bytes:
        raise HeadersTooLarge
    headers = parse_fields(lines)
    if headers is None:
        raise _malformed(head, "A header line is malformed.")
    fields = dict(headers)
    if len(fields) < len(headers):
        names = [name for name, _ in headers if name in _ONCE]
        if len(names) > len(set(names)):
            raise BadRequest("A header that may stand once stands twice.", keeps=False)
    _check_framing(fields, version == b"1.1", limits)
    host = _check_host(fields.get(b"host"), version == b"1.1")
    if not target.startswith(b"/") or b"#" in target:
        target = _origin_form(method, target, host)
    for_h11 = [
        line
        for line, (name, value) in zip(lines, headers, strict=True)
        if name in _FOR_H11 and _FOR_H11[name] in value.lower()
    ]
    first = b"%b / HTTP/%b\r\nHost: a" % (method, version)
    request = Request(method.decode(), target, version, headers)
    return request, b"\r\n".join((first, *for_h11, b"", b""))


def _check_request_line(line: bytes, limits: HeadLimits) -> tuple[bytes, bytes, bytes]:
    """Return method, target and version (as "1.1")."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if _OTHER_VERSION.fullmatch(line):
            raise VersionUnsupported
        raise _malformed(line, "The request line is malformed.")
    method, target, version = match.groups()
    if len(target) > limits.target_bytes or len(line) > limits.target_bytes + _BESIDE_TARGET:
        raise TargetTooLong
    return method, target, version


def _malformed(part: bytes, reason: str) -> BadRequest:
    """The patterns match no forbidden byte; which of the two is wrong matters to the text only."""
    return BadRequest(_BAD_BYTE if FORBIDDEN.search(part) else reason, keeps=False)


def _check_framing(fields: dict[bytes, bytes], is_http_11: bool, limits: HeadLimits) -> None:
    """Make sure that the body's end is beyond doubt (RFC 9112 sections 6.1 to 6.3)."""
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_http_11:
            raise BadRequest("Transfer-Encoding does not go with this request.", keeps=False)
        if coding.lower() != b"chunked":
            # 501 for one coding too many; 400 for a list that does not end in chunked, or has it
            # twice.
            names = [name.strip().lower() for name in coding.split(b",")]
            if all(re.fullmatch(TOKEN, name) for name in names) and b"chunked" not in names[:-1]:
                raise CodingUnknown
            raise BadRequest("Transfer-Encoding is malformed.", keeps=False)
    if length is not None:
        if not length.isdigit():
            raise BadRequest("Content-Length is not a number.", keeps=False)
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > limits.body_bytes:
            raise BodyTooLarge


def _check_host(host: bytes | None, is_http_11: bool) -> bytes | None:
    """Check Host's grammar (RFC 9112 section 3.2, RFC 3986 section 3.2.2)."""
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


def _origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """Reduce any other form of target (RFC 9112 section 3.2) to the origin form, where it has
    one."""
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute:
        if host is not None and absolute[1].lower() != host.lower():
            raise BadRequest("The target names another host than Host does.", keeps=False)
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not target.startswith(b"/") or b"#" in target:
        if method == b"CONNECT":  # its own form, to which the routes respond 405
            return target
        raise BadRequest("The request target is malformed.", keeps=False)
    return target
