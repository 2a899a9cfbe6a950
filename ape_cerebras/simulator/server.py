"""The simulator's server: accepts, routes, checks keys, and times every request.

It responds as the real API does (``replies``, ``completion``), at the times in ``Simulation``
(``playback``). A request overrides options of the simulator with a header, such as
``x-simulate: ttft=0.5, tokens=100, fault=cut, at=3``.
"""

import re
import ssl
import sys
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

import anyio
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream, TaskGroup, TaskStatus
from anyio.streams.tls import TLSStream

from ..config.config import Config
from ..downstream.connection import Downstream
from ..downstream.listener import Acceptor, open_listeners
from ..errors import ProxyError, RequestRefused
from ..http1.messages import Request
from ..net.socket_stream import SocketStream
from ..net.stream import READ_BYTES, TimestampedStream, WrappedStream, timestamped
from ..telemetry.exchange import Exchange
from ..telemetry.logs import Logs
from ..telemetry.trace_context import trace_context
from .options import Simulation
from .playback import GroundTruth, Playback
from .quota import Account, AccountLimits
from .replies import ERRORS, Rejected, model_list, one_model, wrong_format
from .request import MAX_BODY_BYTES

__all__ = ("Simulator",)

_CHAT = ("POST", "/v1/chat/completions")
_WARMING = ("GET", "/v1/tcp_warming")
_MODELS = re.compile(r"GET (?P<public>/public)?/v1/models(?:/(?P<model>.+))?")


class _TLSServerStream(WrappedStream):
    """TLS over a timestamped stream, with the timestamps of that stream."""

    def __init__(self, tls: ByteStream, below: TimestampedStream) -> None:
        super().__init__(tls)
        self._below = below

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        data = await super().receive(max_bytes)
        self.arrived_at = self._below.arrived_at
        return data

    async def send(self, item: bytes) -> None:
        await super().send(item)
        self.left_at, self.written_at = self._below.left_at, self._below.written_at


class Simulator:
    """Serves connections as the API would; all clients share one account.

    ``remember`` is how many requests are kept in ``truth``. With ``logs``, each is logged when it
    has ended. With ``ssl_context``, the simulator serves HTTPS.
    """

    def __init__(
        self,
        options: Simulation | None = None,
        *,
        limits: AccountLimits | None = None,
        remember: int = 1000,
        logs: Logs | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.options = options or Simulation()
        self._account = Account(limits or AccountLimits())
        self._logs = logs
        self._ssl_context = ssl_context
        self.connections = 0
        """Accepted so far."""
        self.requests = 0
        """Read so far."""
        self.in_flight = 0
        """Requests that are being responded to."""
        self.cancelled = 0
        """Requests whose client disconnected before the end of the response."""
        self.truth: deque[GroundTruth] = deque(maxlen=remember)
        self._config = Config(cerebras_api_key="", max_body_bytes=MAX_BODY_BYTES)
        self._changed = anyio.Event()

    async def until(self, condition: Callable[["Simulator"], bool]) -> None:
        """Wait until ``condition`` holds at the begin or the end of a request. For tests."""
        while not condition(self):
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def serve(
        self, host: str, port: int, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, and serve until cancelled; reports the port. Raises OSError."""
        with ExitStack() as stack:
            logs = self._logs or Logs("error", sys.stderr.buffer.write)
            listeners = await anyio.to_thread.run_sync(open_listeners, host, port)
            for listener in listeners:
                stack.callback(listener.close)
            async with anyio.create_task_group() as tasks:
                for listener in listeners:
                    tasks.start_soon(self._accept, Acceptor(listener, logs), tasks)
                task_status.started(listeners[0].getsockname()[1])

    async def _accept(self, acceptor: Acceptor, tasks: TaskGroup) -> None:
        while True:
            tasks.start_soon(self._handle_socket, await acceptor.accept())

    async def _handle_socket(self, stream: SocketStream) -> None:
        if self._ssl_context is None:
            await self.handle(stream)
            return
        try:
            tls = await TLSStream.wrap(
                stream, server_side=True, ssl_context=self._ssl_context, standard_compatible=False
            )
        except (BrokenResourceError, EndOfStream, ssl.SSLError):
            stream.close()
        else:
            await self.handle(_TLSServerStream(tls, stream))

    async def handle(self, stream: ByteStream) -> None:
        """Serve one connection until it ends; raises nothing but cancellation."""
        downstream = Downstream(timestamped(stream), self._config)
        self.connections += 1
        try:
            while (started_at := await downstream.wait_for_request()) is not None:
                await self._serve_request(Exchange(started_at=started_at), downstream)
                if not downstream.reusable:
                    break
            await downstream.aclose()
        except ProxyError:  # the client disconnected
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await downstream.close_at_once()

    async def _serve_request(self, exchange: Exchange, downstream: Downstream) -> None:
        try:
            request = exchange.request = await downstream.read_head()
            body = await downstream.read_body()
        except RequestRefused as refusal:
            downstream.close_after_response()
            reply = wrong_format(refusal.message)
            await downstream.respond(exchange, refusal.status, reply.headers, reply.body)
            return
        arrived_at = max(exchange.started_at, downstream.stream.arrived_at)
        truth = GroundTruth(request=request, body=body, request_arrived_at=arrived_at)
        self.truth.append(truth)
        self.requests += 1
        self.in_flight += 1
        self._notify()
        playback = Playback(downstream, exchange, self._account, truth)
        try:
            with downstream.exchange_scope():
                async with downstream.watch_disconnect():
                    try:
                        await self._respond(playback, request)
                    except Rejected as rejected:
                        await playback.send_error(rejected.reply)
            if playback.cut:
                await downstream.abort()
        except ProxyError:  # only a client disconnect is possible
            truth.client_disconnected = True
            self.cancelled += 1
        finally:
            self.in_flight -= 1
            if self._logs is not None:
                ids = request.header(b"x-trace-id"), request.header(b"traceparent")
                trace_id = trace_context(*ids).trace_id
                fields = truth.log_fields()
                self._logs.event("info", "Request served", trace_id=trace_id, **fields)
            self._notify()

    async def _respond(self, playback: Playback, request: Request) -> None:
        """Raises Rejected."""
        route = request.method, request.path.decode()
        if route == _CHAT:
            options = self._authorize(request)
            await playback.send_completion(options, self._config.default_model)
        elif route == _WARMING:  # without a key and faults: an SDK would wait and retry
            await playback.send_now(Simulation(), b"{}")
        elif (models := _MODELS.fullmatch(" ".join(route))) is not None:
            public, model = bool(models["public"]), models["model"]
            options = self._authorize(request, needs_key=not public)
            body = model_list(public=public) if model is None else one_model(model, public=public)
            await playback.send_now(options, body)
        else:
            raise Rejected(ERRORS["route_not_found"])

    def _authorize(self, request: Request, *, needs_key: bool = True) -> Simulation:
        """Check the key and return the options that hold for the request. Raises Rejected."""
        if needs_key:
            key = request.header(b"authorization")
            if key is None:
                raise Rejected(ERRORS["unauthenticated"])
            if self.options.api_key not in (None, key.removeprefix(b"Bearer ").decode("latin-1")):
                raise Rejected(ERRORS["wrong_api_key"])
        overrides = request.header(b"x-simulate")
        if overrides is None:
            return self.options
        try:
            return self.options.overridden(overrides.decode("latin-1"))
        except ValueError as problem:
            raise Rejected(wrong_format(str(problem))) from None
