"""The strict guard in front of h11: checks of a request head on its raw bytes.

h11 accepts a bare LF, folded lines, any ``HTTP/d.d``, Content-Length beside Transfer-Encoding or
as a list of equal numbers, control bytes in values and any Host. Each of these lets two parsers on
one connection disagree (request smuggling), so each is rejected here, as RFC 9112 requires or
allows. What passes goes to h11, byte for byte, and h11 reads it. Nothing is built here.

``check_part`` rejects an incomplete head as soon as no further bytes could mend it, so that a
client does not wait for a timeout to learn of it. ``check_head`` checks a complete head. It
searches the whole of it for each thing instead of splitting it into lines, which h11 does anyway:
no pattern runs over more than one line, so none can backtrack far.
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
from .messages import FORBIDDEN, TEXT, TOKEN

__all__ = ("HeadLimits", "check_head", "check_part", "origin_form")

_REQUEST_LINE = re.compile(TOKEN + rb" ([\x21-\x7e]+) HTTP/1\.([01])")
_OTHER_VERSION = TOKEN + rb" [\x21-\x7e]+ HTTP/\d\.\d"
_HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?))"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
_CODINGS = TOKEN + rb"(?:[ \t]*,[ \t]*" + TOKEN + rb")*"
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]*)((?:[/?][^#]*)?)", re.IGNORECASE)

# More than once, each of these lets one reader act on the first value and another on the last.
_ONCE = re.compile(
    rb"\r\n(authorization|content-(?:encoding|length|type)|expect|host|transfer-encoding):([^\r]*)"
)
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


def check_head(head: bytes, limits: HeadLimits) -> None:
    """Reject a complete head, empty line included, that h11 would accept though another parser may
    read it otherwise, or that is too large.

    Raises BadRequest, BodyTooLarge, CodingUnknown, HeadersTooLarge, TargetTooLong,
    VersionUnsupported.
    """
    ends = head.count(b"\r\n")
    if len(head.translate(None, TEXT)) != 2 * ends:
        raise BadRequest(_BAD_BYTE, keeps=False)
    line_end = head.index(b"\r\n")
    is_http_11 = _check_request_line(head[:line_end], limits)
    if ends - 2 > limits.headers or len(head) - line_end - 2 > limits.header_bytes:
        raise HeadersTooLarge
    if head.find(b"\r\n ") >= 0 or head.find(b"\r\n\t") >= 0:
        raise BadRequest("A header line is folded.", keeps=False)
    found = _ONCE.findall(head.lower())
    once = dict(found)
    if len(once) < len(found):
        raise BadRequest("A header that may stand once stands twice.", keeps=False)
    _check_framing(once, is_http_11, limits)
    host = once.get(b"host")
    if host is not None:
        _check_host(host.strip(b" \t"))
    elif is_http_11:
        raise BadRequest("Host is missing.", keeps=False)


def _check_request_line(line: bytes, limits: HeadLimits) -> bool:
    """Whether it is a line of HTTP/1.1; else it is one of HTTP/1.0."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        if re.fullmatch(_OTHER_VERSION, line):
            raise VersionUnsupported
        raise BadRequest("The request line is malformed.", keeps=False)
    target_bytes = match.end(1) - match.start(1)
    if target_bytes > limits.target_bytes or len(line) > limits.target_bytes + _BESIDE_TARGET:
        raise TargetTooLong
    return match[2] == b"1"


def _check_framing(once: dict[bytes, bytes], is_http_11: bool, limits: HeadLimits) -> None:
    """Make sure that the body's end is beyond doubt (RFC 9112 sections 6.1 to 6.3)."""
    length = once.get(b"content-length")
    coding = once.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_http_11:
            raise BadRequest("Transfer-Encoding does not go with this request.", keeps=False)
        _check_coding(coding.strip(b" \t"))
    if length is not None:
        length = length.strip(b" \t")
        if not length.isdigit():
            raise BadRequest("Content-Length is not a number.", keeps=False)
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > limits.body_bytes:
            raise BodyTooLarge


def _check_coding(coding: bytes) -> None:
    if coding != b"chunked":
        # 501 for one coding too many; 400 for a list that does not end in chunked, or has it
        # twice. h11 knows only the former.
        names = [name.strip() for name in coding.split(b",")]
        if re.fullmatch(_CODINGS, coding) and b"chunked" not in names[:-1]:
            raise CodingUnknown
        raise BadRequest("Transfer-Encoding is malformed.", keeps=False)


def _check_host(host: bytes) -> None:
    """Check Host's grammar (RFC 9112 section 3.2, RFC 3986 section 3.2.2)."""
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 0) > 65535 or not _is_ipv6(match["v6"]):
        raise BadRequest("Host is malformed.", keeps=False)


def _is_ipv6(text: bytes | None) -> bool:
    """True too where there is no IPv6 literal to check."""
    try:
        return text is None or bool(IPv6Address(text.decode()))
    except AddressValueError:
        return False


def origin_form(method: bytes, target: bytes, host: bytes | None) -> bytes:
    """Reduce any form of target (RFC 9112 section 3.2) to the origin form, where it has one.

    The absolute form becomes its path once its authority agrees with Host (section 3.2.2), so that
    it can never choose where a request goes. Raises BadRequest.
    """
    if target.startswith(b"/") and b"#" not in target:
        return target
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
