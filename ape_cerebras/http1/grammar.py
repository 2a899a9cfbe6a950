"""The pieces of HTTP/1.1's grammar that the strict checks of heads and bodies share.

Patterns over bytes, to be used with ``fullmatch`` (``NEVER_RIGHT`` with ``search``).
"""

import re
from collections.abc import Iterable

__all__ = ("FIELD_LINE", "HEAD_END", "NEVER_RIGHT", "TOKEN", "with_fields")

HEAD_END = b"\r\n\r\n"

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""RFC 9110 section 5.6.2; a part of patterns."""
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
"""Name and value, which may hold visible ASCII, SP, HTAB and obs-text (RFC 9110 section 5.5). A
folded line (RFC 9112 section 5.2) is none."""
NEVER_RIGHT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
"""What no head may hold: control bytes, a CR but before LF, an LF but after CR. The last byte of a
part may still get its LF."""


def with_fields(head: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head with more fields at its end, which must be what ``FIELD_LINE`` takes.

    h11 takes 9 µs to check a field and write it (CPython 3.11, one core of a server); those that
    were checked where they came from, and do not concern the framing, can do without.
    """
    return b"%b%b\r\n" % (head[:-2], b"".join([b"%b: %b\r\n" % field for field in fields]))
