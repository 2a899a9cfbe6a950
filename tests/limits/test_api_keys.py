"""The check of the key that a client presents."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.config.keys import ClientKey, read_client_keys
from ape_cerebras.errors import Unauthorized
from ape_cerebras.http1.messages import Request
from ape_cerebras.limits.api_keys import check_key

KEYS = read_client_keys("first-key,agent:second-key,other:third-key")


def with_authorization(*values: bytes) -> Request:
    headers = tuple((b"authorization", value) for value in values)
    return Request("GET", b"/v1/models", b"1.1", headers)


def refused(*values: bytes) -> bool:
    try:
        check_key(with_authorization(*values), KEYS)
    except Unauthorized:
        return True
    return False


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer ", b"Bearer  \t"])
def test_no_token_fits_no_key_not_even_that_of_nothing(value: bytes) -> None:
    with pytest.raises(Unauthorized):
        check_key(with_authorization(value), (ClientKey(hashlib.sha256(b"").digest()),))


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 4))
def test_the_scheme_is_case_insensitive(upper: list[bool], spaces: int) -> None:
    scheme = "".join(c.upper() if up else c for c, up in zip("bearer", upper, strict=True))
    value = scheme + " " * spaces + "second-key"
    assert check_key(with_authorization(value.encode()), KEYS) == "agent"


@pytest.mark.parametrize(
    ("key", "name"), [(b"first-key", None), (b"second-key", "agent"), (b"third-key", "other")]
)
def test_each_key_has_its_name(key: bytes, name: str | None) -> None:
    assert check_key(with_authorization(b"Bearer " + key), KEYS) == name
    assert check_key(with_authorization(b"Bearer " + key + b" \t"), KEYS) == name


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"second-key",
        b"Basic second-key",
        b"Bearersecond-key",
        b"Bearer\tsecond-key",
        b"Bearer second-ke",
        b"Bearer second-keyy",
        b"Bearer SECOND-KEY",
        b"Bearer agent:second-key",
        b"Bearer second-key second-key",
        b"Bearer first-key,second-key",
        b"Bearer second\xe2\x80\x90key",
        b"Bearer \xff\x00\xfe",
        b"Bearer " + b"x" * 10_000,
    ],
)
def test_a_malformed_or_unknown_key_is_refused(value: bytes) -> None:
    assert refused(value)


def test_a_missing_header_is_refused() -> None:
    assert refused()


@pytest.mark.parametrize("value", [b"", b"Basic x", b"Bearer x", b"Bearer \xff"])
def test_every_wrong_key_gets_the_same_response(value: bytes) -> None:
    with pytest.raises(Unauthorized) as refusal:
        check_key(with_authorization(value), KEYS)
    assert not vars(refusal.value)
    assert refusal.value.args == ()


def test_of_two_headers_the_last_one_counts() -> None:
    assert refused(b"Bearer second-key", b"Bearer wrong")
    assert not refused(b"Bearer wrong", b"Bearer second-key")


@given(st.binary(max_size=40))
def test_only_known_keys_are_accepted(token: bytes) -> None:
    known = {b"first-key", b"second-key", b"third-key"}
    assert refused(b"Bearer " + token) is (token.strip() not in known)


@given(st.binary(max_size=40))
def test_without_configured_keys_none_is_checked(value: bytes) -> None:
    assert check_key(with_authorization(value), ()) is None
