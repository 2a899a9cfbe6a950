"""The settings of the proxy, read from environment variables and checked once.

The walk: ``settings`` is the table of variables; each row names a parser of ``values``, and
``keys`` and ``prices`` read the files that two of them name. ``config`` reads the table into
one frozen ``Config``, with all defaults.

The rule: a setting is read here and nowhere else. Messages name the variable and quote no secret.
"""
