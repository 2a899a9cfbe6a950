"""Which path is answered by whom: the dispatch tables, the key check, the local endpoints."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import orjson

from .chat.models import ModelList
from .config.config import Config
from .downstream.connection import Downstream
from .errors import DoubledPrefix, MethodNotAllowed, MethodUnknown, NotFound
from .http1.messages import Request
from .limits.api_keys import ApiKeys, check_key
from .net.steps import run_in_steps
from .telemetry.exchange import Exchange
from .telemetry.metrics import Metrics

__all__ = ("Handler", "Routes", "Table")

Handler = Callable[[Exchange, Downstream], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_KNOWN_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)
_MODEL_PREFIX = b"/v1/models/"
_MODEL = b"/v1/models/{id}"
_GET = ("GET", "HEAD")


class _Route(NamedTuple):
    """``template`` is what log and metrics call the path."""

    template: str
    methods: tuple[str, ...]
    handler: Handler
    needs_key: bool = False


Table = dict[bytes, _Route]


def _find(table: Table, path: bytes) -> _Route | None:
    """Exact bytes only: a path that would have to be normalised is not one of ours."""
    is_model = path.startswith(_MODEL_PREFIX) and path != _MODEL_PREFIX
    return table.get(_MODEL if is_model else path)


class Routes:
    """What one proxy answers: on its port (``main``), and on the one that scrapers have for
    themselves (``for_scrapers``)."""

    def __init__(
        self,
        config: Config,
        api_keys: ApiKeys,
        chat: Handler,
        models: ModelList,
        metrics: Metrics,
        health: Callable[[], tuple[int, dict[str, object]]],
        warm_up: Callable[[], None],
    ) -> None:
        self._api_keys = api_keys
        self._models = models
        self._metrics = metrics
        self._read_health = health
        self._warm_up = warm_up
        self.main: Table = {
            b"/v1/chat/completions": _Route(
                "/v1/chat/completions", ("POST",), chat, needs_key=True
            ),
            b"/v1/models": _Route("/v1/models", _GET, self._list_models, needs_key=True),
            _MODEL: _Route("/v1/models/{id}", _GET, self._get_model, needs_key=True),
            b"/v1/tcp_warming": _Route("/v1/tcp_warming", _GET, self._warm),
            b"/health": _Route("/health", _GET, self._health),
            b"*": _Route("*", ("OPTIONS",), self._options),
        }
        self.for_scrapers: Table = {
            b"/health": self.main[b"/health"],
            b"/metrics": _Route("/metrics", _GET, self._render_metrics),
        }
        if config.metrics_enabled and config.metrics_on_main_port:
            self.main |= self.for_scrapers

    async def dispatch(
        self, table: Table, request: Request, exchange: Exchange, downstream: Downstream
    ) -> None:
        """Answer a request as ``table`` has it, or raise the ProxyError that refuses it."""
        if request.method == "CONNECT":  # what follows it is no request (RFC 9110 section 9.3.6)
            downstream.close_after_response()
            raise MethodNotAllowed("GET", "HEAD", "POST")
        path = request.path
        route = _find(table, path)
        if route is not None:
            exchange.route = route.template
        if path.startswith(b"/v1/v1/"):
            raise DoubledPrefix
        if path.startswith(b"/v1/") and (route is None or route.needs_key):
            exchange.client = check_key(request, self._api_keys.keys)
        if request.method not in _KNOWN_METHODS:
            raise MethodUnknown
        if route is None:
            raise NotFound
        if request.method not in route.methods:
            raise MethodNotAllowed(*route.methods)
        exchange.body = await downstream.read_body()
        exchange.received_at = max(exchange.started_at, downstream.stream.arrived_at)
        exchange.request_timestamped = downstream.request_timestamped
        await route.handler(exchange, downstream)

    async def _list_models(self, exchange: Exchange, downstream: Downstream) -> None:
        async with downstream.watch_disconnect():
            text = await self._models.text(exchange)
        await downstream.respond(exchange, 200, (_JSON,), text)

    async def _get_model(self, exchange: Exchange, downstream: Downstream) -> None:
        path = exchange.request.path if exchange.request else b""
        model = path.removeprefix(_MODEL_PREFIX).decode("ascii", "replace")
        async with downstream.watch_disconnect():
            entry = await self._models.entry(exchange, model)
        await downstream.respond(exchange, 200, (_JSON,), entry)

    async def _warm(self, exchange: Exchange, downstream: Downstream) -> None:
        """The Cerebras SDK asks this in its constructor, and waits for the answer."""
        self._warm_up()
        await downstream.respond(exchange, 200, (_JSON,), b"{}")

    async def _options(self, exchange: Exchange, downstream: Downstream) -> None:
        """What the server as a whole can do (RFC 9110 section 9.3.7)."""
        methods = {method for route in self.main.values() for method in route.methods}
        allowed = ", ".join(sorted(methods)).encode()
        await downstream.respond(exchange, 200, ((b"allow", allowed),), b"")

    async def _health(self, exchange: Exchange, downstream: Downstream) -> None:
        status, report = self._read_health()
        await downstream.respond(exchange, status, (_JSON,), orjson.dumps(report))

    async def _render_metrics(self, exchange: Exchange, downstream: Downstream) -> None:
        accept = (exchange.request.header(b"accept") if exchange.request else None) or b""
        text, content_type = await run_in_steps(self._metrics.render(accept))
        headers = ((b"content-type", content_type.encode()),)
        await downstream.respond(exchange, 200, headers, text)
