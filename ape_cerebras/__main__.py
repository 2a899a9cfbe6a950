"""The command line: ``serve``, ``simulate``, ``selfcheck``, ``check``, ``health``; signals; the
choice of backend.

The one place that touches what a whole process has only one of.
"""

import argparse
import http.client
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import anyio

from .backends import BACKENDS, read_backend, run_on
from .config import Config, ConfigError
from .listener import CannotListen, open_ports_now
from .logs import LineWriter, Logs
from .place import Place
from .rehearsal import Ended
from .selfcheck import checked, selfcheck, table, within
from .server import serve
from .settings import SETTINGS
from .signals import unless_stopped, until_stopped
from .simulation import positive_count
from .simulator import SIMULATION_FLAGS, Simulation, Simulator, Truth
from .trace import trace_context
from .values import Origin
from .version import VERSION
from .workers import serve_with_workers

__all__ = ("main",)

_ABOUT_ALL = ("-h", "--help", "--version")
_HEALTH_TIMEOUT = 5.0  # seconds
_FLAGS = {"host": "HOST", "port": "PORT", "backend": "BACKEND", "workers": "ASYNC_WORKERS"}
_BACKEND_HELP = f"the event loop: {', '.join(BACKENDS)}"
_NOWHERE = "http://127.0.0.1:1"  # until the simulator's port is known
_PER_WORKER = {setting.variable for setting in SETTINGS if setting.per_worker}
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask for health


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ABOUT_ALL):
        arguments = ["serve", *arguments]
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:  # said by the command's own parser, which names the flags there are
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ape-cerebras",
        description="A small, exact proxy in front of the Cerebras inference API.",
        epilog="Without a command it serves. The settings are environment variables: see 'check'.",
    )
    parser.add_argument("--version", action="version", version=f"ape-cerebras {VERSION}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, parser=added)
        added.add_argument("--version", action="version", version=f"ape-cerebras {VERSION}")
        return added

    serving = command("serve", _serve, "serve the proxy")
    demo = "put a simulated Cerebras behind it; needs no key"
    serving.add_argument("--demo", action="store_true", help=demo)
    serving.add_argument("--backend", help=_BACKEND_HELP)
    serving.add_argument("--workers", help="processes that serve the port")
    simulating = command("simulate", _simulate, "serve a stand-in Cerebras API alone")
    _add_simulation(simulating)
    command("check", _check, "read and check the settings, and print them")
    asking = command("health", _health, "ask a running proxy whether it is healthy")
    _add_selfcheck(command("selfcheck", _selfcheck, "find out whether the times told are true"))
    for with_address in (serving, simulating, asking):
        with_address.add_argument("--host", help="host name or IP address")
        with_address.add_argument("--port", help="port")
    return parser


def _add_simulation(simulating: argparse.ArgumentParser) -> None:
    for name, kind, text in SIMULATION_FLAGS:
        simulating.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    simulating.add_argument("--backend", type=_backend, default="asyncio", help=_BACKEND_HELP)
    simulating.add_argument("--certificate", help="a file with it and its chain: serve HTTPS")
    simulating.add_argument("--private-key", help="a file with the certificate's key")


def _backend(text: str) -> str:
    try:
        return read_backend(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _add_selfcheck(checking: argparse.ArgumentParser) -> None:
    checking.add_argument("--backend", type=_backend, default="asyncio", help=_BACKEND_HELP)
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


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """The settings, with the flags that were given in their place."""
    given = {variable: getattr(options, flag, None) for flag, variable in _FLAGS.items()}
    return {**os.environ, **{name: value for name, value in given.items() if value is not None}}


def _to_standard_output() -> Logs:
    def write(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    return Logs("debug", write)


def _check(options: argparse.Namespace) -> int:
    try:
        config = Config.from_environment(_environment(options))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    for name, value in config.visible().items():
        print(f"{name}={value}{_whose(name, config.async_workers)}")
    return 0


def _whose(variable: str, workers: int) -> str:
    return f"  # in each of {workers} workers" if workers > 1 and variable in _PER_WORKER else ""


def _health(options: argparse.Namespace) -> int:
    environment = _environment(options)
    host = environment.get("HOST") or "127.0.0.1"
    connection = http.client.HTTPConnection(
        _ANY_ADDRESS.get(host, host), int(environment.get("PORT") or 8000), timeout=_HEALTH_TIMEOUT
    )
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        print(response.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        print("no answer", file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0 if response.status == 200 else 1


def _serve(options: argparse.Namespace) -> int:
    environment = _environment(options)
    if options.demo:
        environment |= {"CEREBRAS_API_KEY": "demo", "CEREBRAS_BASE_URL": _NOWHERE}
        environment.pop("CEREBRAS_API_KEY_FILE", None)
    try:
        config = Config.from_environment(environment)
    except ConfigError as error:
        for problem in error.problems:
            _to_standard_output().event("error", "Wrong setting", problem=problem)
        return 2
    address = f"{config.host}:{config.port}"
    if config.async_workers == 1:
        work = partial(_serve_proxy, config, options.demo, None)
        return _run_until_stopped(work, address, config.backend)
    try:
        ports = open_ports_now(config.host, config.port, config.scrapers_port)
    except CannotListen as error:
        _report_not_listening(address, error)
        return 1
    return serve_with_workers(config, ports, partial(_serve_proxy, config, options.demo))


def _simulate(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name, _, _ in SIMULATION_FLAGS}
    simulation = Simulation(**{name: value for name, value in given.items() if value is not None})
    host, port = options.host or "127.0.0.1", int(options.port or 8001)
    try:
        context = _server_context(options.certificate, options.private_key)
    except OSError:  # ssl.SSLError is one
        options.parser.error("--certificate and --private-key must be files that fit together")
    work = partial(_serve_simulation, simulation, host, port, context)
    return _run_until_stopped(work, f"{host}:{port}", options.backend)


def _server_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    if certificate is None and private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate or "", private_key)
    return context


def _selfcheck(options: argparse.Namespace) -> int:
    if sys.platform != "linux":
        options.parser.error("it reads the proxy's share of the processor as Linux tells it")
    if options.tls and find_spec("trustme") is None:
        options.parser.error("--tls needs a package: pip install 'ape-cerebras[selfcheck]'")
    check = partial(selfcheck, options.backend, options.streams, tls=options.tls)
    found = None
    try:
        found = run_on(options.backend, unless_stopped, check)
    except* Ended as problems:
        print(f"it needs a process that has ended: {_first_of(problems)}", file=sys.stderr)
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


def _run_until_stopped(
    work: Callable[[anyio.Event], Awaitable[None]], address: str, backend: str
) -> int:
    status = 0
    try:
        run_on(backend, until_stopped, work)
    except* OSError as errors:
        _report_not_listening(address, errors)
        status = 1
    return status


def _report_not_listening(address: str, errors: BaseException) -> None:
    error = _first_of(errors)
    if isinstance(error, CannotListen):
        address = error.filename
    number = getattr(error, "errno", None) or 0
    reason = os.strerror(number) if number > 0 else "no such address"
    _to_standard_output().event("error", "Cannot listen", address=address, reason=reason)


def _first_of(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


async def _serve_proxy(config: Config, demo: bool, place: Place | None, stop: anyio.Event) -> None:
    async with anyio.create_task_group() as tasks:
        if demo:
            port = await tasks.start(Simulator().serve, "127.0.0.1", 0)
            config = replace(config, cerebras_base_url=Origin("http", "127.0.0.1", port))
        async with anyio.create_task_group() as serving:
            proxy = await serving.start(partial(serve, place=place), config)
            await stop.wait()
            proxy.begin_drain()
        tasks.cancel_scope.cancel()


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


if __name__ == "__main__":
    sys.exit(main())
