"""The clients' side: accepting connections, reading requests, writing responses.

The walk: ``listener`` accepts a stream; ``connection`` is a client's connection over it. For each
exchange ``request_reader`` waits for a request and reads its head and body, ``connection`` frames,
holds and writes the response, and ``disconnect`` watches meanwhile whether the client has gone.

The rule: the reader owns the bytes that have arrived, the connection owns those that are to leave,
and errors of sockets become ClientGone, ClientStalled and RequestTimeout here.

h11 decides how a response is framed, whether the connection goes on, and whether the client waits
for ``100 Continue``: from the lines of both heads that concern it (``http1/framing``). It gets
neither the client's own bytes, which the strict guard checks and parses (``http1/request_head``),
nor bodies, which ``http1/body`` reads. The reasons and figures are in those modules.
"""
