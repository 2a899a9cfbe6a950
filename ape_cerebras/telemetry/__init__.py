"""The record of an exchange, and its use by logs, metrics and /health.

The walk: ``proxy`` opens an ``Exchange`` when the first byte of a request arrives;
``trace_context`` gives it its ids; each stage writes what it alone knows. When the exchange has
ended, ``Timings.of`` derives every other value once, and ``metrics``, ``health`` and ``logs`` take
note of both. ``metric_table`` names all metrics, ``LOG_FIELDS`` the keys of a line, ``outcomes``
the ways to end and the causes of failures; the documentation is generated from them.
``multiprocess`` holds what workers share; ``traces`` sends spans to a collector where one is named.

The rule: every exchange is accounted for exactly once, one module writes each field, and nothing is
derived outside of ``timings``, so that a line and a metric cannot disagree. Nothing here reaches
into another room for its state: the proxy hands it over, as ``LiveState``.
"""
