"""The clients' side: accepting connections, reading requests, writing responses.

The walk: ``listener`` accepts a stream; ``connection`` is a client's connection over it. For each
exchange ``request_reader`` waits for a request and reads its head and body, ``connection`` frames,
holds and writes the response, and ``disconnect`` watches meanwhile whether the client has gone.

The rule: the reader owns the bytes that have arrived, the connection owns those that are to leave,
and errors of sockets become ClientGone, ClientStalled and RequestTimeout here.

h11 reads the clients' heads and bodies, frames the responses, knows whether a client waits for
``100 Continue``, and decides whether a connection goes on: one ``h11.Connection`` for each client's
connection. What it does not do: it does not see bytes that the guards reject (``http1``), nor those
of a request before the one in front of it has been served; it does not keep connections of HTTP/1.0
alive; and it sends no errors, which ``proxy`` does.
"""
