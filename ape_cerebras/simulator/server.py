"""A stand-in Cerebras API with settable times, rates and faults, served by our own ``downstream``.

It answers what the real API answers (``replies``, ``completions``), when ``Simulation`` says
(``answers``). A request can ask for other options than the simulator's with a header, such as
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
from .options import SIMULATION_FLAGS, Simulation
from .playback import GroundTruth, Playback
from .quota import LIMIT_FLAGS, Account, AccountLimits
from .replies import ERRORS, Rejected, model_list, one_model, wrong_format
from .request import MAX_BODY_BYTES

__all__ = (
    "LIMIT_FLAGS",
    "SIMULATION_FLAGS",
    "AccountLimits",
    "Simulation",
    "Simulator",
    "GroundTruth",
)

_CHAT = ("POST", "/v1/chat/completions")
_WARMING = ("GET", "/v1/tcp_warming")
_MODELS = re.compile(r"GET (?P<public>/public)?/v1/models(?:/(?P<model>.+))?")


class _SecuredStream(WrappedStream):
    """TLS over a stream of ours. When bytes come and go is what that one says."""

    def __init__(self, secured: ByteStream, below: TimestampedStream) -> None:
        super().__init__(secured)
        self._below = below

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        data = await super().receive(max_bytes)
        self.arrived_at = self._below.arrived_at
        return data

    async def send(self, item: bytes) -> None:
        await super().send(item)
        self.left_at, self.written_at = self._below.left_at, self._below.written_at


class Simulator:
    """Serves connections as the API would.

    ``limits``: of the account, which everybody is. ``remember``: how many requests ``truth`` goes
    back. ``witness`` is told the truth of each request when its answer has ended. ``ssl_context``:
    to serve HTTPS.
    """

    def __init__(
        self,
        options: Simulation | None = None,
        *,
        limits: AccountLimits | None = None,
        remember: int = 1000,
        witness: Callable[[GroundTruth], object] = lambda truth: None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.options = options or Simulation()
        self._account = Account(limits or AccountLimits())
        self._witness = witness
        self._ssl_context = ssl_context
        self.connections = 0
        """Opened so far."""
        self.requests = 0
        """Read so far."""
        self.in_flight = 0
        """Requests that are being answered."""
        self.cancelled = 0
        """Requests whose answer the peer did not wait for."""
        self.truth: deque[GroundTruth] = deque(maxlen=remember)
        self._config = Config(cerebras_api_key="", max_body_bytes=MAX_BODY_BYTES)
        self._changed = anyio.Event()

    async def until(self, condition: Callable[["Simulator"], bool]) -> None:
        """Return once ``condition`` holds; it is asked at the begin and the end of each answer."""
        while not condition(self):
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def handle(self, stream: ByteStream) -> None:
        """Serve one connection until it ends; raises nothing but cancellation."""
        downstream = Downstream(timestamped(stream), self._config)
        self.connections += 1
        try:
            while (started_at := await downstream.wait_for_request()) is not None:
                await self._serve_one(Exchange(started_at=started_at), downstream)
                if not downstream.reusable:
                    break
            await downstream.aclose()
        except ProxyError:  # the peer left
            pass
        finally:
            with anyio.CancelScope(shield=True):
                await downstream.close_at_once()

    async def _serve_one(self, exchange: Exchange, downstream: Downstream) -> None:
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
        try:
            async with downstream.watch_disconnect():
                await self._answer(Playback(downstream, exchange, self._account, truth))
        except ProxyError:  # it can only be that the peer left
            truth.left = True
            self.cancelled += 1
        finally:
            self.in_flight -= 1
            self._witness(truth)
            self._notify()

    async def _answer(self, answer: Playback) -> None:
        try:
            await self._route(answer, answer.truth.request)
        except Rejected as rejected:
            await answer.error(rejected.reply)

    async def _route(self, answer: Playback, request: Request) -> None:
        """Find what to answer, and send it. Raises Rejected."""
        route = request.method, request.path.decode()
        if route == _CHAT:
            options = self._admit(request)
            await answer.chat(options, self._config.default_model)
        elif route == _WARMING:  # it needs no key, and never fails: the SDKs would wait and retry
            await answer.at_once(Simulation(), b"{}")
        elif (models := _MODELS.fullmatch(" ".join(route))) is not None:
            public, model = bool(models["public"]), models["model"]
            options = self._admit(request, needs_key=not public)
            body = model_list(public=public) if model is None else one_model(model, public=public)
            await answer.at_once(options, body)
        else:
            raise Rejected(ERRORS["route_not_found"])

    def _admit(self, request: Request, *, needs_key: bool = True) -> Simulation:
        """Check the key; the options that hold for the request. Raises Rejected."""
        if needs_key:
            key = request.header(b"authorization")
            if key is None:
                raise Rejected(ERRORS["unauthenticated"])
            if self.options.api_key not in (None, key.removeprefix(b"Bearer ").decode("latin-1")):
                raise Rejected(ERRORS["wrong_api_key"])
        wishes = request.header(b"x-simulate")
        if wishes is None:
            return self.options
        try:
            return self.options.overridden(wishes.decode("latin-1"))
        except ValueError as problem:
            raise Rejected(wrong_format(str(problem))) from None

    async def _secure_and_handle(self, stream: SocketStream) -> None:
        if self._ssl_context is None:
            await self.handle(stream)
            return
        try:
            secured = await TLSStream.wrap(
                stream, server_side=True, ssl_context=self._ssl_context, standard_compatible=False
            )
        except (BrokenResourceError, EndOfStream, ssl.SSLError):
            stream.close()
        else:
            await self.handle(_SecuredStream(secured, stream))

    async def serve(
        self, host: str, port: int, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen, and serve until cancelled; reports the port. Raises OSError."""
        with ExitStack() as stack:
            logs = Logs("error", sys.stderr.buffer.write)
            listeners = await anyio.to_thread.run_sync(open_listeners, host, port)
            for listener in listeners:
                stack.callback(listener.close)
            async with anyio.create_task_group() as tasks:
                for listener in listeners:
                    tasks.start_soon(self._accept, Acceptor(listener, logs), tasks)
                task_status.started(listeners[0].getsockname()[1])

    async def _accept(self, acceptor: Acceptor, tasks: TaskGroup) -> None:
        while True:
            tasks.start_soon(self._secure_and_handle, await acceptor.accept())
