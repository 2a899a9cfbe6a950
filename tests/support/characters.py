"""What texts are made of in tests of properties."""

from hypothesis import strategies as st

__all__ = ("CHARACTERS",)

CHARACTERS = st.characters(exclude_categories=["Cs"])
"""All that UTF-8 can encode, as by default. But there Hypothesis tries to encode each of a million,
3.3 s of CPU in a fresh clone, and that in each process of the tests which comes to it first."""
