"""The way of a plain request through the package: few modules, few changes between them."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "contrib" / "develop" / "trace_request.py"
MODULES = 30
CHANGES = 137  # half of those in the package's first version


def test_a_plain_request_changes_modules_rarely() -> None:
    printed = subprocess.run(
        (sys.executable, str(SCRIPT)), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    counts = re.search(r"in (\d+) modules, (\d+) changes of module\n$", printed)
    assert counts
    assert int(counts[1]) <= MODULES
    assert int(counts[2]) <= CHANGES
