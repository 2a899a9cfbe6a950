"""Finding the account's key in an answer, which must not reach a client."""

__all__ = ("KeyLeakDetector",)


class KeyLeakDetector:
    """Looks for the account's key in an answer, however it is cut into chunks.

    The key is told by its beginning, because APIs quote one as that with stars behind it: so much
    of it as makes it unlikely that a model writes the same by chance, less where no model wrote. Of
    a key of less than 16 characters a part may be any word, so that it is looked for as a whole;
    one of less than 8 may be a word itself, and is not.
    """

    def __init__(self, key: bytes, status: int) -> None:
        self._sought = _part_to_look_for(key, status)
        self._end = b""

    def are_in(self, text: bytes) -> bool:
        """Whether ``text`` holds it."""
        return bool(self._sought) and self._sought in text

    def end_in(self, chunk: bytes) -> bool:
        """Whether it ends in ``chunk``, the next of the answer."""
        sought = self._sought
        if not sought:
            return False
        text = self._end + chunk
        self._end = text[1 - len(sought) :]
        return sought in text


def _part_to_look_for(key: bytes, status: int) -> bytes:
    if len(key) >= 16:
        return key[: 6 if status >= 400 else 8]
    return key if len(key) >= 8 else b""
