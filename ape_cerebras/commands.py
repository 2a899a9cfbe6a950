"""The commands of the command line: those of ``_COMMANDS``.

What serves is imported only when it is needed, and so are the simulator, the self-check, the report
and the parent of workers: a health check runs every few seconds.
"""

import argparse
import http.client
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

import anyio
import orjson

from .config.config import Config, ConfigError, doubts, read_address
from .config.keys import UpstreamKey
from .config.settings import SETTINGS
from .config.values import Origin
from .downstream.listener import CannotListen, Ports, addresses_of, open_ports
from .errors import KeyRefused, ProxyError
from .net.event_loop import import_for, run_on
from .process.hardening import OutputWriter, tune_garbage_collector
from .process.signals import (
    Systemd,
    at_each_sighup,
    hold_sighup,
    report_not_listening,
    report_wrong_settings,
    run_until_stopped,
    unless_stopped,
)
from .telemetry.logs import Logs
from .telemetry.multiprocess import WorkerSlot
from .version import VERSION

__all__ = ("run_command",)

_TOP_LEVEL_FLAGS = ("-h", "--help", "--version")
_HEALTH_TIMEOUT = 5.0  # seconds
_OUTPUT_TIMEOUT = 1.0  # seconds
_FLAGS = {"host": "HOST", "port": "PORT", "backend": "BACKEND", "workers": "ASYNC_WORKERS"}
_NO_KEY = {"cerebras_api_key": UpstreamKey("")}
_NOWHERE = "http://127.0.0.1:1"  # until the simulator's port is known
_PER_WORKER = {setting.variable for setting in SETTINGS if setting.per_worker}
_SHARED = {setting.variable for setting in SETTINGS if setting.shared}
_DEFAULTS = Config(cerebras_api_key="")
_DEMO = "use a simulator in place of the API; needs no key"
_DOCTOR = "examine the way to the API instead, step by step; sends one request, GET /v1/models"
_SHOWN_VALUE = 40  # characters, in the plain table of settings
_DOCS = Path(__file__).parents[1] / "contrib" / "docs" / "README.md"  # in a source tree
_MODEL = "gpt-oss-120b"  # of the public API, and of the simulator
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - of all addresses
_OF_REPORT = ("numpy", "boost_histogram", "matplotlib")
_EXTRAS = {
    "report": ("make a report of a run from its log lines", ".report.command", _OF_REPORT),
    "top": ("watch running proxies in the terminal", ".report.top", ("rich",)),
}
"""Commands with an extra of their name: meaning, module, and the libraries that it brings."""


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit status. Raises SystemExit where the arguments are wrong."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _TOP_LEVEL_FLAGS):
        arguments = ["serve", *arguments]
    options, unknown = _parser(arguments[0]).parse_known_args(arguments)
    if unknown:  # the command's own parser names the flags that it knows
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return int(options.run(options))


def _parser(wanted: str) -> argparse.ArgumentParser:
    """The parser of all commands; of the simulator's, the flags of ``wanted`` only."""
    parser = argparse.ArgumentParser(
        prog="ape-cerebras",
        description="A small, exact proxy in front of the Cerebras inference API.",
        epilog="Without a command it serves. Settings are environment variables: see 'settings'.",
    )
    parser.add_argument("--version", action="version", version=f"ape-cerebras {VERSION}")
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=_COMMANDS[name], parser=added)
        added.add_argument("--version", action="version", version=f"ape-cerebras {VERSION}")
        return added

    serving = command("serve", "serve the proxy")
    serving.add_argument("--demo", action="store_true", help=_DEMO)
    for flag, variable in _FLAGS.items():
        serving.add_argument(f"--{flag}", help=_flag_help(variable))
    simulating = command("simulate", "serve the simulator of the Cerebras API alone")
    examining = command("check", "read and check the settings, and print them")
    examining.add_argument("--upstream", action="store_true", help=_DOCTOR)
    listing = command("settings", "print all settings: default, value, where from, meaning")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    form.add_argument("--json", action="store_true", help="as JSON")
    asking = command("health", "ask a running proxy whether it is healthy")
    asking.add_argument("--host", help="address of the proxy (default: HOST, else 127.0.0.1)")
    asking.add_argument("--port", help="its TCP port (default: PORT, else 8000)")
    of_extras = {name: command(name, text) for name, (text, *_) in _EXTRAS.items()}
    if wanted in of_extras:
        _add_flags_of_extra(wanted, of_extras[wanted])
    checking = command("selfcheck", "check that the recorded times are true")
    with_simulator = {"simulate": simulating, "selfcheck": checking}
    if wanted in with_simulator:
        from .simulator.command import add_flags

        add_flags(wanted, with_simulator[wanted])
    return parser


def _add_flags_of_extra(command: str, parser: argparse.ArgumentParser) -> None:
    _, module, libraries = _EXTRAS[command]
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)}: pip install 'ape-cerebras[{command}]'")
    import_module(module, __package__).add_flags(parser)


def _flag_help(variable: str) -> str:
    meaning = next(each.meaning for each in SETTINGS if each.variable == variable)
    return f"{meaning} (default: {variable}, else {_DEFAULTS.visible()[variable]})"


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """The settings, those given as flags among them."""
    given = {variable: getattr(options, flag, None) for flag, variable in _FLAGS.items()}
    return {**os.environ, **{name: value for name, value in given.items() if value is not None}}


def _check(options: argparse.Namespace) -> int:
    try:
        config = Config.from_environment(_environment(options))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    if not options.upstream:
        for name, value in config.visible().items():
            print(f"{name}={value}{_scope_note(name, config)}")
    for level, message, problem in doubts(config, os.environ):
        print(f"{level}: {message}: {problem}", file=sys.stderr)
    if options.upstream:
        status = run_on(config.backend, unless_stopped, partial(_examine, config))
        return 1 if status is None else status
    return 0


async def _examine(config: Config) -> int:
    """Print what the doctor finds, line by line; 1 where something fails."""
    from .upstream.doctor import examine

    status = 0
    async for subject, ok, text in examine(config, os.environ):
        print(f"{subject:<14} {'ok ' if ok else 'NOT'} {text}", flush=True)
        status |= not ok
    return status


def _settings(options: argparse.Namespace) -> int:
    environment = _environment(options)
    try:  # the key is required for other commands
        config = Config.from_environment(environment, **_NO_KEY)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    rows = list(_rows(config, environment))
    if options.json:
        print(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return 0
    texts = [[name.upper() for name in rows[0]], *([*row.values()] for row in rows)]
    if options.markdown:
        texts.insert(1, ["---"] * len(rows[0]))
        for cells in texts:
            print("|", " | ".join(cell.replace("|", "\\|") for cell in cells), "|")
        return 0
    cut = [[_cut(cell) for cell in cells[:-1]] for cells in texts]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    for cells, (*_, meaning) in zip(cut, texts, strict=True):
        print(*map(str.ljust, cells, widths), meaning, sep="  ")
    return 0


def _rows(config: Config, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The table of all settings: name, default, value, where the value is from, and meaning."""
    defaults, values = _DEFAULTS.visible(), config.visible()
    for variable, _, meaning, is_secret, is_required, *_ in SETTINGS:
        names = (variable, f"{variable}_FILE") if is_secret else (variable,)
        source = next((name for name in names if environment.get(name, "").strip()), "default")
        yield {
            "name": variable,
            "default": "(required)" if is_required else defaults[variable],
            "value": "(set)" if is_secret and source != "default" else values[variable],
            "from": source,
            "meaning": meaning,
        }


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_VALUE else f"{text[: _SHOWN_VALUE - 3]}..."


def _scope_note(variable: str, config: Config) -> str:
    if variable in _SHARED and config.limits_store is not None:
        return "  # shared by all proxies with the same LIMITS_STORE"
    several = config.async_workers > 1 and variable in _PER_WORKER
    return f"  # in each of {config.async_workers} workers" if several else ""


def _health(options: argparse.Namespace) -> int:
    try:
        host, port = read_address(_environment(options))
    except ConfigError as error:
        options.parser.error(str(error))
    host = _LOOPBACK.get(host, host)
    connection = http.client.HTTPConnection(host, port, timeout=_HEALTH_TIMEOUT)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        print(response.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"no response from {host}:{port}: {_why(error)}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0 if response.status == 200 else 1


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"none within {_HEALTH_TIMEOUT:g} seconds"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "there is no such host"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "what responds there does not speak HTTP"


def _serve(options: argparse.Namespace) -> int:
    environment = _environment(options)
    if options.demo:
        environment |= {"CEREBRAS_API_KEY": "demo", "CEREBRAS_BASE_URL": _NOWHERE}
        environment.pop("CEREBRAS_API_KEY_FILE", None)
    try:
        config = Config.from_environment(environment)
    except ConfigError as error:
        report_wrong_settings(error)
        return 2
    config = replace(config, run_id=config.run_id or token_hex(8))
    logs = Logs(config.log_level, OutputWriter(_OUTPUT_TIMEOUT), run_id=config.run_id)
    for level, message, problem in doubts(config, os.environ):
        logs.event(level, message, problem=problem)
    import_for(config.backend, "ape_cerebras.server")
    tune_garbage_collector()
    reloads = config.ape_api_keys_file is not None
    if reloads:
        hold_sighup()
    if config.async_workers == 1:
        work = partial(_serve_proxy, options.demo, config, None, None)
        return run_until_stopped(work, config.backend, sighup_held=reloads)
    try:
        ports = open_ports(config.host, config.port, config.scrapers_port)
    except CannotListen as error:
        report_not_listening(error)
        return 1
    _greet(config, addresses_of(ports.clients))
    from .process.workers import Parent

    return Parent(config, ports, partial(_serve_proxy, options.demo)).serve()


async def _serve_proxy(
    demo: bool,
    config: Config,
    slot: WorkerSlot | None,
    ports: Ports | None,
    stop: anyio.Event,
) -> None:
    from .server import serve

    async with anyio.create_task_group() as tasks:
        if demo:
            from .simulator.server import Simulator

            port = await tasks.start(Simulator().serve, "127.0.0.1", 0)
            simulator = Origin("http", "127.0.0.1", port)
            config = replace(config, cerebras_base_url=simulator, upstream_proxy=None)
        async with anyio.create_task_group() as serving:
            with anyio.CancelScope() as starting:
                tasks.start_soon(_cancel_once, stop, starting)
                proxy = await serving.start(partial(serve, slot=slot, ports=ports), config)
            if starting.cancelled_caught:  # a lookup of HOST may take long
                tasks.cancel_scope.cancel()  # the simulator serves on otherwise
                return
            if slot is None:
                _greet(config, proxy.addresses)
            if not demo and (slot is None or slot.number == 1):
                tasks.start_soon(_try_account, config, proxy.logs)
            if config.ape_api_keys_file is not None:
                tasks.start_soon(at_each_sighup, proxy.reread_keys)
            if slot is None:  # else the parent of the workers reports for them
                tasks.start_soon(Systemd().report, stop)
            await stop.wait()
            proxy.begin_drain()
        tasks.cancel_scope.cancel()


def _greet(config: Config, addresses: Sequence[tuple[str, int]]) -> None:
    """Three lines for a person at a terminal, on standard error: the log has standard output."""
    if not sys.stderr.isatty():
        return
    host, port = addresses[0]
    host = _LOOPBACK.get(host, host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
    needs_key = config.ape_api_key or config.ape_api_keys_file is not None
    key = " -H 'Authorization: Bearer <the key of a client>'" if needs_key else ""
    curl = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key}"
    docs = _DOCS if _DOCS.is_file() else "ape-cerebras --help, ape-cerebras settings"
    print(f"Serving: {url}", file=sys.stderr)
    print(f"Try it:  {curl} -d {shlex.quote(orjson.dumps(body).decode())}", file=sys.stderr)
    print(f"Docs:    {docs}", file=sys.stderr, flush=True)


async def _try_account(config: Config, logs: Logs) -> None:
    """Log before the first request that upstream refuses the key, or does not list the default
    model. Why no list comes at all, the warm connections' line reports, or the first request's."""
    from .chat.models import closest
    from .upstream.doctor import fetch_models

    try:
        listed = await fetch_models(config)
    except KeyRefused:
        logs.event("error", "Upstream refuses the account's key", upstream_status=401)
    except ProxyError:
        pass
    else:
        model = config.default_model
        if listed is not None and model not in listed:
            fields = {"model": model, "closest_model": closest(model, listed)}
            logs.event("warning", "Upstream does not list the default model", **fields)


async def _cancel_once(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


def _simulate(options: argparse.Namespace) -> int:
    from .simulator.command import SimulatorCommand

    try:
        simulator = SimulatorCommand.of(options)
    except ValueError as problem:
        options.parser.error(f"PORT {problem}")
    except OSError:  # ssl.SSLError is one
        options.parser.error("--certificate and --private-key must be files that fit together")
    return run_until_stopped(simulator.serve, options.backend)


def _selfcheck(options: argparse.Namespace) -> int:
    from .simulator.command import run_selfcheck

    status = run_on(options.backend, unless_stopped, partial(run_selfcheck, options))
    return 1 if status is None else status


def _report(options: argparse.Namespace) -> int:
    from .report.command import run_report

    return run_report(options)


def _top(options: argparse.Namespace) -> int:
    from .report.top import run_top

    return run_top(options)


_COMMANDS = {
    "serve": _serve,
    "check": _check,
    "settings": _settings,
    "health": _health,
    "simulate": _simulate,
    "selfcheck": _selfcheck,
    "report": _report,
    "top": _top,
}
