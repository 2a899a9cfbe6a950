"""A report about a run from the proxy's log lines, ``ape-cerebras report``; and what proxies do
now, from their metrics, ``ape-cerebras top``.

The walk: ``command`` opens the ``inputs`` and hands their lines on in batches. ``reader`` finds our
lines among them and turns them into ``columns``; ``run`` adds these to sums, ``sketches`` and
series ``over_time``, all of constant size. ``summary`` makes figures of them, ``tables`` and
``plots`` show these, and ``page`` puts all into one HTML file.

``top`` is the other command: ``scrape`` reads and differences metrics, ``screen`` shows them.

The rule: a figure says what it is of, from how many requests, and how far it can be trusted; what
the data do not show is left out, in words. The extras ``report`` and ``top`` bring the libraries;
nothing but this room imports them.
"""
