"""The endpoints of the API: chat completions and models.

The walk: ``completions`` handles a chat request. ``request`` reads it, edits and compresses its
body; ``limits`` admits it; ``upstream`` sends it. Then, for each chunk of the response, the relay
in ``completions`` sends it to the client and gives it to ``meter``, which finds its events with
``sse``. Where a client wants one reply and TTFT_MODE requests a stream upstream, ``assembly``
reassembles that reply. ``models`` serves the list of models and keeps prices.

The rule: timestamp, send, then look. Nothing is parsed of a response before the client has it, and
nothing of a request or a response changes but the values and header fields that are named here.
"""
