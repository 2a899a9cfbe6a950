"""The commands that need no Cerebras account: ``simulate`` and ``selfcheck``."""

import argparse
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import anyio

from ..config.values import BACKEND_HELP, read_backend, whole
from ..telemetry.logs import LineWriter, Logs
from .options import SIMULATION_FLAGS, Simulation, positive_count
from .quota import LIMIT_FLAGS, AccountLimits
from .selfcheck import compared_enough, is_within, render_table, selfcheck
from .selfcheck_rig import ProcessEnded
from .server import Simulator

__all__ = ("SimulatorCommand", "add_flags", "run_selfcheck")

_HOST, _PORT = "127.0.0.1", "8001"
_Flags = tuple[tuple[str, Callable[[str], Any], str], ...]


def add_flags(command: str, parser: argparse.ArgumentParser) -> None:
    """Add the flags of one of the two commands."""
    help_of_backend = f"{BACKEND_HELP} (default: asyncio)"
    parser.add_argument("--backend", type=_backend, default="asyncio", help=help_of_backend)
    if command == "simulate":
        parser.add_argument("--host", help=f"address to listen on (default: {_HOST})")
        parser.add_argument("--port", help=f"TCP port to listen on (default: {_PORT})")
        for flags, defaults in ((SIMULATION_FLAGS, Simulation()), (LIMIT_FLAGS, AccountLimits())):
            for name, kind, text in flags:
                shown = f"{text} (default: {getattr(defaults, name) or 'none'})"
                parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=shown)
        parser.add_argument("--certificate", help="a certificate chain file: serve HTTPS")
        parser.add_argument("--private-key", help="a file with the certificate's key")
    else:
        parser.add_argument("--tls", action="store_true", help="let the simulator serve HTTPS")
        parser.add_argument(
            "--overload",
            action="store_true",
            help="check also while other processes spin on every core",
        )
        parser.add_argument(
            "--streams", type=positive_count, default=200, help="streams per phase (default: 200)"
        )
        parser.add_argument(
            "--limit",
            type=float,
            default=0.5,
            metavar="MS",
            help="milliseconds (default: 0.5); exit status 1 if the 99th percentile of the error "
            "of upstream_ttft, with kernel timestamps, is above it (with --overload: above what "
            "its line tells of that)",
        )


def _backend(text: str) -> str:
    try:
        return read_backend(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _given(options: argparse.Namespace, flags: _Flags) -> dict[str, Any]:
    given = {name: getattr(options, name) for name, _, _ in flags}
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class SimulatorCommand:
    """A parsed ``simulate`` command."""

    simulation: Simulation
    limits: AccountLimits
    host: str
    port: int
    ssl_context: ssl.SSLContext | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "SimulatorCommand":
        """Raises ValueError if the port is none, OSError if certificate and key are not files that
        fit together."""
        context = None
        if options.certificate is not None or options.private_key is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.certificate or "", options.private_key)
        return cls(
            Simulation(**_given(options, SIMULATION_FLAGS)),
            AccountLimits(**_given(options, LIMIT_FLAGS)),
            options.host or _HOST,
            whole(0, 65535)(options.port or _PORT),
            context,
        )

    async def serve(self, stop: anyio.Event) -> None:
        """Serve until ``stop`` is set; log to standard output. Raises OSError."""
        with LineWriter(sys.stdout.fileno()) as writer:
            logs = Logs("info", writer)
            simulator = Simulator(
                self.simulation,
                limits=self.limits,
                remember=0,
                logs=logs,
                ssl_context=self.ssl_context,
            )
            async with anyio.create_task_group() as tasks:
                port = await tasks.start(simulator.serve, self.host, self.port)
                scheme = "http" if self.ssl_context is None else "https"
                logs.event("info", "Simulating", address=f"{scheme}://{self.host}:{port}")
                await stop.wait()
                tasks.cancel_scope.cancel()


async def run_selfcheck(options: argparse.Namespace) -> int:
    """Compare recorded times with true ones and print the result. Returns the exit status: 0 if
    the errors are within ``--limit``, 1 if not, 2 if the check cannot run here."""
    if sys.platform != "linux":
        print("selfcheck needs Linux, whose /proc has the proxy's CPU time", file=sys.stderr)
        return 2
    if options.tls and find_spec("trustme") is None:
        print("--tls needs a package: pip install 'ape-cerebras[selfcheck]'", file=sys.stderr)
        return 2
    results = None
    try:
        flags = {"tls": options.tls, "overload": options.overload}
        results = await selfcheck(options.backend, options.streams, **flags)
    except* ProcessEnded as problems:
        problem: BaseException = problems
        while isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        print(f"A process of the self-check has ended: {problem}", file=sys.stderr)
    except* TimeoutError:
        print("The self-check took too long: is the machine busy?", file=sys.stderr)
    if results is None:
        return 1
    print(render_table(results))
    passed = is_within(results, options.limit / 1000)
    conclusion = "holds" if passed else "does not hold"
    if not compared_enough(results):
        conclusion = "not checked, because too few streams could be compared"
    print(f"99 % of upstream_ttft with kernel timestamps within {options.limit} ms: {conclusion}")
    return 0 if passed else 1
