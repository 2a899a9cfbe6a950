"""Our proxy without what it does by the clock, for counts of instructions and of calls.

    python steady.py serve

It checks the event loop's lag every few milliseconds. Under valgrind, where a request takes fifty
times as long, these checks would be a good part of what is counted; by real time they are nothing.
So their pauses are set to more than a day. What a request or a token does is all there.

The process is not closed to debuggers, as ``python -m ape_cerebras`` closes it: another
process starts and stops the counting of callgrind.
"""

import sys

from ape_cerebras import proxy
from ape_cerebras.commands import run_command

NEVER = 1e5  # seconds
BY_THE_CLOCK = ("_LAG_SAMPLE", "_LAG_SAMPLE_IDLE", "_CHECK_EVERY")

if __name__ == "__main__":
    for name in BY_THE_CLOCK:
        if not hasattr(proxy, name):
            raise SystemExit(f"ape_cerebras.proxy has no {name} to set: adapt {__file__}")
        setattr(proxy, name, NEVER)
    sys.exit(run_command(sys.argv[1:]))
