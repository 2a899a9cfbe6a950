"""A process that has keys leaves no core file; one that embeds a proxy is left as it was."""

import ctypes
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end import running_proxy
from server_process import Served, environment, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux reports how a process ended")

NO_CORE = (0, 0)
PR_GET_DUMPABLE = 3


UNLIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
resource.setrlimit = lambda *_: None
from ape_cerebras.__main__ import main
main(["serve", "--demo"])
"""


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY,
    reason="core files cannot be allowed here",
)
def test_no_core_file_even_with_a_raised_limit(tmp_path: Path) -> None:
    settings = environment(HOST="127.0.0.1", PORT="0")
    command = (sys.executable, "-c", UNLIMITED)
    served = Served(subprocess.Popen(command, env=settings, cwd=tmp_path, stdout=subprocess.PIPE))
    try:
        served.line("address")
        assert resource.prlimit(served.process.pid, resource.RLIMIT_CORE) != NO_CORE
        assert not served.dumps_core(signal.SIGSEGV)
        assert not list(tmp_path.iterdir())
    finally:
        served.end()


def test_workers_leave_no_core_file() -> None:
    with serving("serve", "--demo", "--workers", "2") as served:
        workers = [served.line("process")["process"] for _ in range(2)]
        assert [resource.prlimit(each, resource.RLIMIT_CORE) for each in workers] == [NO_CORE] * 2


# Records whether the process is closed when the first of these is imported.
CLOSED_FIRST = """
import ctypes, sys
closed = {}
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("anyio", "http.client", "ape_cerebras.commands", "ape_cerebras.config"):
            closed.setdefault(name, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0)
sys.meta_path.insert(0, Watch())
from ape_cerebras.__main__ import main
try:
    main()
except SystemExit:
    pass
print(sorted(closed.items()))
"""


@pytest.mark.parametrize("command", ["serve", "check", "health", "simulate", "selfcheck"])
def test_the_process_is_closed_before_anything_is_imported(command: str) -> None:
    arguments = (sys.executable, "-c", CLOSED_FIRST, command, "--port", "none")
    settings = environment(CEREBRAS_API_KEY="csk-0123456789", PORT="none")
    ended = subprocess.run(
        arguments, env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    names = ("anyio", "ape_cerebras.commands", "ape_cerebras.config", "http.client")
    assert ended.stdout.splitlines()[-1] == str([(name, True) for name in names])


@pytest.mark.anyio
async def test_a_host_that_embeds_a_proxy_is_not_hardened() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    hooks = sys.excepthook, sys.unraisablehook
    async with running_proxy(1):
        assert resource.getrlimit(resource.RLIMIT_CORE) == before
        assert ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1
        assert (sys.excepthook, sys.unraisablehook) == hooks
