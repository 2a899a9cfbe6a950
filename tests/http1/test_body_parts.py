"""Bodies in parts."""

from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.http1.body_parts import Body

MIB = 2**20


def test_parts_stay_as_they_are() -> None:
    parts = [b"a" * MIB, b"b"]
    assert [part is given for part, given in zip(Body(parts).parts, parts, strict=True)] == [
        True
    ] * 2
    assert bytes(Body(parts[:1])) is parts[0]


def test_nothing_is_a_body() -> None:
    for body in (Body(), Body([b"", b""])):
        body.add(b"")
        assert (len(body), bytes(body), body.parts, body[0:9]) == (0, b"", [], b"")


def test_what_comes_bit_by_bit_is_kept_in_few_parts_and_what_is_much_in_many() -> None:
    body = Body()
    for _ in range(MIB // 16):
        body.add(b"0123456789abcdef")
    assert len(body) == MIB
    assert {len(part) for part in body.parts} == {MIB // 16}


@given(
    st.lists(st.binary(max_size=9)),
    st.lists(st.binary(max_size=9)),
    st.integers(-30, 60),
    st.integers(-30, 60),
)
def test_it_is_sliced_as_bytes_are(
    parts: list[bytes], added: list[bytes], begin: int, end: int
) -> None:
    body = Body(parts)
    for data in added:
        body.add(data)
    whole = b"".join((*parts, *added))
    assert (len(body), bytes(body), body[begin:end]) == (len(whole), whole, whole[begin:end])
    assert b"".join(body.parts) == whole
    assert b"" not in body.parts


def test_bodies_are_equal_however_they_are_parted() -> None:
    assert Body([b"ab", b"c"]) == Body([b"a", b"bc"]) != Body([b"abd"])
    assert Body([b"a"]) != b"a"
