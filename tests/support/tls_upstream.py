"""An upstream's script, behind TLS, and the certificates it shows."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import trustme
from anyio.streams.tls import TLSStream
from end_to_end import Conversation, Running, Script, running_proxy, running_upstream

__all__ = ("certificate", "over_tls", "proxy_before")


def certificate(kind: str, authority: trustme.CA) -> trustme.LeafCert:
    """One for that name, or one with that fault."""
    now, day = datetime.now(UTC), timedelta(days=1)
    if kind == "expired":
        return authority.issue_cert("localhost", not_after=now - day)
    if kind == "not yet valid":
        return authority.issue_cert("localhost", not_before=now + day)
    if kind == "self-signed":
        return trustme.CA().issue_cert("localhost")
    return authority.issue_cert(kind)


def over_tls(script: Script, leaf: trustme.LeafCert) -> Script:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)

    async def converse(peer: Conversation) -> None:
        try:
            secured = await TLSStream.wrap(
                peer.stream, server_side=True, ssl_context=context, standard_compatible=False
            )
        except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):
            return
        await script(Conversation(secured, peer.upstream))  # type: ignore[arg-type]

    return converse


@asynccontextmanager
async def proxy_before(
    script: Script, leaf: trustme.LeafCert | None, bundle: str, **settings: str
) -> AsyncIterator[Running]:
    """A proxy before an upstream that follows a script: behind TLS where there is a certificate."""
    scheme = "http" if leaf is None else "https"
    async with (
        running_upstream(script if leaf is None else over_tls(script, leaf)) as upstream,
        running_proxy(
            0,
            CEREBRAS_BASE_URL=f"{scheme}://localhost:{upstream.port}",
            SSL_CERT_FILE=bundle,
            **settings,
        ) as running,
    ):
        yield running
