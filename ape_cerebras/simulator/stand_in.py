"""The stand-in Cerebras API as a command: its flags, and a log line for each request answered."""

import argparse
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from ..telemetry.logs import LineWriter, Logs
from ..telemetry.trace_context import trace_context
from .server import LIMIT_FLAGS, SIMULATION_FLAGS, AccountLimits, GroundTruth, Simulation, Simulator

__all__ = ("StandIn", "add_flags", "stand_in_of")

_Flags = Sequence[tuple[str, Callable[[str], Any], str]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How it is to answer, whom it is to limit, its certificate."""
    for name, kind, text in (*SIMULATION_FLAGS, *LIMIT_FLAGS):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--certificate", help="a file with it and its chain: serve HTTPS")
    parser.add_argument("--private-key", help="a file with the certificate's key")


def _given(options: argparse.Namespace, flags: _Flags) -> dict[str, Any]:
    given = {name: getattr(options, name) for name, _, _ in flags}
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class StandIn:
    """What the flags ask for."""

    simulation: Simulation
    limits: AccountLimits
    host: str
    port: int
    ssl_context: ssl.SSLContext | None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    async def serve(self, stop: anyio.Event) -> None:
        """Serve until ``stop``; log lines go to standard output. Raises OSError."""
        with LineWriter(sys.stdout.fileno()) as writer:
            logs = Logs("info", writer)
            simulator = Simulator(
                self.simulation,
                limits=self.limits,
                witness=partial(_testify, logs),
                ssl_context=self.ssl_context,
                remember=0,
            )
            async with anyio.create_task_group() as tasks:
                port = await tasks.start(simulator.serve, self.host, self.port)
                scheme = "http" if self.ssl_context is None else "https"
                logs.event("info", "Simulating", address=f"{scheme}://{self.host}:{port}")
                await stop.wait()
                tasks.cancel_scope.cancel()


def stand_in_of(options: argparse.Namespace, port: int) -> StandIn:
    """Raises OSError where certificate and key are not files that fit together."""
    return StandIn(
        Simulation(**_given(options, SIMULATION_FLAGS)),
        AccountLimits(**_given(options, LIMIT_FLAGS)),
        options.host or "127.0.0.1",
        port,
        _server_context(options.certificate, options.private_key),
    )


def _server_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    if certificate is None and private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate or "", private_key)
    return context


def _testify(logs: Logs, truth: GroundTruth) -> None:
    request = truth.request
    trace = trace_context(request.header(b"x-trace-id"), request.header(b"traceparent"))
    logs.event("info", "Request answered", trace_id=trace.trace_id, **truth.log_fields())
