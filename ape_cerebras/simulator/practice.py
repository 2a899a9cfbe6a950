"""The commands that need no Cerebras: ``simulate``, a stand-in API, and ``selfcheck``."""

import argparse
import sys
from importlib.util import find_spec

from ..config.values import BACKEND_HELP, read_backend
from .options import positive_count
from .selfcheck import checked, selfcheck, table, within
from .selfcheck_rig import ProcessEnded
from .stand_in import add_flags

__all__ = ("check_times", "prepare")


def prepare(command: str, parser: argparse.ArgumentParser) -> None:
    """Add the flags of one of the commands."""
    _COMMANDS[command](parser)


def _add_simulation(simulating: argparse.ArgumentParser) -> None:
    add_flags(simulating)
    simulating.add_argument("--backend", type=_backend, default="asyncio", help=BACKEND_HELP)


def _add_selfcheck(checking: argparse.ArgumentParser) -> None:
    checking.add_argument("--backend", type=_backend, default="asyncio", help=BACKEND_HELP)
    checking.add_argument("--tls", action="store_true", help="a simulated API that speaks TLS")
    checking.add_argument("--streams", type=positive_count, default=200, help="streams a phase")
    checking.add_argument(
        "--limit",
        type=float,
        default=0.5,
        metavar="MS",
        help="milliseconds; exit status 1 where the 99th percentile of the error of upstream_ttft, "
        "with the kernel's stamps, is above it",
    )


def _backend(text: str) -> str:
    try:
        return read_backend(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


async def check_times(options: argparse.Namespace) -> int:
    """Compare the recorded times with the true ones, and print the result; the exit status."""
    if sys.platform != "linux":
        print("selfcheck needs Linux, whose /proc has the proxy's CPU time", file=sys.stderr)
        return 2
    if options.tls and find_spec("trustme") is None:
        print("--tls needs a package: pip install 'ape-cerebras[selfcheck]'", file=sys.stderr)
        return 2
    found = None
    try:
        found = await selfcheck(options.backend, options.streams, tls=options.tls)
    except* ProcessEnded as problems:
        problem: BaseException = problems
        while isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        print(f"A process of the self-check has ended: {problem}", file=sys.stderr)
    except* TimeoutError:
        print("The self-check took too long: is the machine busy?", file=sys.stderr)
    if found is None:
        return 1
    print(table(found))
    held = within(found, options.limit / 1000)
    verdict = "holds" if held else "does not hold"
    if not checked(found):
        verdict = "not checked, for too few streams could be compared"
    print(f"99 % of upstream_ttft with the kernel's stamps within {options.limit} ms: {verdict}")
    return 0 if held else 1


_COMMANDS = {"simulate": _add_simulation, "selfcheck": _add_selfcheck}
