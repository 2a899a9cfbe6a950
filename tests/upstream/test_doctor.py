"""``check --upstream``: what it finds in a way to the API that works, and in each that does not."""

import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
import trustme
from end_to_end import KEY, Conversation, Script, running_upstream
from key_leaks import check_for_keys
from redis_server import redis_server
from server_process import refusing_port
from tls_upstream import certificate, over_tls
from upstream_scripts import closes, resets, responds, responds_with, silent

from ape_cerebras.config.config import Config
from ape_cerebras.errors import KeyRefused
from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.server import Simulator
from ape_cerebras.telemetry.outcomes import CAUSES
from ape_cerebras.upstream import doctor
from ape_cerebras.upstream.doctor import FIXES, Finding, examine, fetch_models

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

QUOTA = (
    b"x-ratelimit-limit-requests-minute: 30\r\nx-ratelimit-remaining-requests-minute: 29\r\n"
    b"x-ratelimit-limit-tokens-day: 1000\r\nx-ratelimit-remaining-tokens-day: 0\r\n"
)


def listing(*models: Any) -> bytes:
    entries = [{"id": model, "object": "model"} for model in models]
    return orjson.dumps({"object": "list", "data": entries})


def config_of(base: str, **settings: str) -> Config:
    default = {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": base, "DEFAULT_MODEL": "gpt-oss-120b"}
    return Config.from_environment({**default, **settings})


async def findings(
    base: str, environment: Mapping[str, str] | None = None, /, **settings: str
) -> list[Finding]:
    config = config_of(base, **settings)
    found = [finding async for finding in examine(config, environment or settings)]
    for _, _, text in found:
        check_for_keys(text.encode())
        assert text.isascii()
        assert text.isprintable()
    return found


def texts(found: list[Finding]) -> dict[str, str]:
    return {subject: text for subject, ok, text in found if ok}


def faults(found: list[Finding]) -> dict[str, str]:
    return {subject: text for subject, ok, text in found if not ok}


async def fault_of(base: str, **settings: str) -> tuple[str, str]:
    """The one thing that is wrong."""
    [(subject, text)] = faults(await findings(base, **settings)).items()
    return subject, text


@asynccontextmanager
async def simulator(**options: Any) -> AsyncIterator[int]:
    made = Simulator(Simulation(api_key=KEY), **options)
    async with anyio.create_task_group() as tasks:
        yield await tasks.start(made.serve, "127.0.0.1", 0)
        tasks.cancel_scope.cancel()


async def test_a_way_that_works(authority: trustme.CA, bundle: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with simulator(ssl_context=context) as port:
        found = await findings(f"https://localhost:{port}", SSL_CERT_FILE=bundle)
    assert faults(found) == {}
    good = texts(found)
    assert list(good) == [
        *("proxies", "name", "addresses", "tls", "key", "models", "default model", "quota"),
        "clock",
    ]
    assert good["proxies"] == "none"
    assert re.fullmatch(r"localhost is [0-9.:, ]+ \([0-9.]+ ms\)", good["name"])
    assert re.match(rf"port {port} accepts: 127.0.0.1 in [0-9.]+ ms", good["addresses"])
    assert re.fullmatch(
        r"TLSv1.3, certificate by trustme v[0-9.]+ until [0-9-]{10}, in [0-9]+ days"
        r" \([0-9.]+ ms\)",
        good["tls"],
    )
    assert re.fullmatch(r"accepted, GET /v1/models took [0-9.]+ ms", good["key"])
    assert good["default model"] == "listed: gpt-oss-120b"


async def test_without_tls() -> None:
    async with simulator() as port:
        found = await findings(f"http://127.0.0.1:{port}")
    assert faults(found) == {}
    assert texts(found)["tls"] == "none, because CEREBRAS_BASE_URL is http://"


def test_every_cause_has_something_to_do() -> None:
    assert set(FIXES) == set(CAUSES)


# Connecting


async def test_a_port_that_refuses() -> None:
    with refusing_port() as port:
        found = await findings(f"http://127.0.0.1:{port}")
    assert [finding.subject for finding in found] == ["proxies", "name", "addresses"]
    text = faults(found)["addresses"]
    assert text.startswith(f"port {port}: ECONNREFUSED at 127.0.0.1: nothing listens")
    assert "To do: correct host and port in CEREBRAS_BASE_URL" in text


@pytest.mark.parametrize(
    ("number", "cause"), [(socket.EAI_NONAME, "EAI_NONAME"), (socket.EAI_AGAIN, "EAI_AGAIN")]
)
async def test_a_name_that_is_not_found(
    monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    real = socket.getaddrinfo

    def fail(host: bytes, *rest: Any, **options: Any) -> Any:
        if host != b"api.nowhere.example":  # another thread's
            return real(host, *rest, **options)
        raise socket.gaierror(number, f"foreign text about {host.decode()}")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    subject, text = await fault_of("http://api.nowhere.example")
    assert subject == "name"
    assert text.startswith(f"{cause} at api.nowhere.example: ")
    assert "foreign" not in text


async def test_one_address_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def both(host: bytes, port: int, **options: Any) -> Any:
        names = ("127.0.0.2", "127.0.0.1") if host == b"two.example" else (host,)
        return [found for name in names for found in real(name, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with simulator() as port:
        found = await findings(f"http://two.example:{port}")
    assert faults(found) == {}
    assert texts(found)["name"].startswith("two.example is 127.0.0.2, 127.0.0.1 (")
    assert texts(found)["addresses"].endswith(" ms; but ECONNREFUSED at 127.0.0.2")


async def test_an_address_that_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> Any:
        await anyio.sleep_forever()

    monkeypatch.setattr(doctor, "connect_tcp", never)
    subject, text = await fault_of("http://127.0.0.1:9", UPSTREAM_CONNECT_TIMEOUT="0.05")
    assert subject == "addresses"
    assert text.startswith("port 9: tcp_timeout at 127.0.0.1: connecting took too long.")


# TLS


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("shown", "cause"),
    [
        ("expired", "expired"),
        ("not yet valid", "not_yet_valid"),
        ("self-signed", "unknown_issuer"),
        ("elsewhere.example", "hostname_mismatch"),
    ],
)
async def test_a_certificate_that_cannot_be_trusted(
    authority: trustme.CA, bundle: str, shown: str, cause: str
) -> None:
    async with running_upstream(over_tls(responds, certificate(shown, authority))) as upstream:
        base = f"https://localhost:{upstream.port}"
        subject, text = await fault_of(base, SSL_CERT_FILE=bundle)
    assert subject == "tls"
    assert text.startswith(f"{cause} at ")
    assert text.endswith(f"{CAUSES[cause]}. To do: {FIXES[cause]}")
    assert upstream.requests == []


async def test_a_port_without_tls(bundle: str) -> None:
    async def not_tls(peer: Conversation) -> None:
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with running_upstream(not_tls) as upstream:
        found = await fault_of(f"https://localhost:{upstream.port}", SSL_CERT_FILE=bundle)
    assert found[0] == "tls"
    assert found[1].startswith("WRONG_VERSION_NUMBER at ")


async def test_a_handshake_that_hangs(bundle: str) -> None:
    async def hang(peer: Conversation) -> None:
        await peer.until_disconnected()

    async with running_upstream(hang) as upstream:
        base = f"https://localhost:{upstream.port}"
        found = await fault_of(base, SSL_CERT_FILE=bundle, UPSTREAM_CONNECT_TIMEOUT="0.2")
    assert found[0] == "tls"
    assert found[1].startswith("tls_timeout at ")


# The request


@pytest.mark.parametrize(
    ("script", "subject", "begin"),
    [
        (responds_with(401), "request", "key_refused at 127.0.0.1:"),
        (responds_with(402), "request", "status 402. To do: the account wants to be paid for"),
        (responds_with(403), "request", "status 403. To do: this account, or this machine's"),
        (responds_with(404), "request", "status 404. To do: there is no /v1/models: correct"),
        (responds_with(429), "request", "status 429. To do: the account's quota is used up: "),
        (responds_with(503), "request", "status 503. To do: what responds there is not the API"),
        (responds_with(301), "request", "redirect at 127.0.0.1:"),
        (closes, "request", "closed at 127.0.0.1:"),
        (resets, "request", "ECONNRESET at 127.0.0.1:"),
        (responds_with(200, KEY.encode()), "request", "key_quoted at 127.0.0.1:"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_request_that_fails(script: Script, subject: str, begin: str) -> None:
    async with running_upstream(script) as upstream:
        found = await fault_of(f"http://127.0.0.1:{upstream.port}")
    assert found[0] == subject
    assert found[1].startswith(begin)
    assert "To do: " in found[1]


async def test_a_wrong_key_at_the_simulator() -> None:
    async with simulator() as port:
        found = await fault_of(f"http://127.0.0.1:{port}", CEREBRAS_API_KEY="csk-wrong-0123456789")
    assert found[1].endswith("the API refuses the account's key. To do: renew CEREBRAS_API_KEY")


async def test_a_response_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LIST_TIMEOUT", 0.2)
    async with running_upstream(silent) as upstream:
        found = await fault_of(f"http://127.0.0.1:{upstream.port}")
    assert found[1].startswith(f"silent at 127.0.0.1:{upstream.port}: nothing came in time.")


# Models

KEYS = """
[[keys]]
name = "alice"
key = "ape-key-0123456789"
models = ["gpt-oss-120b", "gone-8b"]
[[keys]]
name = "bob"
key = "ape-key-9876543210"
"""
PRICES = '{"gpt-oss-120b": {"input": 1, "output": 1}, "dear-70b": {"input": 1, "output": 1}}'


async def test_models_that_the_settings_name_and_the_list_does_not(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(KEYS)
    settings = {
        "DEFAULT_MODEL": "old-8b",
        "MODEL_ALIASES": "gpt-4o=gpt-oss-120b,gpt-4=old-8b",
        "MODEL_PRICES": PRICES,
        "APE_API_KEYS_FILE": str(tmp_path / "keys.toml"),
    }
    async with running_upstream(responds_with(200, listing("gpt-oss-120b", "b"))) as upstream:
        found = await findings(f"http://127.0.0.1:{upstream.port}", **settings)
    assert texts(found)["models"] == "2: b, gpt-oss-120b"
    assert faults(found) == {
        "default model": "not listed: old-8b. To do: set DEFAULT_MODEL to one that is",
        "aliases": "not listed: old-8b. To do: correct MODEL_ALIASES",
        "prices": "not listed: dear-70b. To do: correct MODEL_PRICES",
        "key alice": "not listed: gone-8b. To do: correct models in APE_API_KEYS_FILE",
    }


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"data":null}',
        b'{"data":{}}',
        b'{"data":[]}',
        b'{"data":[1]}',
        b'{"data":[{}]}',
        b'{"data":[{"id":1}]}',
        b'{"data":[{"id":{}}]}',
        b'{"data":{"id":{"id":"a"}}}',
        b'{"data":' + b"[" * 100_000,
        listing(*map(str, range(1001))),
        b"\xff\xfe",
    ],
    ids=range(15),
)
async def test_what_is_no_list_of_models(body: bytes) -> None:
    async with running_upstream(responds_with(200, body)) as upstream:
        base = f"http://127.0.0.1:{upstream.port}"
        found = await fault_of(base)
        assert await fetch_models(config_of(base)) is None
    assert found[0] == "models"
    assert found[1].startswith("unusable: the response is HTTP, and not what was requested.")


async def test_a_list_without_end() -> None:
    async with running_upstream(responds_with(200, b" " * 300_000)) as upstream:
        found = await fault_of(f"http://127.0.0.1:{upstream.port}")
    assert found[1].startswith("too_large at ")


async def test_names_of_models_are_escaped_and_cut() -> None:
    hostile = ("\x1b[31mred\n", "ü" * 500, *"abcdef", "gpt-oss-120b")
    async with running_upstream(responds_with(200, listing(*hostile))) as upstream:
        found = await findings(f"http://127.0.0.1:{upstream.port}")
    assert faults(found) == {}
    assert texts(found)["models"] == r"9: \x1b[31mred\n, a, b, c, d and 4 more"


# Quota and clock


async def test_the_quota() -> None:
    reply = responds_with(200, listing("gpt-oss-120b"), QUOTA)
    async with running_upstream(reply) as upstream:
        found = await fault_of(f"http://127.0.0.1:{upstream.port}")
    assert found == (
        "quota",
        "nothing is left of tokens per day. To do: wait, or have the account's quota raised",
    )
    some = responds_with(200, listing("gpt-oss-120b"), QUOTA.partition(b"x-ratelimit-limit-t")[0])
    async with running_upstream(some) as upstream:
        good = texts(await findings(f"http://127.0.0.1:{upstream.port}"))
    assert good["quota"] == "29 of 30 requests per minute"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3600, "s behind the API's. To do: set"), (-3600, "s ahead of the API's. To do: set")],
)
async def test_a_clock_that_is_wrong(seconds: int, text: str) -> None:
    date = f"Date: {formatdate(time.time() + seconds, usegmt=True)}\r\n".encode()
    async with running_upstream(responds_with(200, listing("gpt-oss-120b"), date)) as upstream:
        found = await fault_of(f"http://127.0.0.1:{upstream.port}")
    assert found[0] == "clock"
    assert text in found[1]
    assert 3500 < int(found[1].split()[0]) < 3700


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    "date", ["", "x", "Mon, 99 Foo 2026", "Mon, 01 Jan 99999 00:00:00 GMT", "0" * 5000, ";;;"]
)
async def test_a_date_that_is_none(date: str) -> None:
    line = f"Date: {date}\r\n".encode()
    async with running_upstream(responds_with(200, listing("gpt-oss-120b"), line)) as upstream:
        found = await findings(f"http://127.0.0.1:{upstream.port}")
    assert faults(found) == {}
    assert texts(found)["clock"] == "the response has no Date that can be read"


# A proxy on the way


async def converse_as_proxy(peer: Conversation, target: int, status: bytes = b"200 OK") -> None:
    """Accept CONNECT, and pass everything on."""
    request = await peer.request()
    await peer.send(b"HTTP/1.1 %s\r\n\r\n" % status)
    if b"200" not in status or not request.startswith(b"CONNECT "):
        return
    async with (
        await anyio.connect_tcp("127.0.0.1", target) as api,
        anyio.create_task_group() as tasks,
    ):

        async def back() -> None:
            async for data in api:
                await peer.send(data)

        tasks.start_soon(back)
        try:
            while True:
                await api.send(await peer.stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            tasks.cancel_scope.cancel()


async def test_through_a_proxy(authority: trustme.CA, bundle: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with simulator(ssl_context=context) as port:

        async def passes_on(peer: Conversation) -> None:
            await converse_as_proxy(peer, port)

        async with running_upstream(passes_on) as proxy:
            found = await findings(
                f"https://localhost:{port}",
                SSL_CERT_FILE=bundle,
                UPSTREAM_PROXY=f"http://me:pass-word@127.0.0.1:{proxy.port}",
            )
    assert faults(found) == {}
    good = texts(found)
    through = f"http://127.0.0.1:{proxy.port}"
    assert good["proxies"] == f"through {through}, which UPSTREAM_PROXY names"
    assert good["name"].startswith("127.0.0.1 is 127.0.0.1 (")
    assert good["egress"].startswith(f"{through} connects to the API (")
    assert "key" in good
    assert "pass-word" not in str(found)
    assert b"Basic " in proxy.requests[0]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (b"407 No", "proxy_auth"),
        (b"403 No", "proxy_refused"),
        (b"502 No", "proxy_unreachable"),
        (b"x", "proxy_invalid"),
    ],
)
async def test_a_proxy_that_refuses(status: bytes, cause: str) -> None:
    async def refuses(peer: Conversation) -> None:
        await converse_as_proxy(peer, 0, status)

    async with running_upstream(refuses) as proxy:
        through = {"UPSTREAM_PROXY": f"http://127.0.0.1:{proxy.port}"}
        found = await fault_of("http://127.0.0.1:9", **through)
    assert found[0] == "egress"
    assert found[1].startswith(f"{cause} at 127.0.0.1:{proxy.port}: {CAUSES[cause]}")


async def test_variables_of_proxies_that_have_no_effect() -> None:
    others = {"HTTP_PROXY": "http://squid.example", "all_proxy": "socks5://socks.example"}
    async with simulator() as port:
        found = await findings(f"http://127.0.0.1:{port}", others)
    assert texts(found)["proxies"] == "none; without effect: HTTP_PROXY, all_proxy"


# Redis


async def test_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with simulator() as port:
            base = f"http://127.0.0.1:{port}"
            slow = {"LIMITS_STORE_TIMEOUT": "5"}
            found = await findings(base, LIMITS_STORE=server.url, **slow)
            assert texts(found)["redis"] == "takes scripts, and writes"
            wrong = server.url.replace("password-of-the-store", "wrong-word")
            assert await fault_of(base, LIMITS_STORE=wrong, **slow) == (
                *("redis", "To do: correct user and password in LIMITS_STORE"),
            )
            server.kill()
            subject, text = await fault_of(base, LIMITS_STORE=server.url, **slow)
    assert (subject, text[:30]) == ("redis", "To do: nothing responds: corre")


async def test_what_is_no_redis() -> None:
    async def odd(peer: Conversation) -> None:
        await peer.stream.receive()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with simulator() as port, running_upstream(odd) as upstream:
        store = f"redis://127.0.0.1:{upstream.port}"
        subject, text = await fault_of(f"http://127.0.0.1:{port}", LIMITS_STORE=store)
    assert subject == "redis"
    assert "400" not in text


# For the start


async def test_the_list_alone() -> None:
    async with simulator() as port:
        models = await fetch_models(config_of(f"http://127.0.0.1:{port}"))
        assert models is not None
        assert "gpt-oss-120b" in models
        with pytest.raises(KeyRefused):
            await fetch_models(config_of(f"http://127.0.0.1:{port}", CEREBRAS_API_KEY="csk-" * 5))
    async with running_upstream(responds_with(500)) as upstream:
        assert await fetch_models(config_of(f"http://127.0.0.1:{upstream.port}")) is None
