"""The commands that need no Cerebras: ``simulate``, a stand-in API, and ``selfcheck``."""

import argparse
import sys
from functools import partial
from importlib.util import find_spec

from ..config.values import BACKEND_HELP, read_backend
from ..net.event_loop import run_on
from ..process.process import first_of, run_until_stopped
from ..process.signals import unless_stopped
from .options import positive_count
from .selfcheck import checked, selfcheck, table, within
from .selfcheck_rig import ProcessEnded
from .stand_in import add_flags, stand_in_of

__all__ = ("prepare",)


def prepare(command: str, parser: argparse.ArgumentParser) -> None:
    """Give one of the commands its flags, and what runs it."""
    add, run = _COMMANDS[command]
    add(parser)
    parser.set_defaults(run=run)


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


def _simulate(options: argparse.Namespace) -> int:
    """Serve a stand-in Cerebras API until a signal ends that; the exit status."""
    try:
        stand_in = stand_in_of(options)
    except OSError:  # ssl.SSLError is one
        options.parser.error("--certificate and --private-key must be files that fit together")
    return run_until_stopped(stand_in.serve, stand_in.address, options.backend)


def _selfcheck(options: argparse.Namespace) -> int:
    """Find out whether the times told are true, and print it; the exit status."""
    if sys.platform != "linux":
        options.parser.error("it reads the proxy's share of the processor as Linux tells it")
    if options.tls and find_spec("trustme") is None:
        options.parser.error("--tls needs a package: pip install 'ape-cerebras[selfcheck]'")
    check = partial(selfcheck, options.backend, options.streams, tls=options.tls)
    found = None
    try:
        found = run_on(options.backend, unless_stopped, check)
    except* ProcessEnded as problems:
        print(f"it needs a process that has ended: {first_of(problems)}", file=sys.stderr)
    except* TimeoutError:
        print("it took too long: is the machine busy with something else?", file=sys.stderr)
    if found is None:
        return 1
    print(table(found))
    held = within(found, options.limit / 1000)
    verdict = "holds" if held else "does not hold"
    if not checked(found):
        verdict = "not checked, for too few streams could be compared"
    print(f"99 % of upstream_ttft with the kernel's stamps within {options.limit} ms: {verdict}")
    return 0 if held else 1


_COMMANDS = {
    "simulate": (_add_simulation, _simulate),
    "selfcheck": (_add_selfcheck, _selfcheck),
}
