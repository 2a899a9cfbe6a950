"""Texts from outside, as they may be shown: clients choose names of models and agents."""

__all__ = ("printable",)


def printable(text: str) -> str:
    """The text with escapes in place of what is not printable: a terminal obeys some of that."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
