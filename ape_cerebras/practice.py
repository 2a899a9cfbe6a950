"""The commands that need no Cerebras: ``simulate``, a stand-in API, and ``selfcheck``."""

import argparse
import ssl
import sys
from functools import partial
from importlib.util import find_spec

import anyio

from .backends import BACKENDS, read_backend, run_on
from .logs import LineWriter, Logs
from .process import first_of, port_of, run_until_stopped
from .rehearsal import Ended
from .selfcheck import checked, selfcheck, table, within
from .signals import unless_stopped
from .simulation import positive_count
from .simulator import SIMULATION_FLAGS, Simulation, Simulator, Truth
from .trace import trace_context

__all__ = ("BACKEND_HELP", "add_selfcheck", "add_simulation", "run_selfcheck", "simulate")

BACKEND_HELP = f"the event loop: {', '.join(BACKENDS)}"


def add_simulation(simulating: argparse.ArgumentParser) -> None:
    """The flags of ``simulate``."""
    for name, kind, text in SIMULATION_FLAGS:
        simulating.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    simulating.add_argument("--backend", type=_backend, default="asyncio", help=BACKEND_HELP)
    simulating.add_argument("--certificate", help="a file with it and its chain: serve HTTPS")
    simulating.add_argument("--private-key", help="a file with the certificate's key")


def add_selfcheck(checking: argparse.ArgumentParser) -> None:
    """The flags of ``selfcheck``."""
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


def simulate(options: argparse.Namespace) -> int:
    """Serve a stand-in Cerebras API until a signal ends that; the exit status."""
    given = {name: getattr(options, name) for name, _, _ in SIMULATION_FLAGS}
    simulation = Simulation(**{name: value for name, value in given.items() if value is not None})
    host, port = options.host or "127.0.0.1", port_of(options, options.port or "8001")
    try:
        context = _server_context(options.certificate, options.private_key)
    except OSError:  # ssl.SSLError is one
        options.parser.error("--certificate and --private-key must be files that fit together")
    work = partial(_serve_simulation, simulation, host, port, context)
    return run_until_stopped(work, f"{host}:{port}", options.backend)


def _server_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    if certificate is None and private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate or "", private_key)
    return context


def run_selfcheck(options: argparse.Namespace) -> int:
    """Find out whether the times told are true, and print it; the exit status."""
    if sys.platform != "linux":
        options.parser.error("it reads the proxy's share of the processor as Linux tells it")
    if options.tls and find_spec("trustme") is None:
        options.parser.error("--tls needs a package: pip install 'ape-cerebras[selfcheck]'")
    check = partial(selfcheck, options.backend, options.streams, tls=options.tls)
    found = None
    try:
        found = run_on(options.backend, unless_stopped, check)
    except* Ended as problems:
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


async def _serve_simulation(
    simulation: Simulation,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    stop: anyio.Event,
) -> None:
    with LineWriter(sys.stdout.fileno()) as writer:
        logs = Logs("info", writer)
        simulator = Simulator(
            simulation, witness=partial(_testify, logs), ssl_context=ssl_context, remember=0
        )
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(simulator.serve, host, port)
            scheme = "http" if ssl_context is None else "https"
            logs.event("info", "Simulating", address=f"{scheme}://{host}:{port}")
            await stop.wait()
            tasks.cancel_scope.cancel()


def _testify(logs: Logs, truth: Truth) -> None:
    request = truth.request
    trace = trace_context(request.header(b"x-trace-id"), request.header(b"traceparent"))
    logs.event("info", "Request answered", trace_id=trace.trace_id, **truth.told())
