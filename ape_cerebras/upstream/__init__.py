"""The API's side: connections, requests and their responses, retries.

The walk: ``retry`` decides whether a request is sent (``circuit_breaker``) and sent again.
``client`` adds the account's key and takes a connection from the ``pool``, which opens new ones
with ``connect`` (TCP, TLS); ``warmup`` opens some ahead of the requests. ``connection`` lets
httpcore send the request and read the head, then gives the body chunk by chunk, each with its time
of arrival. When the response is closed, its connection goes back to the pool.

The rule: closing and giving back await nothing, so that no cancellation leaks a connection or a
slot. Whatever fails leaves this room as an error of the tree in ``errors``.

httpcore's ``AsyncHTTP11Connection`` sends every request and parses every head, over a stream of
ours; its public API does, and so does that of httpcore2, its successor (``make httpcore2``). The
body is read from the response's ``network_stream``: httpcore's own iterator takes 8 µs for a chunk
where ``http1/body`` takes 1 to 2, and accepts ambiguous chunks. Nor is httpcore's pool used: it
walks every connection for every request, and loses slots when requests are cancelled.
"""
