"""The API's side: connections, requests and their responses, retries.

The walk: ``retry`` decides whether a request is sent (``circuit_breaker``) and sent again.
``client`` adds the account's key and takes a connection from the ``pool``, which opens new ones
with ``connect`` (TCP, TLS); ``warmup`` opens some ahead of the requests. ``connection`` sends the
request, reads the head, then gives the body chunk by chunk, each with its time of arrival. When the
response is closed, its connection goes back to the pool.

The rule: closing and giving back await nothing, so that no cancellation leaks a connection or a
slot. Whatever fails leaves this room as an error of the tree in ``errors``.

h11 writes the heads of requests and decides from both heads whether a connection goes on. The
stream below it is an ``httpcore.AsyncNetworkStream``, with httpcore's exceptions. httpcore does not
read responses: ``http1/response_head`` is stricter with heads, and ``http1/body`` takes 2 µs for a
chunk where h11 takes 12. Nor is httpcore's pool used: it walks every connection for every request,
and loses slots when requests are cancelled.
"""
