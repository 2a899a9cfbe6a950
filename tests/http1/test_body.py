"""Bodies in chunks: what is refused, how soon, and agreement with h11 on all that passes."""

from contextlib import nullcontext, suppress
from itertools import accumulate, chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import read_by_h11

from ape_cerebras.errors import BadRequest, BodyTooLarge, HeadersTooLarge, ProxyError
from ape_cerebras.http1.body import ChunkedReader, SizedReader

LAST = b"0\r\n\r\n"
AT_MOST = 1000
FRAMING = 16 * 1024  # beside as much as there is data

# Bodies, and what refuses them; each ends where that can be known.
REFUSED: dict[str, tuple[bytes, type[ProxyError]]] = {
    **{
        f"E2 {size!r}": (size + b"\r", BadRequest)
        for size in (b"0x", b"+", b"-", b"5_", b" ", b"", b"G", b"5.", b"0" * 17)
    },
    "E3 SP": (b"5 ", BadRequest),
    "E3 HTAB": (b"5\t", BadRequest),
    "E4": (b"3e9\r\n", BodyTooLarge),
    "E4 as large as can be said": (b"f" * 16 + b"\r\n", BodyTooLarge),
    **{
        f"E5 {extension!r}": (b"5" + extension + b"\r\n", BadRequest)
        for extension in (
            *(b";", b";=v", b";a b=c", b";a=", b";a;", b";;a", b" ;a", b"; a", b";a =v", b";a= v"),
            *(b';a="', b';a="b"c', b';a="\\"', b";a=b,c", b";a=\xe9"),
        )
    },
    "E5 NUL": (b"5;a=\0", BadRequest),
    "E6 bare LF": (b"5\n", BadRequest),
    "E6 bare LF behind an extension": (b"5;\n", BadRequest),
    "E6 bare CR": (b"5\rh", BadRequest),
    "E6 bare LF behind the data": (b"5\r\nhello\n", BadRequest),
    "E7 longer": (b"5\r\nhelloX", BadRequest),
    "E7 footer": (b"5\r\nhello\rX", BadRequest),
    "E8 one long extension": (b"5;a=" + b"x" * FRAMING, BadRequest),
    "E8 leading zeros": (b"0000000000000001\r\nx\r\n" * 900, BadRequest),
    "E9": (b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n", BodyTooLarge),
    "E11 no field": (b"0\r\nbad trailer\r\n", BadRequest),
    "E11 folded": (b"0\r\nX: a\r\n b\r\n", BadRequest),
    "E11 bare LF": (b"0\r\nX: a\n", BadRequest),
    "E11 NUL": (b"0\r\nX: a\0", BadRequest),
    "E11 large": (b"0\r\nX: " + b"x" * FRAMING, HeadersTooLarge),
    "E11 endless": (b"0\r\n" + b"X: y\r\n" * 3000, HeadersTooLarge),
}


def reader() -> ChunkedReader:
    return ChunkedReader(AT_MOST, FRAMING)


def read(body: bytes, cuts: tuple[int, ...] = ()) -> tuple[bytes, bytes]:
    """The data of a body that arrives cut in pieces, and what is left behind it."""
    chunks, arrived, data, begin = reader(), bytearray(), b"", 0
    for end in (*sorted(min(cut, len(body)) for cut in cuts), len(body)):
        chunk = b"" if arrived else chunks.take_only_chunk(body[begin:end])
        data += chunk
        if not chunk:
            arrived += body[begin:end]
            data += chunks.take(arrived)
        while chunks.paused:
            data += chunks.take(arrived)
        begin = end
    assert chunks.ended
    return data, bytes(arrived)


def test_one_chunk_is_taken_at_once_and_nothing_else() -> None:
    chunks = reader()
    assert chunks.take_only_chunk(b"1a\r\n" + b"x" * 26 + b"\r\n") == b"x" * 26
    assert chunks.take_only_chunk(b"3\r\n\r\n\r\r\n") == b"\r\n\r"
    for other in (
        *(b"", b"\r\n", b"1", b"1\r\n", b"1\r\na", b"1\r\na\r", b"1\r\na\n\r", b"1\r\nab\r\n"),
        *(b"1\r\na\r\n0\r\n\r\n", b"1\r\na\r\n1\r\na\r\n", LAST, b"01\r\na\r\n", b"1;a\r\na\r\n"),
        *(
            b"1A\r\n" + b"x" * 26 + b"\r\n",
            b"a\r\n\r\n",
            b"\r\na\r\n",
            b"-1\r\na\r\n",
            b" 1\r\na\r\n",
        ),
    ):
        assert chunks.take_only_chunk(other) == b""
    chunks.take(bytearray(b"3\r\n"))  # so that it is in the middle of a chunk
    assert chunks.take_only_chunk(b"1\r\na\r\n") == b""
    assert SizedReader(6).take_only_chunk(b"1\r\na\r\n") == b""


def test_chunks_taken_at_once_count() -> None:
    chunks = reader()
    for _ in range(AT_MOST):
        chunks.take_only_chunk(b"1\r\na\r\n")
    with pytest.raises(BodyTooLarge):
        chunks.take_only_chunk(b"1\r\na\r\n")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    body, refusal = REFUSED[case]
    with pytest.raises(ProxyError) as caught:
        reader().take(bytearray(body))
    assert type(caught.value) is refusal
    assert not caught.value.keeps


@pytest.mark.parametrize("case", REFUSED)
def test_refused_the_same_byte_by_byte(case: str) -> None:
    body, refusal = REFUSED[case]
    chunks, arrived = reader(), bytearray()

    step = 1 if len(body) < 2000 else 61  # a line is looked through anew at each step

    def by_byte() -> None:
        for begin in range(0, len(body), step):
            arrived.extend(body[begin : begin + step])
            chunks.take(arrived)

    with pytest.raises(ProxyError) as caught:
        by_byte()
    assert type(caught.value) is refusal


@pytest.mark.parametrize(
    "body",
    [
        LAST,
        b"000\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"000000000000000A\r\nhello hell\r\n0;end\r\n\r\n",
        b'a;b;c=d;e="f \\" ; g"\r\nhello hell\r\n0\r\nX-A: 1\r\nY:\r\n\r\n',
        b"1\r\nx\r\n" * 1000 + LAST,  # small pieces are no crime
        b"3e8\r\n" + b"x" * 1000 + b"\r\n" + LAST,
    ],
)
def test_accepted_whole_and_byte_by_byte_and_by_h11(body: bytes) -> None:
    behind = b"GET / HTTP/1.1\r\n"
    whole = read(body + behind)
    assert whole == read(body + behind, tuple(range(len(body)))) == read_by_h11(body + behind)
    assert whole[1] == behind


token = st.sampled_from([b"a", b"X-1", b"!#$%&'*+-.^_`|~"])
quoted = st.sampled_from([b'""', b'"a b"', b'"\\"\\\\;"', b'"\xe9\t"'])
escaped = st.sampled_from([b'"\\a"', b'"\\\t"', b'"a\\""'])
extension = st.builds(
    lambda name, value: [b";" + name, *([b"=", value] if value else [])],
    token,
    st.none() | token | quoted | escaped,
)
size = st.sampled_from([b"%x", b"%X", b"0%x", b"00000%X"])
# Some data look like framing.
contents = st.binary(min_size=1, max_size=40) | st.sampled_from([b"1\r\na\r\n", LAST, b"\r\n"])
trailer = st.builds(lambda name, value: [name, b": ", value, b"\r\n"], token, token)


def joined(
    elements: st.SearchStrategy[list[bytes]], least: int, most: int
) -> st.SearchStrategy[list[bytes]]:
    several = st.lists(elements, min_size=least, max_size=most)
    return several.map(lambda each: list(chain.from_iterable(each)))


def bodies_of(
    chunks: tuple[int, int], extensions: tuple[int, int], trailers: tuple[int, int]
) -> st.SearchStrategy[list[bytes]]:
    """The elements of bodies with at least and at most so many of each."""
    chunk = st.builds(
        lambda size, extensions, data: [size % len(data), *extensions, b"\r\n", data, b"\r\n"],
        size,
        joined(extension, *extensions),
        contents,
    )
    return st.builds(
        lambda chunks, last, extensions, trailers: [
            *(*chunks, last, *extensions, b"\r\n"),
            *(*trailers, b"\r\n"),
        ],
        joined(chunk, *chunks),
        st.sampled_from([b"0", b"000"]),
        joined(extension, *extensions),
        joined(trailer, *trailers),
    )


bodies = bodies_of((0, 6), (0, 2), (0, 3))


@settings(max_examples=600)
@given(
    bodies,
    st.binary(max_size=20),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([1, 2, 4, 100]),
    st.integers(-1, 1),
)
def test_a_valid_body_cut_anywhere_is_what_h11_reads(
    elements: list[bytes], behind: bytes, cuts: list[int], every: int, beside: int
) -> None:
    """Also at, or beside, one in ``every`` so many bounds of its elements, or a single one."""
    body = b"".join(elements)
    expected = read_by_h11(body + behind)
    assert read(body + behind, tuple(cuts)) == expected
    bounds = [bound + beside for bound in accumulate(map(len, elements))]
    for first in range(min(every, len(bounds))):
        assert read(body + behind, tuple(bounds[first::every])) == expected


def overwritten(elements: list[bytes], spoils: list[tuple[int, bytes]]) -> list[bytes]:
    body = b"".join(elements)
    for at, spoil in spoils:
        body = body[:at] + spoil + body[at + len(spoil) :]
    return [body]


def spoilt(elements: list[bytes], spoil: bytes) -> list[bytes]:
    """With these bytes before, behind, within and instead of each of the elements."""
    found = set()
    for number, element in enumerate(elements):
        before, behind = b"".join(elements[:number]), b"".join(elements[number + 1 :])
        found |= {
            before + spoil + element + behind,
            before + element + spoil + behind,
            before + element[:1] + spoil + element[1:] + behind,
            before + spoil + element[1:] + behind,
            before + element[:-1] + spoil + behind,
            before + spoil + behind,
        }
    return sorted(found)


# What a parser may take for something else; and nothing at all.
spoils = st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"\0", b"\\\n", b"x", b"+"])


@settings(max_examples=1000)
@given(
    st.builds(
        overwritten,
        bodies,
        st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=3)), max_size=2),
    )
    | st.builds(spoilt, bodies_of((1, 1), (0, 0), (1, 1)), spoils)
    | st.builds(spoilt, bodies_of((1, 1), (1, 1), (0, 0)), spoils)
)
@example([b"5 \nhello\r\n0\r\n\r\n"])
def test_whatever_passes_is_what_h11_reads(candidates: list[bytes]) -> None:
    for body in candidates:
        chunks, arrived, data = reader(), bytearray(body), b""
        with suppress(ProxyError):
            data = chunks.take(arrived)
        if chunks.ended:
            assert (data, bytes(arrived)) == read_by_h11(body)


@settings(max_examples=300)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_no_bytes_make_it_fail_in_another_way(body: bytes, cuts: list[int]) -> None:
    with suppress(ProxyError, AssertionError):  # of the body's end, which may never come
        read(body, tuple(cuts))


@pytest.mark.parametrize("length", [16 * 1024 - 1, 16 * 1024])
def test_a_line_is_as_long_as_it_may_be_however_it_comes(length: int) -> None:
    """Though the data weigh as much and more."""
    line = b"%x;a=" % 20_000
    line += b"b" * (length - len(line)) + b"\r\n"
    for first, step in ((length - 100, 1), (0, 1000), (0, len(line))):
        chunks, arrived = ChunkedReader(10**6, FRAMING), bytearray(line[:first])
        with pytest.raises(BadRequest) if length >= 16 * 1024 else nullcontext():
            chunks.take(arrived)
            for begin in range(first, len(line), step):
                arrived += line[begin : begin + step]
                chunks.take(arrived)
            assert not arrived
