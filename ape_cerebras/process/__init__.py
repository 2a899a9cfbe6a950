"""One or several operating-system processes that serve.

The command line hardens its process first (``hardening``). With one process it then serves on an
event loop that ends with a signal (``signals``). With several, a parent opens the sockets, forks
the workers, restarts those that die and drains them (``workers``); each worker runs like that one
process, until its parent signals it to end.

The rule: only the command line comes here. A host that embeds a proxy keeps its own signals, hooks
and garbage collector.
"""
