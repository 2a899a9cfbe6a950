"""TLS to upstream, for real: a local authority, and certificates good and bad."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from end_to_end import (
    KEY,
    Conversation,
    Running,
    Script,
    ScriptedUpstream,
    chat,
    running_proxy,
    running_upstream,
)
from tls_upstream import over_tls
from upstream_scripts import responds

pytestmark = pytest.mark.anyio

OTHER_CAS = Path(__file__).parent.parent / "support/ca"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"


@asynccontextmanager
async def exchange_with(
    script: Script, leaf: trustme.LeafCert, bundle: str
) -> AsyncIterator[tuple[ScriptedUpstream, Running]]:
    async with (
        running_upstream(over_tls(script, leaf)) as upstream,
        running_proxy(
            0, CEREBRAS_BASE_URL=f"https://localhost:{upstream.port}", SSL_CERT_FILE=bundle
        ) as running,
    ):
        yield upstream, running


async def test_a_good_certificate(authority: trustme.CA, bundle: str) -> None:
    leaf = authority.issue_cert("localhost")
    async with exchange_with(responds, leaf, bundle) as (upstream, running):
        client = await running.client()
        for _ in range(3):
            response = await client.request(chat())
            assert (response.status, response.body) == (200, b"{}")
        assert upstream.connections == 1
        assert KEY.encode() in upstream.requests[0]


DAY = timedelta(days=1)
BAD: dict[str, Callable[[trustme.CA, datetime], trustme.LeafCert]] = {
    "wrong name": lambda authority, now: authority.issue_cert("elsewhere.example"),
    "expired": lambda authority, now: authority.issue_cert("localhost", not_after=now - DAY),
    "not yet valid": lambda authority, now: authority.issue_cert("localhost", not_before=now + DAY),
    "untrusted": lambda authority, now: trustme.CA().issue_cert("localhost"),
}


CAUSES = {
    "wrong name": "hostname_mismatch",
    "expired": "expired",
    "not yet valid": "not_yet_valid",
    "untrusted": "unknown_issuer",
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_certificate_gets_no_key(kind: str, authority: trustme.CA, bundle: str) -> None:
    leaf = BAD[kind](authority, datetime.now(UTC))
    async with exchange_with(responds, leaf, bundle) as (upstream, running):
        client = await running.client()
        response = await client.request(chat())
        again = await client.request(chat())
        line = await running.lines.exchange()
    assert response.status == again.status == 502
    assert response.json()["code"] == "tls_error"
    assert (line["outcome"], line["cause"]) == ("upstream_tls_failed", CAUSES[kind])
    assert line["upstream_address"].endswith(f":{upstream.port}")
    assert upstream.requests == []


def subject_hash(authority: trustme.CA) -> str:
    """The hash that ``openssl x509 -subject_hash`` prints: of the subject's parts, in lower case
    and UTF-8, without the sequence around them."""
    subject = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    parts = [x509.NameAttribute(part.oid, str(part.value).lower()) for part in subject]
    canonical = x509.Name(parts).public_bytes()
    assert canonical[1] == len(canonical) - 2, "a sequence with a length of one byte"
    digest = hashlib.sha1(canonical[2:], usedforsecurity=False).digest()
    return digest[3::-1].hex()


async def test_a_directory_of_cas(authority: trustme.CA, tmp_path: Path) -> None:
    """OpenSSL finds an issuer there by the hash of its name, which the file's name has to be: the
    same CA under another name is not seen."""
    hashed, other = tmp_path / "hashed", tmp_path / "other"
    for directory, name in ((hashed, f"{subject_hash(authority)}.0"), (other, "authority.pem")):
        directory.mkdir()
        authority.cert_pem.write_to_path(directory / name)
    leaf = authority.issue_cert("localhost")
    outcomes = []
    async with running_upstream(over_tls(responds, leaf)) as upstream:
        base = f"https://localhost:{upstream.port}"
        for settings in (
            {"SSL_CERT_DIR": f"{OTHER_CAS}:{hashed}"},
            {"SSL_CERT_DIR": f"{OTHER_CAS}:{other}"},
            {},
        ):
            async with running_proxy(0, CEREBRAS_BASE_URL=base, **settings) as running:
                response = await (await running.client()).request(chat())
                line = await running.lines.exchange()
                outcomes.append((response.status, line["outcome"], line.get("cause")))
    failed = (502, "upstream_tls_failed", "unknown_issuer")
    assert outcomes == [(200, "completed", None), failed, failed]
    assert len(upstream.requests) == 1


async def test_plain_http_on_the_tls_port(bundle: str) -> None:
    async def script(peer: Conversation) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with (
        running_upstream(script) as upstream,
        running_proxy(
            0, CEREBRAS_BASE_URL=f"https://localhost:{upstream.port}", SSL_CERT_FILE=bundle
        ) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.json()["code"]) == (502, "tls_error")
    assert line["cause"] == "WRONG_VERSION_NUMBER"


async def test_a_handshake_without_a_reply(bundle: str) -> None:
    async def script(peer: Conversation) -> None:
        await peer.until_disconnected()

    async with (
        running_upstream(script) as upstream,
        running_proxy(
            0,
            CEREBRAS_BASE_URL=f"https://localhost:{upstream.port}",
            SSL_CERT_FILE=bundle,
            UPSTREAM_CONNECT_TIMEOUT="0.5",
        ) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()  # and its socket is not kept
    assert (response.status, response.json()["code"]) == (504, "connect_timeout")
    assert line["cause"] == "tls_timeout"


async def test_a_body_that_ends_with_the_connection_must_end_with_close_notify(
    authority: trustme.CA, bundle: str
) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}")

    leaf = authority.issue_cert("localhost")
    async with exchange_with(script, leaf, bundle) as (_, running):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert not response.complete
    assert line["outcome"] == "upstream_truncated"


@pytest.mark.parametrize("one_record", [True, False])
async def test_bytes_behind_a_response_never_reach_the_next_request(
    one_record: bool, authority: trustme.CA, bundle: str
) -> None:
    """In a record of their own they lie below h11, where only reading on can find them."""

    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            records = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", POISON]
            for record in [b"".join(records)] if one_record else records:
                await peer.send(record)

    leaf = authority.issue_cert("localhost")
    async with exchange_with(script, leaf, bundle) as (upstream, running):
        client = await running.client()
        bodies = [(await client.request(chat())).body for _ in range(10)]
        assert bodies == [b"ok"] * 10
        assert upstream.connections == 10


async def test_the_public_bundle_is_used_where_none_is_named(
    authority: trustme.CA,
) -> None:
    leaf = authority.issue_cert("localhost")
    async with (
        running_upstream(over_tls(responds, leaf)) as upstream,
        running_proxy(0, CEREBRAS_BASE_URL=f"https://localhost:{upstream.port}") as running,
    ):
        response = await (await running.client()).request(chat())
    assert response.json()["code"] == "tls_error"
