"""One proxy: it serves connections, and begins, ends and accounts for their exchanges.

``Proxy.handle`` serves one byte stream, whoever accepted it. Nothing here listens, and nothing
touches signals, logging or anything global.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from anyio.abc import ByteStream

from .chat.completions import Relay, error_body, error_event
from .chat.models import Catalogue, ModelList
from .config.config import Config
from .downstream.connection import Downstream
from .downstream.listener import Connections, Ports, addresses_of
from .errors import (
    Draining,
    InternalError,
    ProxyError,
    ShutDown,
)
from .limits.admission import Admission
from .limits.api_keys import ApiKeys, check_key
from .limits.token_buckets import LimitStore
from .net.event_loop import ThreadCall, current_backend, loop_clock
from .net.stream import timestamped
from .routes import Routes, Table, cors_headers, match, preflight
from .telemetry.exchange import Exchange
from .telemetry.health import Health
from .telemetry.logs import Logs, describe_exceptions
from .telemetry.metrics import LiveState, Metrics
from .telemetry.multiprocess import WorkerSlot
from .telemetry.timings import Timings
from .telemetry.trace_context import CallerReader, identify
from .upstream.circuit_breaker import CircuitBreaker
from .upstream.client import UpstreamClient
from .upstream.connect import Connect, connect_for
from .upstream.retry import RetryingClient
from .upstream.warmup import Warmup

if TYPE_CHECKING:
    from .telemetry.traces import Traces

__all__ = ("Entrance", "Proxy")

_LAG_SAMPLE, _LAG_SAMPLE_IDLE = 0.01, 0.1  # seconds between samples of the loop's lag
_FINAL_ERROR_TIMEOUT = 0.5  # seconds to send a client the error that cuts its response short
_CHECK_EVERY = 1.0  # seconds between checks whether the service is degraded
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds after a failure in the background
_FAILURES_LOGGED = 100  # kinds of failures in the background that are logged, once each
_FLUSH_SPANS = 1.0, 2.0  # seconds, at least and at most; a collector may be down
# Apart from the clients', who may have all the connections there may be.
_SCRAPERS = 100  # connections: several Prometheus servers, a person or two, and room for mistakes


class Entrance(NamedTuple):
    """A way in: the routes that are served there, and the connections that are open."""

    table: Table
    connections: Connections


class Proxy:
    """One proxy, to be made inside a running event loop.

    ``write_line`` gets each log line, newline included, and must not block; ``lines_dropped``
    returns how many it lost. ``connect`` makes the streams to upstream. ``ports`` are the sockets
    that are listened on, if there are any. ``slot`` is a worker's.

    ``addresses`` and ``scrapers_addresses``: host and port of each of these sockets.
    """

    def __init__(
        self,
        config: Config,
        write_line: Callable[[bytes], object],
        *,
        lines_dropped: Callable[[], float] = lambda: 0,
        connect: Connect | None = None,
        ports: Ports | None = None,
        slot: WorkerSlot | None = None,
    ) -> None:
        self.config = config
        self._slot = slot
        self._clock = loop_clock()
        names = getattr(slot, "number", None), config.run_id
        self.logs = Logs(config.log_level, write_line, *names, CallerReader(config))
        self.addresses, self.scrapers_addresses = map(addresses_of, ports or Ports())
        self.drain_began = anyio.Event()
        self._in_flight = self._chat_requests = 0
        self._grace_ends_at, self._drained = 0.0, False
        self._failures: list[list[str]] = []  # in the background, as logged
        self._lines_dropped = lines_dropped
        self._metrics = Metrics(config, current_backend(), slot, self._read_state)
        self._traces = open_traces(config, self.logs, self._metrics)
        self._upstream = UpstreamClient(config, connect or connect_for(config.upstream_proxy))
        self._warmup = Warmup(self._upstream.pool, self.logs)
        failures = config.circuit_failures
        self._circuit = CircuitBreaker(failures) if failures else None
        self._health = Health(config, self._metrics, self.logs, self._read_state, slot)
        self._limits = open_limit_store(config, self.logs)
        self._api_keys = ApiKeys(config)
        self._admission = Admission(config, self._api_keys, self._limits)
        models = ModelList(config, self._upstream)
        self._catalogue = Catalogue(config, self._upstream, models, self._metrics, self.logs)
        retries = config.retry_attempts, config.retry_backoff
        client = RetryingClient(self._upstream, *retries, self._circuit, self.logs)
        chat = Relay(config, client, self._admission, self._catalogue)
        routes = Routes(config, chat.handle, models, self._metrics, self._health, self._warmup)
        self._connections = Connections(config.max_connections, slot, self.logs)
        self.for_clients = Entrance(routes.main, self._connections)
        self.for_scrapers = Entrance(routes.for_scrapers, Connections(_SCRAPERS, None))

    def _read_state(self) -> LiveState:
        return LiveState(
            draining=self.drain_began.is_set(),
            in_flight=self._in_flight,
            client_connections=len(self._connections),
            connections_full=self._connections.full,
            upstream_active=self._upstream.pool.active,
            upstream_idle=self._upstream.pool.idle,
            upstream_reachable=self._upstream.pool.failure is None,
            queue_length=self._admission.waiting,
            lines_dropped=self._lines_dropped(),
            circuit=None if self._circuit is None else self._circuit.state,
            spans_lost=0 if self._traces is None else self._traces.lost,
        )

    # One connection, and its exchanges

    async def handle(self, stream: ByteStream, entrance: Entrance | None = None) -> None:
        """Serve one client's connection until it ends; raises nothing but cancellation."""
        table, connections = entrance or self.for_clients
        client = timestamped(stream)
        client.kernel_timestamps = self.config.kernel_stamps
        downstream = Downstream(client, self.config)
        if self.drain_began.is_set():
            downstream.drain()
        connections.add(client, downstream)
        try:
            while (started_at := await downstream.wait_for_request()) is not None:
                exchange = Exchange(started_at=started_at, address=client.peer)
                await self._serve(exchange, downstream, table)
                if not downstream.reusable:
                    break
            await downstream.aclose()
        except Exception:  # one connection's trouble must not reach another's
            self.logs.event("error", "A connection failed inside the proxy")
        finally:
            connections.discard(client)
            with anyio.CancelScope(shield=True):
                await downstream.close_at_once()

    async def _serve(self, exchange: Exchange, downstream: Downstream, table: Table) -> None:
        """The one way through an exchange: however it ends, it is counted and logged once."""
        blocked = downstream.stream.write_wait_seconds
        self._in_flight += 1
        try:
            with downstream.exchange_scope(self.config.request_timeout):
                await self._respond(exchange, downstream, table)
        except ProxyError as error:
            exchange.error = error
            await self._report_error(error, exchange, downstream)
            error.drop_traceback()
        except Exception:
            exchange.error = InternalError()
            await self._report_error(exchange.error, exchange, downstream)
        except BaseException:  # the process ends, and nobody waits for long
            exchange.error = ShutDown()
            with anyio.move_on_after(_FINAL_ERROR_TIMEOUT, shield=True):
                await self._report_error(exchange.error, exchange, downstream)
            raise
        finally:
            self._in_flight -= 1
            exchange.client_blocked_seconds = downstream.stream.write_wait_seconds - blocked
            exchange.response_bytes = downstream.body_bytes or None
            completed_at = downstream.completed_at
            exchange.finished_at = self._clock() if completed_at is None else completed_at
            self._account_for(exchange)

    async def _respond(self, exchange: Exchange, downstream: Downstream, table: Table) -> None:
        try:
            request = exchange.request = await downstream.read_head()
        finally:
            identify(exchange, exchange.request, self._clock())
        if self.config.cors_origins:
            downstream.more_headers = cors_headers(self.config.cors_origins, request)
        if self._drained:
            raise Draining
        route, refusal = match(table, request)
        if downstream.more_headers and (ask := preflight(route, request, downstream.more_headers)):
            route, refusal = ask, None
        exchange.route = route.template
        if route.needs_key:
            exchange.client = check_key(request, self._api_keys.keys)
        if refusal is not None:
            raise refusal
        if route.takes_body:
            exchange.body = await downstream.read_body()
        else:
            await downstream.discard_body()
        exchange.received_at = max(exchange.started_at, downstream.stream.arrived_at)
        exchange.request_timestamped = downstream.request_timestamped
        await route.handler(exchange, downstream)

    async def _report_error(
        self, error: ProxyError, exchange: Exchange, downstream: Downstream
    ) -> None:
        """Respond with an error while no byte has gone out; after that, cut the response."""
        if downstream.started:
            state = downstream.stream_state
            fits = error.status and state is not None and state.can_take_event
            await downstream.abort(error_event(error) if fits else b"")
        if downstream.started or not error.status:
            return
        if not (error.keeps and downstream.can_discard_body):
            downstream.close_after_response()
        headers = ((b"content-type", b"application/json"), *error.headers)
        with suppress(ProxyError):  # which leaves the connection unfit for more
            await downstream.respond(exchange, error.status, headers, error_body(error))
            if downstream.keeps_alive:
                await downstream.discard_body()  # for the next request's sake

    def _account_for(self, exchange: Exchange) -> None:
        """Count and log an exchange that has ended. An observer that fails is reported, and the
        others take note all the same."""
        self._chat_requests += exchange.is_chat
        timings = Timings.of(exchange)
        counts = (self._metrics.observe,) if self.config.metrics_enabled else ()
        spans = () if self._traces is None else (self._traces.observe,)
        for observe in (*counts, self._health.observe, self.logs.exchange, *spans):
            try:
                observe(exchange, timings)
            except Exception:
                self.logs.event("error", "An exchange was not accounted for")

    # In the background

    async def run_in_background(self) -> None:
        """Keep connections to upstream warm, prices current, and watch the event loop and the state
        of the service, until cancelled. None of that ends where it fails."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._go_on, "warmup", self._keep_warm)
            if self.config.price_catalogue:
                unobserved = Exchange(started_at=self._clock())
                refresh = partial(self._catalogue.refresh_hourly, unobserved)
                tasks.start_soon(self._go_on, "catalogue", refresh)
            if self.config.metrics_enabled:
                tasks.start_soon(self._go_on, "loop_watch", self._watch_loop)
            tasks.start_soon(self._go_on, "health", self._watch_health)

    async def _go_on(self, task: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work``, and again when it has failed, after pauses that double while it fails as
        soon as it is begun."""
        pause = 0.0
        while True:
            began_at = self._clock()
            try:
                return await work()
            except Exception as error:
                self._note_failure(task, error)
            fails_at_once = self._clock() - began_at < _LONGEST_PAUSE
            pause = min(2 * pause, _LONGEST_PAUSE) if pause and fails_at_once else _FIRST_PAUSE
            await anyio.sleep(pause)

    def _note_failure(self, task: str, error: Exception) -> None:
        """Count a failure of something in the background; log each kind and place once."""
        with suppress(Exception):  # nor may this end it
            self._metrics.count_background_failure(task)
            exceptions = describe_exceptions(error)
            if exceptions not in self._failures and len(self._failures) < _FAILURES_LOGGED:
                self._failures.append(exceptions)
                message = "A task in the background failed, and goes on after a pause"
                self.logs.event("error", message, task=task, exceptions=exceptions)

    async def _keep_warm(self) -> None:
        """Until a drain begins; later requests use the connections there are, or make their own."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._warmup.keep)
            await self.drain_began.wait()
            tasks.cancel_scope.cancel()
        if self._drained:  # one may have been made at that very moment
            self._upstream.pool.close()

    async def _watch_health(self) -> None:
        while True:
            if self._slot is not None:
                self._slot.scoreboard.tick(self._slot.number)
            self._health.check()
            if self._traces is not None:
                self._traces.report()
            self._metrics.refresh_process()
            await anyio.sleep(_CHECK_EVERY)

    async def _watch_loop(self) -> None:
        """Sample how late the loop wakes a sleep; ten times as often while several exchanges are in
        flight, of which one may wait for another's work. The samples of a lone stream would take
        a tenth of its CPU."""
        while True:
            pause = _LAG_SAMPLE if self._in_flight > 1 else _LAG_SAMPLE_IDLE
            due_at = self._clock() + pause
            await anyio.sleep(pause)
            self._metrics.loop_lag.observe(max(0.0, self._clock() - due_at))
            if self._slot is not None:  # another worker may be scraped for this one's gauges
                self._slot.scoreboard.tick(self._slot.number)
                self._metrics.refresh()

    async def reread_keys(self) -> None:
        """Reload ``APE_API_KEYS_FILE`` for the requests to come. Whatever fails, the keys stay as
        they were."""
        try:
            await self._api_keys.reload(self.logs)
        except Exception as error:
            self._note_failure("keys_file", error)

    # The end

    @property
    def totals(self) -> dict[str, Any]:
        """What a reader of the log checks it against: how many lines of chat requests there must
        be, at the level ``info``, and how many lines of any kind are known to be lost."""
        return {
            "chat_requests": self._chat_requests,
            "lines_dropped": int(self._lines_dropped()),
        }

    def begin_drain(self) -> None:
        """Let each connection end with the next response that announces it."""
        if not self.drain_began.is_set():
            self._grace_ends_at = self._clock() + self.config.graceful_shutdown_timeout
        self.drain_began.set()
        for downstream in self._connections:
            downstream.drain()

    async def drain(self) -> None:
        """Drain, and return when the last connection has ended or
        ``graceful_shutdown_timeout`` is over."""
        self.begin_drain()
        with anyio.move_on_after(self.config.graceful_shutdown_timeout):
            await self._connections.wait_for_fewer_than(1)
        self.close()

    async def flush_spans(self) -> None:
        """Send the spans that wait, after the last exchange, in the rest of the grace period."""
        if self._traces is None:
            return
        least, most = _FLUSH_SPANS
        seconds = min(max(least, self._grace_ends_at - self._clock()), most)
        with anyio.move_on_after(seconds, shield=True), suppress(OSError):
            await ThreadCall(self._traces.shut_down).result()
        self._traces.report_unsent()

    def close(self) -> None:
        """Close the idle connections to upstream. Requests from here on get 503."""
        self._drained = True
        self._upstream.pool.close()
        self._limits.close()


def open_traces(config: Config, logs: Logs, metrics: Metrics) -> "Traces | None":
    """Traces, where they are switched on: OpenTelemetry is imported for nothing else."""
    if (config.traces_url is None and config.otlp_metrics_url is None) or config.otlp_obstacle:
        return None
    from .telemetry.traces import Traces

    return Traces(config, logs, metrics.model_label)


def open_limit_store(config: Config, logs: Logs) -> LimitStore:
    """The store that the settings name. Few proxies share limits: the others do without the module
    of Redis's, as without OpenTelemetry's."""
    if config.limits_store is None:
        return LimitStore()
    from .limits.redis_store import RedisLimitStore

    closed, timeout = config.limits_store_outage == "closed", config.limits_store_timeout
    return RedisLimitStore(config.limits_store, timeout, closed=closed, logs=logs)
