"""The table of settings, row by row: accepted texts, their values, and rejected texts."""

import hashlib
import json
import pickle
import ssl
import sys
from importlib.machinery import FrozenImporter
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import certifi
import pytest
import trustme
from characters import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.config.keys import ClientKey, UpstreamKey, read_client_keys, read_keys_file
from ape_cerebras.config.settings import BUCKETS, SETTINGS, Setting
from ape_cerebras.config.values import (
    BACKENDS,
    EgressProxy,
    Origin,
    read_backend,
    read_origin,
)

ROWS = {setting.variable: setting for setting in SETTINGS}
SECONDS = {"0.5": 0.5, "5": 5.0, "075": 75.0, "123456.789": 123456.789}
NOT_SECONDS = (
    *("0", "0.0", "-1", "+1", "nan", "inf", "1e3", "1_000", "5s", "5,0", ".", "1.", ".5", "٥", "x"),
    *("9999999999", "0x10", "1 0"),
)
COUNT = {"1": 1, "10000000": 10_000_000, "007": 7}
NOT_COUNT = ("0", "-1", "+1", "1.0", "1e3", "1_000", "10000001", "٥", "x", "9" * 5000, "0x1")
BYTES = {"64": 64, "16384": 16_384, "2147483648": 2**31}
NOT_BYTES = ("63", "0", "-64", "16k", "2147483649", "16384.0", "x")
SWITCH = {"on": True, "TRUE": True, "1": True, "off": False, "false": False, "0": False}
NOT_A_SWITCH = ("yes", "2", "kernel")
TESTS = str(Path(__file__).parents[1])
KEYS_FILE = f"{TESTS}/support/keys.toml"
CA_DIRECTORY = f"{TESTS}/support/ca"
NOT_A_FILE = ("/nowhere/at/all", "/", "a\nb", "x" * 5000)


def without_folder(text: str) -> str:
    """For test ids that do not depend on the folder of the tests."""
    return text.replace(TESTS, "tests")


def key(text: str, name: str | None = None) -> ClientKey:
    return ClientKey(hashlib.sha256(text.encode()).digest(), name)


REDIS = "redis://:word@127.0.0.1:6379/0"
COLLECTOR = {"http://otel:4318": "http://otel:4318", "https://a.b/c": "https://a.b/c"}
NO_COLLECTOR = (
    "otel:4318",
    "http://",
    "http://a b",
    "http://me@otel",
    "http://otel?key=1",
    "grpc://otel",
)
GOOD: dict[str, dict[str, Any]] = {
    "CEREBRAS_API_KEY": {"csk-abc": "csk-abc", "!~": "!~", "k" * 500: "k" * 500},
    "CEREBRAS_BASE_URL": {
        "https://api.cerebras.ai": Origin("https", "api.cerebras.ai", 443),
        "https://api.cerebras.ai/": Origin("https", "api.cerebras.ai", 443),
        "https://api.cerebras.ai/v1": Origin("https", "api.cerebras.ai", 443),
        "HTTPS://API.Cerebras.AI/v1/": Origin("https", "api.cerebras.ai", 443),
        "http://127.0.0.1:9000": Origin("http", "127.0.0.1", 9000),
        "http://simulator": Origin("http", "simulator", 80),
        "http://[::1]:9000/v1": Origin("http", "::1", 9000),
        "https://gate_way.example/cerebras/v1": Origin(
            "https", "gate_way.example", 443, "/cerebras"
        ),
        "https://a/v10": Origin("https", "a", 443, "/v10"),
    },
    "APE_API_KEY": {
        "secret": (key("secret"),),
        "one,two": (key("one"), key("two")),
        "agent:one, other.agent:two ,three": (
            *(key("one", "agent"), key("two", "other.agent")),
            key("three"),
        ),
        "agent:a:b": (key("a:b", "agent"),),
        "not a name".replace(" ", "/") + ":x": (key("not/a/name:x"),),
    },
    "APE_API_KEYS_FILE": {KEYS_FILE: read_keys_file(KEYS_FILE)},
    "RUN_ID": {"7": "7", "a.b_c:d-E": "a.b_c:d-E", "x" * 64: "x" * 64},
    "LOG_LEVEL": {
        "INFO": "info",
        "debug": "debug",
        "Warning": "warning",
        "Warn": "warning",
        "ERROR": "error",
    },
    "LOG_PEER": SWITCH,
    "TRUSTED_PROXIES": {
        "127.0.0.1": (ip_network("127.0.0.1/32"),),
        "10.0.0.0/8, fd00::/8 ,::1": tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "::1"))),
    },
    "SESSION_ID_HEADERS": {"X-My-Session , session_id": (b"x-my-session", b"session_id")},
    "AGENT_ID_HEADERS": {"x-agent": (b"x-agent",), "off": ()},
    "CORS_ORIGINS": {
        "*": (b"*",),
        "HTTPS://App.Example.com:443, http://localhost:3000": (
            *(b"https://app.example.com", b"http://localhost:3000"),
        ),
        "http://[::1]:80,tauri://localhost": (b"http://[::1]", b"tauri://localhost"),
    },
    "HOST": {"0.0.0.0": "0.0.0.0", "::": "::", "::1": "::1", "fe80::1%eth0": "fe80::1%eth0"},
    "PORT": {"0": 0, "8000": 8000, "65535": 65535},
    "METRICS_PORT": {"0": 0, "8002": 8002, "65535": 65535},
    "METRICS_ENABLED": SWITCH,
    "METRICS_ON_MAIN_PORT": SWITCH,
    "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": COLLECTOR,
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": COLLECTOR,
    "OTEL_EXPORTER_OTLP_PROTOCOL": {"http/protobuf": "http/protobuf", "grpc": "grpc"},
    "OTEL_TRACES_EXPORTER": {"none": "none", "otlp,console": "otlp,console"},
    "OTEL_METRICS_EXPORTER": {"otlp": "otlp"},
    "DEFAULT_MODEL": {"gpt-oss-120b": "gpt-oss-120b", "a/b:c": "a/b:c"},
    "MODEL_ALIASES": {
        "a=b": {"a": "b"},
        "gpt-4=gpt-oss-120b, llama3.1-8b = gpt-oss-120b": {
            "gpt-4": "gpt-oss-120b",
            "llama3.1-8b": "gpt-oss-120b",
        },
        "a=b=c": {"a": "b=c"},
    },
    "PRICE_CATALOGUE": {"on": True, "off": False},
    "ASYNC_WORKERS": {"1": 1, "2": 2, "1000": 1000},
    "BACKEND": {"asyncio": "asyncio", "Trio": "trio", "UVLOOP": "uvloop"},
    "MAX_CONCURRENT_REQUESTS": COUNT,
    "MAX_QUEUE_SECONDS": {"0": 0.0, "2.5": 2.5, "30": 30.0},
    "QUOTA_PACING": SWITCH,
    "MAX_COMPLETION_TOKENS_DEFAULT": COUNT,
    "MAX_COMPLETION_TOKENS_CAP": COUNT,
    "MAX_QUEUE_LENGTH": {"0": 0, "1000000": 1_000_000},
    "RATE_LIMIT_PER_MINUTE": COUNT,
    "LIMITS_STORE": {
        text: text
        for text in ("redis://localhost", "rediss://me:word@a.b:6380/2", "redis://[::1]:7/", REDIS)
    },
    "UPSTREAM_PROXY": {
        "http://squid": EgressProxy("squid", 80),
        "http://me:word@[::1]:3128/": EgressProxy("::1", 3128, b"Basic bWU6d29yZA=="),
    },
    "LIMITS_STORE_TIMEOUT": SECONDS,
    "LIMITS_STORE_OUTAGE": {"open": "open", "Closed": "closed"},
    "CONNECTION_POOL_SIZE": COUNT,
    "KEEP_ALIVE_CONNECTIONS": {"0": 0, "100000": 100_000},
    "WARM_CONNECTIONS": {"0": 0, "1000": 1000},
    "UPSTREAM_KEEP_ALIVE_TIMEOUT": SECONDS,
    "UPSTREAM_MAX_CONNECTION_AGE": SECONDS,
    "UPSTREAM_CONNECT_TIMEOUT": SECONDS,
    "UPSTREAM_FIRST_BYTE_TIMEOUT": SECONDS,
    "UPSTREAM_IDLE_TIMEOUT": SECONDS,
    "UPSTREAM_GZIP_MIN_BYTES": BYTES,
    "RETRY_ATTEMPTS": {"0": 0, "10": 10},
    "RETRY_BACKOFF": SECONDS,
    "CIRCUIT_FAILURES": COUNT,
    "REQUEST_TIMEOUT": SECONDS,
    "CLIENT_HEAD_TIMEOUT": SECONDS,
    "CLIENT_BODY_TIMEOUT": SECONDS,
    "CLIENT_WRITE_TIMEOUT": SECONDS,
    "KEEP_ALIVE_TIMEOUT": SECONDS,
    "MAX_HEADER_BYTES": BYTES,
    "MAX_HEADERS": COUNT,
    "MAX_TARGET_BYTES": BYTES,
    "MAX_BODY_BYTES": BYTES,
    "MAX_CONNECTIONS": COUNT,
    "MAX_REQUESTS_PER_CONNECTION": COUNT,
    "GRACEFUL_SHUTDOWN_TIMEOUT": SECONDS,
    "TTFT_TARGET_MS": SECONDS,
    "TTFT_MODE": {"passthrough": "passthrough", "Exact": "exact"},
    "KERNEL_STAMPS": SWITCH,
    "HISTOGRAM_BUCKETS": {
        "{}": {},
        '{"ttft":[0.1,1],"speed":[100]}': {"ttft": (0.1, 1.0), "speed": (100.0,)},
    },
    "SSL_CERT_FILE": {certifi.where(): certifi.where()},
    "SSL_CERT_DIR": {text: text for text in (CA_DIRECTORY, f"{TESTS}:{CA_DIRECTORY}")},
}
NOT_KEYS = ("two words", "a\tb", "a\nb", "a\0b", "clé", "\ufeffkey", "a\x7fb")
BAD: dict[str, tuple[str, ...]] = {
    "CEREBRAS_API_KEY": NOT_KEYS,
    "CEREBRAS_BASE_URL": (
        *("api.cerebras.ai", "//api.cerebras.ai", "ftp://a", "https://", "https:///v1", "https:a"),
        *(
            "https://a:0",
            "https://a:99999",
            "https://a:b",
            "https://[::1",
            "https://[zz]",
            "http://:80",
        ),
        *("https://me@a", "https://me:word@a", "https://@a", "https://a/?q=1", "https://a/#f"),
        *(
            "https://a/?",
            "https://a b",
            "https://a/b c",
            "https://é",
            "https://a\n",
            "https://a<b>",
        ),
        *('https://"a"', "https://" + "a" * 300),
    ),
    "APE_API_KEY": (*(*NOT_KEYS, ",", "a,", ",a", "a,,b", "agent:", "one,agent:", "agent:,one"),),
    "APE_API_KEYS_FILE": (*NOT_A_FILE, __file__),
    "LOG_LEVEL": ("verbose", "10", "info,debug"),
    "RUN_ID": ("a b", "é", "a/b", "x" * 65),
    "LOG_PEER": NOT_A_SWITCH,
    "TRUSTED_PROXIES": ("nginx", "10.0.0.1/8", "10.0.0.0/33", "::1,", "10.0.0.1:80"),
    "SESSION_ID_HEADERS": ("a b", "a,,b", ",", "x:", "é", "x" * 65, "Authorization", "a,cookie"),
    "AGENT_ID_HEADERS": ("a b", "a,,b", "x-api-key"),
    "CORS_ORIGINS": (
        *("app.example.com", "https://", "https://a/", "https://a/b", "https://a?b", "https://a b"),
        *("https://a,", "https://a,*", "https://me@a", "https://a:", "https://a:123456", "null"),
        *("https://*.example.com", "https://é", "https://a:65536"),
    ),
    "HOST": ("a b", "http://a", "[::1]", "é", "a/b"),
    "PORT": ("65536", "-1", "http", "80.0", "٨٠", "1e3"),
    "METRICS_PORT": ("65536", "-1", "on", "80.0", "٨٠", "1e3"),
    "METRICS_ENABLED": NOT_A_SWITCH,
    "METRICS_ON_MAIN_PORT": NOT_A_SWITCH,
    "OTEL_EXPORTER_OTLP_ENDPOINT": NO_COLLECTOR,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NO_COLLECTOR,
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": NO_COLLECTOR,
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("gopher", "http"),
    "OTEL_TRACES_EXPORTER": ("a b", "otlp,", "é"),
    "OTEL_METRICS_EXPORTER": ("a b", "otlp,", "é"),
    "DEFAULT_MODEL": ("two words", "é", "m" * 257, "a\nb"),
    "MODEL_ALIASES": ("a", "a=", "=b", "a=b,", "a=b,a=c", "a b=c", "a=b;c=d e"),
    "PRICE_CATALOGUE": ("yes", "2", "hourly"),
    "ASYNC_WORKERS": ("0", "-1", "1001", "two", "1.5"),
    "BACKEND": ("uv", "curio", "asyncio,trio"),
    "MAX_CONCURRENT_REQUESTS": NOT_COUNT,
    "MAX_QUEUE_SECONDS": ("-1", "a", "1e3", "inf", "nan", "1,5", "٣"),
    "QUOTA_PACING": NOT_A_SWITCH,
    "MAX_COMPLETION_TOKENS_DEFAULT": NOT_COUNT,
    "MAX_COMPLETION_TOKENS_CAP": NOT_COUNT,
    "MAX_QUEUE_LENGTH": ("-1", "1000001", "1.5", "many"),
    "RATE_LIMIT_PER_MINUTE": NOT_COUNT,
    "UPSTREAM_PROXY": ("squid:3128", "https://squid", "socks5://a", "http://a:0", "http://a/b"),
    "LIMITS_STORE": (
        *(
            "localhost",
            "redis:",
            "redis://",
            "http://a",
            "redis://a:b",
            "redis://a:0",
            "redis://[a",
        ),
        *("redis://a/b", "redis://a?db=1", "redis://a/1#f", "redis://a b", "redis://é"),
    ),
    "LIMITS_STORE_TIMEOUT": NOT_SECONDS,
    "LIMITS_STORE_OUTAGE": ("shut", "open closed", "1"),
    "CONNECTION_POOL_SIZE": NOT_COUNT,
    "KEEP_ALIVE_CONNECTIONS": ("-1", "100001", "many"),
    "WARM_CONNECTIONS": ("-1", "1001", "1.5"),
    "UPSTREAM_KEEP_ALIVE_TIMEOUT": NOT_SECONDS,
    "UPSTREAM_MAX_CONNECTION_AGE": NOT_SECONDS,
    "UPSTREAM_CONNECT_TIMEOUT": NOT_SECONDS,
    "UPSTREAM_FIRST_BYTE_TIMEOUT": NOT_SECONDS,
    "UPSTREAM_IDLE_TIMEOUT": NOT_SECONDS,
    "UPSTREAM_GZIP_MIN_BYTES": NOT_BYTES,
    "RETRY_ATTEMPTS": ("-1", "11", "1.5", "on"),
    "RETRY_BACKOFF": NOT_SECONDS,
    "CIRCUIT_FAILURES": NOT_COUNT,
    "REQUEST_TIMEOUT": NOT_SECONDS,
    "CLIENT_HEAD_TIMEOUT": NOT_SECONDS,
    "CLIENT_BODY_TIMEOUT": NOT_SECONDS,
    "CLIENT_WRITE_TIMEOUT": NOT_SECONDS,
    "KEEP_ALIVE_TIMEOUT": NOT_SECONDS,
    "MAX_HEADER_BYTES": NOT_BYTES,
    "MAX_HEADERS": NOT_COUNT,
    "MAX_TARGET_BYTES": NOT_BYTES,
    "MAX_BODY_BYTES": NOT_BYTES,
    "MAX_CONNECTIONS": NOT_COUNT,
    "MAX_REQUESTS_PER_CONNECTION": NOT_COUNT,
    "GRACEFUL_SHUTDOWN_TIMEOUT": NOT_SECONDS,
    "TTFT_TARGET_MS": NOT_SECONDS,
    "TTFT_MODE": ("derived", "on", "exact,passthrough"),
    "KERNEL_STAMPS": NOT_A_SWITCH,
    "HISTOGRAM_BUCKETS": (
        *("[]", "{", "{'ttft':[1]}", '{"ttft":[]}', '{"ttft":1}', '{"ttft":null}', '{"other":[1]}'),
        *(
            '{"ttft":[2,1]}',
            '{"ttft":[1,1]}',
            '{"ttft":["1"]}',
            '{"ttft":[true]}',
            '{"ttft":[NaN]}',
            '{"ttft":[1e999]}',
            '{"ttft":[-1,1]}',
            '{"ttft":[' + ",".join(map(str, range(1, 102))) + "]}",
        ),
        *('{"ttft":[1,null]}', *NOT_A_FILE),
    ),
    "MODEL_PRICES": ("{", "[]", '{"m":1}', '{"m":{"input":-1,"output":1}}', *NOT_A_FILE),
    "SSL_CERT_FILE": (*NOT_A_FILE, __file__, "/dev/null", "/dev/zero"),
    "SSL_CERT_DIR": (*NOT_A_FILE, TESTS, __file__, f"{CA_DIRECTORY}:/nowhere"),
}


def test_every_setting_has_examples() -> None:
    assert GOOD.keys() | {"MODEL_PRICES"} == BAD.keys() == ROWS.keys()
    assert len(ROWS) == len(SETTINGS)


@pytest.mark.parametrize(
    ("variable", "text"),
    [(row, text) for row in GOOD for text in GOOD[row]],
    ids=without_folder,
)
def test_valid_values(variable: str, text: str) -> None:
    value = ROWS[variable].parse(text)
    # A key compares as the text that it is, which is all that a str's equality looks at.
    assert value == GOOD[variable][text]
    if variable.endswith(("TIMEOUT", "_MS")):
        assert type(value) is float


@pytest.mark.parametrize(
    ("variable", "text"),
    [(row, text) for row in BAD for text in BAD[row]],
    ids=without_folder,
)
def test_invalid_values(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"^(must be|is not|names|needs|has|model)") as caught:
        ROWS[variable].parse(text)
    assert type(caught.value) is ValueError
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    if ROWS[variable].secret:
        assert text not in str(caught.value) or text == ","


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
def test_every_setting_has_a_meaning(setting: Setting) -> None:
    assert setting.variable == setting.variable.upper()
    assert setting.meaning
    assert setting.meaning[-1] not in ".,;: "
    holds_a_secret = setting.variable.endswith(("API_KEY", "LIMITS_STORE", "UPSTREAM_PROXY"))
    assert setting.secret == holds_a_secret


@given(st.sampled_from(SETTINGS), st.text(CHARACTERS, min_size=1).map(str.strip).filter(bool))
def test_any_text_is_read_or_refused_with_our_own_message(setting: Setting, text: str) -> None:
    try:
        setting.parse(text)
    except ValueError as problem:
        # Not a subclass, as libraries often raise, whose text can quote a secret.
        assert type(problem) is ValueError  # noqa: PT017
        assert str(problem).isascii() or not setting.secret  # noqa: PT017


# Values of their own types


def test_prices_and_buckets_can_be_read_from_a_file(tmp_path: Path) -> None:
    prices, buckets = tmp_path / "prices.json", tmp_path / "buckets.json"
    prices.write_text('{"m":{"input":1,"output":2}}')
    buckets.write_text('{"ttft":[1,2]}')
    assert list(ROWS["MODEL_PRICES"].parse(str(prices)).prices) == ["m"]
    assert ROWS["MODEL_PRICES"].parse(prices.read_text()) == ROWS["MODEL_PRICES"].parse(str(prices))
    assert ROWS["HISTOGRAM_BUCKETS"].parse(str(buckets)) == {"ttft": (1.0, 2.0)}
    prices.write_bytes(b"\xef\xbb\xbf" + prices.read_bytes().replace(b",", b",\r\n"))
    assert list(ROWS["MODEL_PRICES"].parse(str(prices)).prices) == ["m"]
    prices.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="names a file that is not UTF-8"):
        ROWS["MODEL_PRICES"].parse(str(prices))
    prices.write_bytes(b" " * 5_000_000)
    with pytest.raises(ValueError, match="names a file that is too large"):
        ROWS["MODEL_PRICES"].parse(str(prices))


def test_a_ca_bundle_is_judged_by_openssl(tmp_path: Path, authority: trustme.CA) -> None:
    good, file = authority.cert_pem.bytes(), tmp_path / "bundle"
    for content, wrong in {
        b"": "names an empty file",
        b" \r\n": "names an empty file",
        ssl.PEM_cert_to_DER_cert(good.decode()): "names a file of certificates in DER",
        b"no certificate": "names a file of certificates that OpenSSL cannot read",
        authority.private_key_pem.bytes(): "names a file of certificates that OpenSSL cannot read",
        good.replace(b"M", b"N"): "names a file of certificates that OpenSSL cannot read",
    }.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=wrong):
            ROWS["SSL_CERT_FILE"].parse(str(file))
    file.write_bytes("# Überschrift\r\n".encode() + good.replace(b"\n", b"\r\n"))
    assert ROWS["SSL_CERT_FILE"].parse(str(file)) == str(file)


def test_every_family_can_have_buckets() -> None:
    table = json.dumps({family: [1] for family in BUCKETS})
    assert ROWS["HISTOGRAM_BUCKETS"].parse(table) == dict.fromkeys(BUCKETS, (1.0,))


def test_an_origin_survives_a_round_trip_as_text() -> None:
    for text, origin in GOOD["CEREBRAS_BASE_URL"].items():
        assert read_origin(str(origin)) == read_origin(text) == origin


def test_no_text_of_an_upstream_key_shows_it() -> None:
    secret = ROWS["CEREBRAS_API_KEY"].parse("csk-abc")
    assert type(secret) is UpstreamKey
    shown = (
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!r:>20}",
        f"{secret!s:>9}",
        str([secret]),
    )
    assert not any("csk" in text for text in shown)
    assert secret.encode() == b"csk-abc"
    assert type(pickle.loads(pickle.dumps(secret))) is UpstreamKey


def test_client_keys_are_kept_as_digests_only() -> None:
    assert "secret" not in repr(read_client_keys("name:secret"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_name_of_an_event_loop_is_case_insensitive(backend: str) -> None:
    assert read_backend(backend.upper()) == backend


def test_an_unknown_event_loop_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="must be one of asyncio, trio, uvloop"):
        read_backend("twisted")


def test_a_missing_uvloop_is_refused_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    monkeypatch.setattr(sys, "meta_path", [FrozenImporter])  # finds no packages
    with pytest.raises(ValueError, match=r"pip install 'ape-cerebras\[uvloop\]'"):
        read_backend("uvloop")
