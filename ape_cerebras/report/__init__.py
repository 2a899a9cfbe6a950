"""A report about a run, made from the proxy's log lines: ``ape-cerebras report``.

The walk: ``command`` opens the inputs and hands their lines on in batches. ``reader`` finds our
lines among them and turns them into columns, ``run`` adds these to sums and sketches of constant
size, and ``page`` makes tables, plots and one HTML file of them.

The rule: a figure says what it is of, from how many requests, and how far it can be trusted; what
the data cannot tell is left out, in words. The extra ``report`` brings the libraries; nothing but
this room imports them.
"""
