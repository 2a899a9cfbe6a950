"""Newer programs than the machine's, for tests that use real ones: Debian's sid has Prometheus 3,
its Alertmanager, and HAProxy 3.2.

    python newer_programs.py DIRECTORY     # make test-newer: as root, with debootstrap; 2 minutes

``DIRECTORY/bin`` has them, to be first in PATH. They run on sid's own libraries, outside of any
container.
"""

import subprocess
import sys
from pathlib import Path

PROGRAMS = {
    "prometheus": "usr/bin/prometheus",
    "promtool": "usr/bin/promtool",
    "amtool": "usr/bin/amtool",
    "haproxy": "usr/sbin/haproxy",
}
PACKAGES = ("haproxy", "prometheus", "prometheus-alertmanager")
SCRIPT = """\
#!/bin/sh
exec {root}/lib64/ld-linux-x86-64.so.2 --library-path {root}/usr/lib/x86_64-linux-gnu {program} "$@"
"""


def main(directory: Path) -> None:
    root, scripts = directory / "root", directory / "bin"
    if not scripts.exists():
        command = ("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "sid")
        subprocess.run((*command, root), check=True, stdout=subprocess.DEVNULL)
        scripts.mkdir()
    for name, path in PROGRAMS.items():
        script = scripts / name
        script.write_text(SCRIPT.format(root=root, program=root / path))
        script.chmod(0o755)
    for name, flag in (("prometheus", "--version"), ("amtool", "--version"), ("haproxy", "-v")):
        done = subprocess.run((scripts / name, flag), capture_output=True, text=True, check=True)
        print((done.stdout + done.stderr).splitlines()[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
