"""Sockets and time. Knows no HTTP.

A connection is a ``TimestampedStream`` (``stream``): bytes in and out, the time at which the bytes
of the latest read arrived, and the seconds spent waiting for the peer. ``socket_stream`` implements
it on a plain socket, which it tries first and waits for (``readiness``) only when the kernel has
said "would block". ``timestamps`` says when bytes arrived: the kernel's receive timestamps,
converted to the clock of the event loop (``event_loop``), on which all times of this package are.

The rule: an arrival time is right, or there is none and the time of the read stands in for it.
"""
