"""An upstream's script, behind TLS."""

import ssl

import anyio
import trustme
from anyio.streams.tls import TLSStream
from support import Conversation, Script

__all__ = ("over_tls",)


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
