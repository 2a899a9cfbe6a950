"""Who sent a request, as headers say it: as far as they can be believed, and no further."""

import pytest
from exchanges import chat_exchange
from hypothesis import given
from hypothesis import strategies as st
from scraped_metrics import config_with, observed, rendered

from ape_cerebras.config.values import read_networks
from ape_cerebras.errors import BadRequest, DoubledPrefix, ModelNotFound, NotFound, ProxyError
from ape_cerebras.http1.messages import Headers, Request
from ape_cerebras.telemetry.trace_context import Caller, CallerReader, peer_of

HOP = "10.0.0.1"  # trusted, as is all of 10/8
FORGED = b"203.0.113.66"
REAL = "192.0.2.7"
TRUSTED = read_networks("10.0.0.0/8, fd00::/8, 127.0.0.1")


def peer(*headers: tuple[bytes, bytes], address: str = HOP) -> str:
    return peer_of(address, headers, TRUSTED)


def xff(*values: bytes) -> Headers:
    return tuple((b"x-forwarded-for", value) for value in values)


def forwarded(*values: bytes) -> Headers:
    return tuple((b"forwarded", value) for value in values)


def caller_of(
    *headers: tuple[bytes, bytes],
    target: bytes = b"/v1/chat/completions",
    error: ProxyError | None = None,
    upstream: Headers = (),
    **settings: str,
) -> Caller:
    exchange = chat_exchange(
        address=REAL,
        request=Request("POST", target, b"1.1", headers),
        error=error,
        upstream_headers=upstream,
    )
    return CallerReader(config_with(**settings)).read(exchange)


def test_a_stranger_is_not_believed() -> None:
    for headers in (xff(FORGED), forwarded(b"for=203.0.113.66"), ()):
        assert peer(*headers, address=REAL) == REAL


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"192.0.2.7", REAL),
        (b"203.0.113.66, 192.0.2.7", REAL),  # the client forged one
        (b"203.0.113.66, 192.0.2.7, 10.0.0.2, 10.1.2.3", REAL),  # through two more hops
        (b"10.0.0.9, 192.0.2.7", REAL),  # one that the client says it trusts
        (b"192.0.2.7:4711", REAL),
        (b"[2001:db8::1]:4711", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"fe80::1%eth0", "fe80::1"),
        (b"[fe80::1%25eth0]:80", "fe80::1"),  # a zone as URLs have it
        (b"::ffff:192.0.2.7", REAL),
        (b"192.0.2.7, ::ffff:10.0.0.2", REAL),
        (b"192.0.2.7,fd00::1", REAL),
        (b"10.0.0.3, 10.0.0.2", "10.0.0.3"),  # from within
        # Nothing of these is an address: the last hop that is one is.
        (b"", HOP),
        (b",", HOP),
        (b"unknown", HOP),
        (b"_hidden", HOP),
        (b"203.0.113.66, unknown", HOP),
        (b"203.0.113.66, unknown, 10.0.0.2", "10.0.0.2"),
        (b"localhost", HOP),
        (b"192.0.2.7:99999999", HOP),
        (b"192.0.2.256", HOP),
        (b"192.0.2.07", HOP),
        (b"1.2.3", HOP),
        (b"0x7f000001", HOP),
        (b"2130706433", HOP),
        (b"fe80::1%<script>", HOP),
        (b"192.0.2.7\t", REAL),
        (b"192.0.2.7 192.0.2.8", HOP),
        ("١٩٢.0.2.7".encode(), HOP),
        (b"\xff\xfe", HOP),
        (b"9" * 10_000, HOP),
        (b":" * 10_000, HOP),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(value: bytes, found: str) -> None:
    assert peer(*xff(value)) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"for=192.0.2.7", REAL),
        (b"For=192.0.2.7;proto=http;by=203.0.113.43", REAL),
        (b'proto=https ; for="192.0.2.7:4711"', REAL),
        (b'for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        (b'for="[2001:db8:cafe::17]:_port"', "2001:db8:cafe::17"),
        (b"for=203.0.113.66, for=192.0.2.7, for=10.0.0.2", REAL),
        (b'for="_a,b;for=203.0.113.66", for=192.0.2.7', REAL),  # quoted
        (b'for="203.0.113.66\\"", for=192.0.2.7', REAL),
        (b"for=unknown", HOP),
        (b"for=_gazonk", HOP),
        (b"for=192.0.2.7, for=unknown", HOP),
        (b"for=192.0.2.7, proto=http", HOP),  # the last hop names nobody
        (b"by=192.0.2.7", HOP),
        (b"for=[2001:db8::1]", HOP),  # has to be quoted
        (b'for="192.0.2.7', HOP),
        (b"for=192.0.2.7;;", HOP),
        (b"for", HOP),
        (b"", HOP),
        (b"for=192.0.2.7 for=192.0.2.8", HOP),
        (b'for="' + b"\\" * 10_000, HOP),
        (b"for=" + b"a" * 10_000, HOP),
    ],
)
def test_forwarded_is_read_from_the_right(value: bytes, found: str) -> None:
    assert peer(*forwarded(value)) == found


def test_several_lines_are_one_list() -> None:
    assert peer(*xff(FORGED, REAL.encode(), b"10.0.0.2")) == REAL
    assert peer(*forwarded(b"for=203.0.113.66", b"for=192.0.2.7", b"for=10.0.0.2")) == REAL
    assert peer(*xff(FORGED, *[b"10.0.0.2"] * 90)) == FORGED.decode()


def test_two_headers_that_differ_are_both_not_believed() -> None:
    """A hop that writes one of them may pass the client's other one on as it came."""
    assert peer(*xff(REAL.encode()), *forwarded(b"for=203.0.113.66")) == HOP
    assert peer(*xff(FORGED), *forwarded(b"for=192.0.2.7")) == HOP
    assert peer(*xff(REAL.encode()), *forwarded(b"for=192.0.2.7")) == REAL


@given(st.lists(st.tuples(st.sampled_from((b"forwarded", b"x-forwarded-for")), st.binary())))
def test_whatever_they_hold_an_address_comes_of_it(headers: list[tuple[bytes, bytes]]) -> None:
    read_networks(peer(*headers))


def test_the_peer_as_the_settings_have_it() -> None:
    header = xff(b"198.51.100.1")
    assert caller_of(*header).peer == REAL
    assert caller_of(*header, TRUSTED_PROXIES="192.0.2.0/24").peer == "198.51.100.1"
    assert caller_of(*header, TRUSTED_PROXIES="192.0.2.0/24", LOG_PEER="off").peer is None


def test_an_unknown_connection_has_no_peer() -> None:
    reader = CallerReader(config_with(TRUSTED_PROXIES="127.0.0.1"))
    assert reader.read(chat_exchange()).peer is None


@pytest.mark.parametrize(
    "name",
    [
        *(b"x-session-id", b"x-claude-code-session-id", b"x-cagent-session-id"),
        *(b"x-opencode-session", b"session-id", b"session_id"),
    ],
)
def test_agents_send_their_session_in_headers_of_their_own(name: bytes) -> None:
    value = b"ses_7f2c-4e1a.b:1"
    assert caller_of((name, value)).session_id == value.decode()
    assert caller_of((name, value), SESSION_ID_HEADERS="x-mine").session_id is None
    assert caller_of((name, value), SESSION_ID_HEADERS="off").session_id is None


def test_the_first_well_formed_header_counts() -> None:
    headers = ((b"x-cagent-id", b"c"), (b"x-claude-code-agent-id", b"a b"), (b"x-agent-id", b""))
    assert caller_of(*headers).agent_id == "c"
    assert caller_of(*headers, (b"x-mine", b"m"), AGENT_ID_HEADERS="x-mine").agent_id == "m"


@pytest.mark.parametrize(
    "value",
    [b"", b"a b", b"a\tb", b'a"b', b"{}", b"\xff", "é".encode(), b"x" * 129, b"x" * 10_240, b"a,b"],
)
def test_an_id_that_is_malformed_is_left_out(value: bytes) -> None:
    caller = caller_of(
        (b"x-session-id", value),
        (b"x-agent-id", value),
        (b"x-stainless-retry-count", value),
        upstream=((b"inference-id", value), (b"cf-ray", value)),
    )
    assert caller[2:] == (None,) * 6


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (b"OpenAI/Python 2.9.0", "OpenAI/Python 2.9.0"),
        (b"a\tb\x1b[31m\x00\x7f", r"a\x09b\x1b[31m\x00\x7f"),
        ("é\u2028".encode(), r"\xc3\xa9\xe2\x80\xa8"),
        (b"\xff" * 200, r"\xff" * 32),
        (b"x" * 10_240, "x" * 128),
        (b'"}\n{', r'"}\x0a{'),
    ],
)
def test_a_user_agent_is_escaped_and_cut(value: bytes, logged: str) -> None:
    assert caller_of((b"user-agent", value)).user_agent == logged


@pytest.mark.parametrize(
    "key",
    [
        *(b"csk-0123456789abcdef", b"sk-proj-0123456789", b"SK-ABCDEFGH", b"gsk_0123456789"),
        *(b"ape-key-of-a-client", b"secret-cookie", b"eyJhbGciOiJIUzI1NiJ9.x"),
    ],
)
def test_keys_are_kept_out(key: bytes) -> None:
    headers = (
        (b"authorization", b"Bearer ape-key-of-a-client"),
        (b"cookie", b"a=b; secret-cookie"),
        *((name, key) for name in (b"x-session-id", b"x-agent-id")),
        (b"user-agent", b"agent/1 (" + key + b")"),
    )
    caller = caller_of(*headers, target=b"/v1/" + key + b"/x", error=NotFound())
    assert (caller.session_id, caller.agent_id, caller.user_agent, caller.path) == (None,) * 4


@pytest.mark.parametrize("value", [b"task-123456789", b"desk_0123456789", b"risk-0123456789"])
def test_words_that_end_like_the_beginning_of_a_key_are_no_keys(value: bytes) -> None:
    assert caller_of((b"x-session-id", value)).session_id == value.decode()


def test_the_attempt_as_the_sdk_counts_it() -> None:
    assert caller_of((b"x-stainless-retry-count", b"0")).client_attempt == 0
    assert caller_of((b"x-stainless-retry-count", b"2")).client_attempt == 2
    assert caller_of((b"x-stainless-retry-count", b"99999")).client_attempt is None


@pytest.mark.parametrize("error", [NotFound(), DoubledPrefix(), ModelNotFound()])
def test_the_path_of_a_404_without_its_query(error: ProxyError) -> None:
    target = b"/v1/engines/\x1b\xe9?api_key=secret"
    assert caller_of(target=target, error=error).path == r"/v1/engines/\x1b\xe9"
    assert caller_of(target=b"/" + b"x" * 10_000, error=error).path == "/" + "x" * 127
    assert caller_of(target=target, error=BadRequest("x")).path is None
    assert caller_of(target=target).path is None


def test_which_request_it_was_at_the_api() -> None:
    headers = (
        (b"cf-ray", b"9a1-FRA"),
        (b"x-request-id", b"r-1"),
        (b"inference-id", b"chatcmpl-1"),
    )
    caller = caller_of(upstream=headers)
    assert (caller.upstream_id, caller.cf_ray) == ("chatcmpl-1", "9a1-FRA")
    assert caller_of(upstream=headers[:2]).upstream_id == "r-1"
    assert caller_of(upstream=(headers[1], (b"inference-id", b"<>"))).upstream_id == "r-1"


def test_nobody_is_a_label() -> None:
    exchange = chat_exchange(
        address=REAL,
        request=Request(
            "POST", b"/", b"1.1", ((b"user-agent", b"Mark/1"), (b"x-session-id", b"mark-2"))
        ),
        upstream_headers=((b"inference-id", b"mark-3"), (b"cf-ray", b"mark-4")),
    )
    text = rendered(observed(exchange))[0].lower()
    assert b"mark" not in text
    assert REAL.encode() not in text
