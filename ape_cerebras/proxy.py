"""One proxy: connections served, exchanges begun, ended and accounted for.

``Proxy.handle`` serves one byte stream, whoever accepted it. Nothing here listens, and nothing
touches signals, logging or anything global.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import anyio
from anyio.abc import ByteStream

from .chat.completions import Relay, error_body, error_event
from .chat.models import Catalogue, ModelList
from .config.config import Config
from .downstream.clients import Clients
from .downstream.connection import Downstream
from .errors import (
    Draining,
    ExchangeTimeout,
    InternalError,
    ProxyError,
    ShutDown,
)
from .limits.admission import Admission
from .limits.api_keys import ApiKeys
from .limits.redis_store import open_limit_store
from .net.event_loop import current_backend
from .net.timestamps import loop_clock
from .net.wrapped import timestamped
from .routes import Routes, Table
from .telemetry.exchange import Exchange
from .telemetry.health import Health
from .telemetry.logs import Logs
from .telemetry.metrics import Metrics
from .telemetry.place import Place
from .telemetry.timings import Timings
from .telemetry.trace_context import identify
from .upstream.circuit_breaker import CircuitBreaker
from .upstream.client import UpstreamClient
from .upstream.connect import Connect, connect_tcp
from .upstream.tries import tries_at
from .upstream.warmup import Warmup

__all__ = ("Entrance", "Proxy")

_LAG_SAMPLE = 0.01  # seconds
_LAST_WORDS = 0.5  # seconds to tell a client that the end cuts its response short
_LOOK_EVERY = 1.0  # seconds between looks at whether the service is degraded
_SCRAPERS = 100  # connections: several Prometheus servers, a person or two, and room for mistakes


class Entrance(NamedTuple):
    """A way in: what is served there, and the connections that are open."""

    table: Table
    connections: Clients


class Proxy:
    """To be made inside a running event loop.

    ``write_line`` gets each log line, newline included, and must not block; ``lines_dropped`` says
    how many it lost. ``connect`` makes the streams to upstream. ``place`` is a worker's.
    """

    def __init__(
        self,
        config: Config,
        write_line: Callable[[bytes], object],
        *,
        lines_dropped: Callable[[], float] = lambda: 0,
        connect: Connect = connect_tcp,
        place: Place | None = None,
    ) -> None:
        self.config = config
        self._place = place
        self.logs = Logs(config.log_level, write_line, place.number if place else None)
        self.addresses: tuple[tuple[str, int], ...] = ()
        """Host and port of each address that is listened on, where somebody listens."""
        self.scrapers_addresses: tuple[tuple[str, int], ...] = ()
        self._upstream = UpstreamClient(config, connect)
        circuit = CircuitBreaker(config.circuit_failures) if config.circuit_failures else None
        self._warmth = Warmup(config, self._upstream.pool)
        self._metrics = Metrics(config, current_backend(), place)
        self.drain_began = anyio.Event()
        draining = self.drain_began.is_set
        self._health = Health(config, self._metrics, self.logs, place, draining, circuit)
        self._limits = open_limit_store(config, self.logs)
        self._api_keys = ApiKeys(config)
        self._admission = Admission(config, self._api_keys, self._limits)
        self._routes = self._make_routes(circuit)
        self._clock = loop_clock()
        self._connections = Clients(config.max_connections, place)
        self.wait_for_room = self._connections.wait_for_room
        self.for_clients = Entrance(self._routes.main, self._connections)
        # Apart, so that scrapes are answered also where clients have all the connections there
        # may be.
        self.for_scrapers = Entrance(self._routes.for_scrapers, Clients(_SCRAPERS, None))
        self._in_flight = 0
        self._drained = False
        self._tell_metrics(lines_dropped)

    def _make_routes(self, circuit: CircuitBreaker | None) -> Routes:
        config, upstream = self.config, self._upstream
        models = ModelList(config, upstream)
        self._catalogue = Catalogue(config, upstream, models, self._metrics.models, self.logs)
        tries = tries_at(upstream, config, circuit, self.logs)
        return Routes(
            config,
            self._api_keys,
            Relay(config, tries, self._admission, self._catalogue).handle,
            models,
            self._metrics,
            self._health.report,
            self._warmth.hint,
        )

    def _tell_metrics(self, lines_dropped: Callable[[], float]) -> None:
        pool = self._upstream.pool
        self._metrics.watch(
            in_flight=lambda: self._in_flight,
            client_connections=lambda: len(self._connections),
            active=lambda: pool.active,
            idle=lambda: pool.idle,
            lines_dropped=lines_dropped,
            waiting=lambda: self._admission.waiting,
            knows_client=self._api_keys.knows,
        )

    # Connections

    async def handle(self, stream: ByteStream) -> None:
        """Serve one client's connection until it ends; raises nothing but cancellation."""
        await self.admit(stream, self.for_clients)()

    def admit(
        self, stream: ByteStream, entrance: Entrance
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Count a connection as open; what is returned serves it, and undoes that."""
        client = timestamped(stream)
        if not self.config.kernel_stamps:
            client.use_read_times()
        downstream = Downstream(client, self.config)
        if self.drain_began.is_set():
            downstream.drain()
        entrance.connections.add(downstream)
        return partial(self._serve, downstream, entrance)

    async def _serve(self, downstream: Downstream, entrance: Entrance) -> None:
        try:
            while (started_at := await downstream.wait_for_request()) is not None:
                await self._run(Exchange(started_at=started_at), downstream, entrance.table)
                if not downstream.reusable:
                    break
            await downstream.aclose()
        except Exception:  # one connection's trouble must not reach another's
            self.logs.event("error", "A connection failed inside the proxy")
        finally:
            entrance.connections.discard(downstream)
            with anyio.CancelScope(shield=True):
                await downstream.close_at_once()

    # Exchanges

    async def _run(self, exchange: Exchange, downstream: Downstream, table: Table) -> None:
        """The one way through an exchange: however it ends, it is counted and logged once."""
        blocked = downstream.stream.write_wait_seconds
        self._in_flight += 1
        try:
            await self._answer_in_time(exchange, downstream, table)
        except ProxyError as error:
            exchange.error = error
            await self._conclude(error, exchange, downstream)
            error.drop_traceback()
        except Exception:
            exchange.error = InternalError()
            await self._conclude(exchange.error, exchange, downstream)
        except BaseException:  # the process ends, and nobody waits for long
            exchange.error = ShutDown()
            with anyio.move_on_after(_LAST_WORDS, shield=True):
                await self._conclude(exchange.error, exchange, downstream)
            raise
        finally:
            self._in_flight -= 1
            exchange.client_blocked_seconds = downstream.stream.write_wait_seconds - blocked
            completed_at = downstream.completed_at
            exchange.finished_at = self._clock() if completed_at is None else completed_at
            self._account_for(exchange)

    def _account_for(self, exchange: Exchange) -> None:
        """Count and log an exchange that has ended. An observer that fails is reported, and the
        others take note all the same."""
        timings = Timings.of(exchange)
        counts = (self._metrics.observe,) if self.config.metrics_enabled else ()
        for observe in (*counts, self._health.observe, self.logs.exchange):
            try:
                observe(exchange, timings)
            except Exception:
                self.logs.event("error", "An exchange was not accounted for")

    async def _answer_in_time(
        self, exchange: Exchange, downstream: Downstream, table: Table
    ) -> None:
        if self.config.request_timeout is None:  # a scope takes a hundredth of a plain exchange
            await self._answer(exchange, downstream, table)
            return
        with anyio.move_on_after(self.config.request_timeout) as scope:
            await self._answer(exchange, downstream, table)
        if scope.cancelled_caught and downstream.completed_at is None:
            raise ExchangeTimeout

    async def _answer(self, exchange: Exchange, downstream: Downstream, table: Table) -> None:
        try:
            request = exchange.request = await downstream.read_head()
        finally:
            identify(exchange, exchange.request, self._clock())
        if self._drained:
            raise Draining
        await self._routes.dispatch(table, request, exchange, downstream)

    async def _conclude(
        self, error: ProxyError, exchange: Exchange, downstream: Downstream
    ) -> None:
        """Tell the client of a failure where that can still be done, cut it off where not."""
        if downstream.response_started:
            fits = error.status and downstream.can_take_event
            await downstream.abort(error_event(error) if fits else b"")
        if downstream.response_started or not error.status:
            return
        if not error.keeps or downstream.awaits_100_continue:
            downstream.close_after_response()
        headers = ((b"content-type", b"application/json"), *error.headers)
        with suppress(ProxyError):  # which leaves the connection unfit for more
            await downstream.respond(exchange, error.status, headers, error_body(error))
            if not downstream.announced_close:
                await downstream.read_body()  # what is left of it, for the next request's sake

    # In the background

    async def run_in_background(self) -> None:
        """What a proxy does beside answering: keep connections warm, watch over the loop and the
        service. Runs until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_warm)
            if self.config.price_catalogue:
                unobserved = Exchange(started_at=self._clock())
                tasks.start_soon(self._catalogue.refresh_hourly, unobserved)
            if self.config.metrics_enabled:
                tasks.start_soon(self._watch_loop)
            while True:
                self._health.look()
                await anyio.sleep(_LOOK_EVERY)

    async def _keep_warm(self) -> None:
        """Until a drain begins; what comes after that finds what there is, or makes its own."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._warmth.keep)
            await self.drain_began.wait()
            tasks.cancel_scope.cancel()
        if self._drained:  # one may have been made at that very moment
            self._upstream.pool.close()

    async def _watch_loop(self) -> None:
        while True:
            due_at = self._clock() + _LAG_SAMPLE
            await anyio.sleep(_LAG_SAMPLE)
            self._metrics.loop_lag.observe(max(0.0, self._clock() - due_at))
            if self._place is not None:  # others may be asked for what only this worker knows
                self._metrics.refresh()

    async def reread_keys(self) -> None:
        """Have what ``APE_API_KEYS_FILE`` says now hold for the requests to come."""
        await self._api_keys.reload(self.logs)

    # The end

    def begin_drain(self) -> None:
        """Let each connection end as soon as its client has been told so."""
        self.drain_began.set()
        for downstream in self._connections:
            downstream.drain()

    async def drain(self) -> None:
        """Drain, and return when the last connection has ended or
        ``graceful_shutdown_timeout`` is over."""
        self.begin_drain()
        with anyio.move_on_after(self.config.graceful_shutdown_timeout):
            await self._connections.wait_for_the_last()
        self.close()

    def close(self) -> None:
        """Let go of the idle connections upstream. What is asked of the proxy from here on is
        answered 503."""
        self._drained = True
        self._upstream.pool.close()
        self._limits.close()
