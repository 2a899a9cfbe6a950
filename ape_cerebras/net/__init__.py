"""Sockets and time. Knows no HTTP.

A connection is a ``TimestampedStream`` (``stream``): bytes in and out, the time at which the bytes
of the latest read arrived, and the seconds spent waiting for the peer. ``socket_stream`` implements
it on a plain socket: it tries first, and waits for readiness (``readiness``) only when that would
block. What arrives while a reader waits can be handled there and then, without waking it.
``timestamps`` converts the kernel's receive timestamps to the clock of the event loop
(``event_loop``), which all times of this package are readings of.

The rule: an arrival time is right, or there is none and the time of the read stands in for it.
"""
