from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.chat.occurrences import occurrences


@given(st.binary(max_size=50), st.sampled_from([b"\n", b"\r", b'"', b"\0"]))
def test_as_many_as_count_finds(text: bytes, byte: bytes) -> None:
    assert occurrences(byte, text * 3 + byte) == (text * 3 + byte).count(byte)
