"""A report about a run, made from the proxy's log lines: ``ape-cerebras report``.

The walk: ``command`` opens the ``inputs`` and hands their lines on in batches. ``reader`` finds our
lines among them and turns them into ``columns``; ``run`` adds these to sums, ``sketches`` and
series ``over_time``, all of constant size. ``summary`` makes figures of them, ``tables`` and
``plots`` show these, and ``page`` puts all into one HTML file.

The rule: a figure says what it is of, from how many requests, and how far it can be trusted; what
the data do not show is left out, in words. The extra ``report`` brings the libraries; nothing but
this room imports them.
"""
