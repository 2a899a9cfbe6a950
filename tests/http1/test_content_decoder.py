"""The copy of a compressed body for those who look into it: whole, however cut, and bounded."""

import random
import sys
import tracemalloc

import pytest
from codings import CODINGS, bomb, compressed

from ape_cerebras.http1 import body as body_module
from ape_cerebras.http1.body import ContentDecoder, decoder_for

MIB = 1024 * 1024
TEXT = b"".join(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(3000))


def decoder_of(coding: str, data: bytes) -> tuple[ContentDecoder, bytes]:
    name, body = compressed(coding, data)
    decoder = decoder_for(((b"content-type", b"x/y"), (b"content-encoding", name)))
    assert decoder is not None
    return decoder, body


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_body_is_decoded_however_it_is_cut(coding: str, size: int) -> None:
    decoder, body = decoder_of(coding, TEXT)
    decoded = b""
    for at in range(0, len(body), size):
        piece = decoder.decode(body[at : at + size])
        assert decoder.latest == piece
        decoded += piece
    assert decoded == TEXT
    assert not decoder.blind


@pytest.mark.parametrize("coding", CODINGS)
def test_an_empty_body(coding: str) -> None:
    decoder, body = decoder_of(coding, b"")
    assert decoder.decode(body) == b""
    assert not decoder.blind


@pytest.mark.parametrize(
    "values", [(), (b"",), (b"identity",), (b"Identity", b" "), (b", identity ,",)]
)
def test_a_body_that_is_not_compressed_has_no_decoder(values: tuple[bytes, ...]) -> None:
    assert decoder_for(tuple((b"content-encoding", value) for value in values)) is None


@pytest.mark.parametrize("values", [(b"compress",), (b"gzip, br",), (b"gzip", b"gzip"), (b"?",)])
def test_a_coding_that_is_not_known_here_is_not_decoded(values: tuple[bytes, ...]) -> None:
    decoder = decoder_for(tuple((b"content-encoding", value) for value in values))
    assert decoder is not None
    assert decoder.blind
    assert decoder.decode(b"abc") == b""


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate", "br", "zstd"])
def test_bytes_that_are_not_of_the_coding(coding: str) -> None:
    chance = random.Random(7)
    for _ in range(50):
        decoder, body = decoder_of(coding, TEXT)
        broken = bytearray(body)
        for _ in range(20):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        decoder.decode(bytes(broken))  # raises nothing, and is bounded
        assert len(decoder.latest) <= 4 * MIB


def test_once_blind_it_stays_blind() -> None:
    decoder, body = decoder_of("gzip", TEXT)
    assert decoder.decode(b"no gzip") == b""
    assert decoder.blind
    assert decoder.decode(body) == b""


def test_what_follows_the_last_member_is_not_of_the_coding() -> None:
    decoder, body = decoder_of("gzip", TEXT)
    decoder.decode(body)
    assert not decoder.blind
    decoder.decode(b"csk-upstream-key")
    assert decoder.blind


@pytest.mark.parametrize("size", [10**9, 100])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_costs_sight_and_no_memory(coding: str, size: int) -> None:
    name, body = bomb(coding, 100 * MIB)
    decoder = ContentDecoder(name)
    decoded = 0
    decoder.decode(body[:2])  # loads the library
    tracemalloc.start()
    try:
        for at in range(2, len(body), size):
            decoded += len(decoder.decode(body[at : at + size]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoder.blind
    # What brotli gives at once is up to twice as much.
    assert decoded <= 2 * (MIB + 256 * len(body))
    assert peak <= 20 * MIB


def test_a_library_that_is_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = [decoder_of(coding, TEXT) for coding in ("br", "zstd")]
    for library in ("brotli", "backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, library, None)
    body_module._library.cache_clear()
    for decoder, body in compressed:
        assert decoder.decode(body) == b""
        assert decoder.blind
    monkeypatch.undo()
    body_module._library.cache_clear()
