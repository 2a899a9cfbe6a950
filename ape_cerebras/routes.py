"""The routes: which path and method have which handler, and the handlers of the local endpoints."""

import re
from collections.abc import Awaitable, Callable
from itertools import product
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from anyio import CapacityLimiter, to_thread

from .chat.models import ModelList
from .config.config import Config
from .downstream.connection import Downstream
from .errors import DoubledPrefix, MethodNotAllowed, MethodUnknown, NotFound, ProxyError
from .http1.messages import TOKEN, Headers, Request
from .telemetry.exchange import Exchange
from .telemetry.health import Health
from .telemetry.metrics import Metrics
from .upstream.warmup import Warmup

__all__ = ("Handler", "Route", "Routes", "Table", "cors_headers", "match", "preflight")

Handler = Callable[[Exchange, Downstream], Awaitable[None]]

_JSON = (b"content-type", b"application/json")
_KNOWN_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)
_MODEL_PREFIX = b"/v1/models/"
_MODEL = b"/v1/models/{id}"
_GET = ("GET", "HEAD")
_SERVED = (
    "There is nothing at this path. Served are POST /v1/chat/completions, GET /v1/models and "
    "GET /v1/models/{id}."
)
_NEEDS_V1 = "The path lacks /v1: this client's base URL must end in /v1."
_ADVICE = {
    b"/chat/completions": _NEEDS_V1,
    b"/models": _NEEDS_V1,
    b"/completions": "Completions of a prompt are not served: send messages as a chat completion.",
    b"/responses": (
        "The Responses API is not served: set the client to chat completions, as with "
        "wire_api='chat' or OpenAI(...).chat.completions."
    ),
    b"/embeddings": "The API makes no embeddings: set the client to another service for these.",
    b"/messages": (
        "Anthropic's Messages API is not served: set the client to an OpenAI-compatible provider."
    ),
}
"""What to do instead of requests that clients often send here, by their path without /v1."""


# Of Cross-Origin Resource Sharing, https://fetch.spec.whatwg.org/#http-cors-protocol
_ANY_ORIGIN = (b"*",)
_BY_ORIGIN = (b"vary", b"origin")
_EXPOSED = (
    b"access-control-expose-headers",
    b", ".join(
        (
            *(b"x-request-id", b"x-trace-id", b"inference-id", b"retry-after", b"x-should-retry"),
            *(
                b"x-ratelimit-%b-%b-%b" % name
                for name in product(
                    (b"limit", b"remaining", b"reset"),
                    (b"requests", b"tokens"),
                    (b"minute", b"hour", b"day"),
                )
            ),
        )
    ),
)
_PREFLIGHT_VALID = b"3600"  # seconds; browsers keep it for two hours at most
_NAMES = re.compile(TOKEN + rb"(?:[ \t]*,[ \t]*" + TOKEN + rb")*")


async def _no_handler(exchange: Exchange, downstream: Downstream) -> None:
    raise NotFound


class Route(NamedTuple):
    """``template`` names the path in log and metrics. ``takes_body``: whether the handler uses the
    request's body; else it is thrown away."""

    template: str
    methods: tuple[str, ...]
    handler: Handler
    needs_key: bool = False
    takes_body: bool = False


Table = dict[bytes, Route]

_NOWHERE = Route("none", (), _no_handler)
_NOWHERE_OF_API = Route("none", (), _no_handler, needs_key=True)  # strangers learn of no path


def match(table: Table, request: Request) -> tuple[Route, ProxyError | None]:
    """Return the route of a request, and the error that rejects it once its key has been checked.

    Paths match by exact bytes: one that would have to be normalized is none of ours.
    """
    method, path = request.method, request.path
    if method == "CONNECT":  # the bytes behind it are no request (RFC 9110 section 9.3.6)
        return _NOWHERE, MethodNotAllowed("GET", "HEAD", "POST", keeps=False)
    is_model = path.startswith(_MODEL_PREFIX) and path != _MODEL_PREFIX
    route = table.get(_MODEL if is_model else path)
    if route is None:
        if path.startswith(b"/v1/v1/"):
            return _NOWHERE, DoubledPrefix()
        advice = _ADVICE.get(path.removeprefix(b"/v1"), "")
        error = (
            NotFound(f"{_SERVED} {advice}".rstrip())
            if method in _KNOWN_METHODS
            else MethodUnknown()
        )
        return _NOWHERE_OF_API if path.startswith(b"/v1/") else _NOWHERE, error
    if method in route.methods:
        return route, None
    known = method in _KNOWN_METHODS
    return route, MethodNotAllowed(*route.methods) if known else MethodUnknown()


def cors_headers(origins: tuple[bytes, ...], request: Request) -> Headers:
    """The fields that let a web page of one of these origins read the response. Without a ``*`` the
    response differs by the request's origin, also where it has none."""
    if origins == _ANY_ORIGIN:
        return ((b"access-control-allow-origin", b"*"), _EXPOSED)
    origin = request.header(b"origin")
    if origin not in origins or origin is None:
        return (_BY_ORIGIN,)
    return ((b"access-control-allow-origin", origin), _EXPOSED, _BY_ORIGIN)


def preflight(route: Route, request: Request, allowed: Headers) -> Route | None:
    """The route of a preflight, in which a browser asks whether a page may send a request; None
    where this is none, or its origin is not ``allowed``."""
    method = request.header(b"access-control-request-method")
    if request.method != "OPTIONS" or method is None or len(allowed) < 2:
        return None
    methods = ", ".join(route.methods or ("GET", "POST")).encode()
    headers: Headers = (
        (b"access-control-allow-methods", methods),
        (b"access-control-max-age", _PREFLIGHT_VALID),
    )
    names = request.header(b"access-control-request-headers")
    if names is not None and _NAMES.fullmatch(names):
        vary = (b"vary", b"access-control-request-headers")
        headers += ((b"access-control-allow-headers", names), vary)

    async def respond(exchange: Exchange, downstream: Downstream) -> None:
        await downstream.respond(exchange, 204, headers, b"")

    return Route(route.template, ("OPTIONS",), respond)


class Routes:
    """The tables of one proxy: of its port (``main``), and of the one that scrapers have for
    themselves (``for_scrapers``). ``chat`` handles chat completions."""

    def __init__(
        self,
        config: Config,
        chat: Handler,
        models: ModelList,
        metrics: Metrics,
        health: Health,
        warmup: Warmup,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._health = health
        self._warmup = warmup
        # Of its own, so that a scrape need not wait for name lookups that stall (trio's run in the
        # threads that all share); one, because several would take the interpreter in turns.
        self._render_threads = CapacityLimiter(1)
        self.main: Table = {
            b"/v1/chat/completions": Route(
                "/v1/chat/completions", ("POST",), chat, needs_key=True, takes_body=True
            ),
            b"/v1/models": Route("/v1/models", _GET, self._list_models, needs_key=True),
            _MODEL: Route("/v1/models/{id}", _GET, self._get_model, needs_key=True),
            b"/v1/tcp_warming": Route("/v1/tcp_warming", _GET, self._warm_up),
            b"/health": Route("/health", _GET, self._report_health),
            b"*": Route("*", ("OPTIONS",), self._list_methods),
        }
        self.for_scrapers: Table = {
            b"/health": self.main[b"/health"],
            b"/metrics": Route("/metrics", _GET, self._render_metrics),
        }
        if config.metrics_enabled and config.metrics_on_main_port:
            self.main |= self.for_scrapers

    async def _list_models(self, exchange: Exchange, downstream: Downstream) -> None:
        async with downstream.watch_disconnect():
            text = await self._models.text(exchange)
        await downstream.respond(exchange, 200, (_JSON,), text)

    async def _get_model(self, exchange: Exchange, downstream: Downstream) -> None:
        path = exchange.request.path if exchange.request else b""
        # SDKs encode the slash of "acme/x"; curl does not.
        model = unquote_to_bytes(path.removeprefix(_MODEL_PREFIX)).decode("utf-8", "replace")
        async with downstream.watch_disconnect():
            entry = await self._models.entry(exchange, model)
        await downstream.respond(exchange, 200, (_JSON,), entry)

    async def _warm_up(self, exchange: Exchange, downstream: Downstream) -> None:
        """The Cerebras SDK requests this in its constructor, and waits for the response."""
        self._warmup.hint()
        await downstream.respond(exchange, 200, (_JSON,), b"{}")

    async def _report_health(self, exchange: Exchange, downstream: Downstream) -> None:
        status, report = self._health.report()
        await downstream.respond(exchange, status, (_JSON,), orjson.dumps(report))

    async def _list_methods(self, exchange: Exchange, downstream: Downstream) -> None:
        """The methods of the server as a whole (RFC 9110 section 9.3.7)."""
        methods = {method for route in self.main.values() for method in route.methods}
        allowed = ", ".join(sorted(methods)).encode()
        await downstream.respond(exchange, 200, ((b"allow", allowed),), b"")

    async def _render_metrics(self, exchange: Exchange, downstream: Downstream) -> None:
        accept = (exchange.request.header(b"accept") if exchange.request else None) or b""
        self._metrics.refresh()
        try:
            text, content_type = await to_thread.run_sync(
                self._metrics.render, accept, limiter=self._render_threads
            )
        except RuntimeError:  # no thread can be started: then more than ever it is worth a scrape
            text, content_type = self._metrics.render(accept)
        headers = ((b"content-type", content_type.encode()),)
        await downstream.respond(exchange, 200, headers, text)
