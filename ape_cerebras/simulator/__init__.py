"""A simulator of the Cerebras API, and the self-check that measures against it.

The walk: ``server`` accepts a request and checks its key. ``request`` reads it, ``quota`` admits
it, ``completion`` generates the response (``replies`` for errors and models), and ``playback``
sends it at the times in ``options``, and records the ground truth. ``selfcheck`` runs proxy and
simulator (``selfcheck_rig``) and compares the proxy's records with that. ``command`` is both on the
command line.

The rule: format and times are those recorded of the real API; a guess is called one.
"""
