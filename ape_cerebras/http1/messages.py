"""A request's head, as it was read."""

from typing import NamedTuple

__all__ = ("Headers", "Request")

Headers = tuple[tuple[bytes, bytes], ...]


class Request(NamedTuple):
    """A request's head. ``headers`` have lower-case names, in the order they came."""

    method: str
    target: bytes
    http_version: bytes
    headers: Headers

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    def header(self, name: bytes) -> bytes | None:
        """The last value of ``name`` (lower case)."""
        for each, value in reversed(self.headers):
            if each == name:
                return value
        return None
