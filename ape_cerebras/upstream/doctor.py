"""The way to the API, examined step by step before the first request: ``check --upstream``.

The walk: proxies, name, addresses, TLS, a request for the list of models with the account's key;
then what its response tells of models, quota and clock; and Redis, where limits are shared. Each
step goes as the proxy's own connections go, so that its cause is the word that a request's log line
would have. The step that fails ends the walk, because those behind it would fail for the same
reason.

Models' names, a certificate's issuer and a ``Date`` come from outside: they are checked, escaped
and cut. Nothing shows a key, or a foreign exception's text.
"""

import ssl
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple

import anyio
import orjson
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute

from ..config.config import Config
from ..config.environment import describe_proxies
from ..errors import InvalidResponse, ProxyError
from ..http1.messages import Headers
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange, Quota
from ..telemetry.outcomes import CAUSES
from .client import UpstreamClient, UpstreamRequest
from .connect import cause_of, connect_for, connect_tcp, find_addresses, ssl_context_for, start_tls

__all__ = ("FIXES", "Finding", "examine", "fetch_models")

_LIST_MAX_BYTES = 256 * 1024  # the API's has less than one
_LIST_TIMEOUT = 10.0  # seconds
_MAX_ADDRESSES = 8
_MAX_MODELS = 1000
_NAMES_SHOWN = 5
_CHARACTERS = 64  # of a text from outside
_SKEW_ALLOWED = 5.0  # seconds, of which one is the resolution of a Date
_DAY = 86_400


class Finding(NamedTuple):
    """What one step found: a line."""

    subject: str
    ok: bool
    text: str


_NAME = "correct the host in CEREBRAS_BASE_URL, or have this machine's resolver know it"
_RESOLVER = "see to the resolver: /etc/resolv.conf, the cluster's DNS, a firewall on port 53"
_ROUTE = "see to the network, a firewall, or a proxy to go through (UPSTREAM_PROXY)"
_PORT = "correct host and port in CEREBRAS_BASE_URL, or start what should listen there"
_TRUST = "name the CA that signs here, such as a TLS gateway's, in SSL_CERT_FILE"
_RENEW = "whoever runs that server has to renew its certificate"
_PEER = "see to the server, or to what is between: it may want another TLS, or an allowed address"
_PROXY = "see to the proxy's own rules and log, or name another one in UPSTREAM_PROXY"
_SERVER = "what responds there is not the API, or fails: correct CEREBRAS_BASE_URL, or try later"
_LOCAL = "raise this process's limits (ulimit -n), or end what uses them up"

FIXES = {
    "EAI_NONAME": _NAME,
    **dict.fromkeys(("EAI_AGAIN", "EAI_FAIL", "EAI_OTHER", "lookup_timeout"), _RESOLVER),
    **dict.fromkeys(("ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT", "EPERM", "tcp_timeout"), _ROUTE),
    **dict.fromkeys(("ECONNREFUSED", "E_OTHER"), _PORT),
    **dict.fromkeys(("EADDRNOTAVAIL", "EMFILE"), _LOCAL),
    **dict.fromkeys(("proxy_refused", "proxy_unreachable", "proxy_invalid"), _PROXY),
    "proxy_auth": "put the right user:password@ into UPSTREAM_PROXY",
    "hostname_mismatch": "use the name in CEREBRAS_BASE_URL that the certificate is for",
    "expired": _RENEW,
    "not_yet_valid": "set this machine's clock, by NTP",
    **dict.fromkeys(("self_signed", "unknown_issuer", "CERTIFICATE_VERIFY_FAILED"), _TRUST),
    "WRONG_VERSION_NUMBER": "write http:// in CEREBRAS_BASE_URL, or the port that speaks TLS",
    **dict.fromkeys(("ECONNRESET", "tls_alert", "tls_closed", "tls_timeout", "tls_other"), _PEER),
    **dict.fromkeys(("closed", "head_cut", "malformed_head", "malformed_body"), _SERVER),
    **dict.fromkeys(("redirect", "too_large", "unusable", "silent"), _SERVER),
    **dict.fromkeys(("key_quoted", "unreadable"), "report that to whoever runs that server"),
    "key_refused": "renew CEREBRAS_API_KEY",
}
"""What to do about each cause of ``CAUSES``."""

_QUOTA = "wait, or have the account's quota raised"
_STATUSES = {
    402: "the account wants to be paid for, at Cerebras",
    403: "this account, or this machine's address, may not ask: see to it at Cerebras",
    404: "there is no /v1/models: correct the path in CEREBRAS_BASE_URL",
    429: f"the account's quota is used up: {_QUOTA}",
}

# Of redis-py's errors, by the names of their classes and of those that they are made from.
_REDIS_FIXES = {
    "AuthenticationError": "correct user and password in LIMITS_STORE",
    "NoPermissionError": "give that user the right to run scripts and to write",
    "ReadOnlyError": "name the primary in LIMITS_STORE: this one only reads",
    "OutOfMemoryError": "it is out of memory: raise maxmemory",
    "BusyLoadingError": "it is loading its data: try again later",
    "TimeoutError": "it does not respond in LIMITS_STORE_TIMEOUT: see to the network",
    "ConnectionError": "nothing responds: correct host and port in LIMITS_STORE, or start it",
}


async def examine(config: Config, environment: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Examine the way to the API, and Redis; a finding for each step."""
    yield Finding("proxies", True, describe_proxies(config.upstream_proxy, environment))
    async for finding in _examine_upstream(config):
        yield finding
    if config.limits_store is not None:
        work = partial(_use_redis, config.limits_store, config.limits_store_timeout)
        fix = await anyio.to_thread.run_sync(work)
        yield Finding("redis", not fix, f"To do: {fix}" if fix else "takes scripts, and writes")


async def _examine_upstream(config: Config) -> AsyncIterator[Finding]:
    api, proxy = config.cerebras_base_url, config.upstream_proxy
    host, port = (api.host, api.port) if proxy is None else (proxy.host, proxy.port)
    name, addresses = await _look_up(config, host, port)
    yield name
    if not name.ok:
        return
    reached = await _try_addresses(config, addresses, port)
    yield reached
    if not reached.ok:
        return
    secured = await _connect(config)
    for finding in secured:
        yield finding
    if not secured[-1].ok:
        return
    try:
        reply = await _request_models(config)
    except ProxyError as error:
        yield _failure("request", error.cause or "unusable", error.address)
        return
    for finding in _findings_of(reply, config):
        yield finding


def _failure(subject: str, cause: str, address: str | None = None) -> Finding:
    where = f" at {address}" if address else ""
    return Finding(subject, False, f"{cause}{where}: {CAUSES[cause]}. To do: {FIXES[cause]}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _cut(text: str) -> str:
    """A text from outside: printable ASCII, and not too long."""
    return ascii(text)[1:-1][:_CHARACTERS]


def _names(names: Collection[str]) -> str:
    shown = ", ".join(map(_cut, sorted(names)[:_NAMES_SHOWN]))
    rest = len(names) - _NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


# The connection


async def _look_up(config: Config, host: str, port: int) -> tuple[Finding, list[str]]:
    """The addresses of a host."""
    clock = loop_clock()
    began_at = clock()
    try:
        with anyio.fail_after(config.upstream_connect_timeout):
            found = await find_addresses(host, port)
    except TimeoutError:
        return _failure("name", "lookup_timeout", host), []
    except OSError as error:
        return _failure("name", cause_of(error), host), []
    addresses = list(dict.fromkeys(str(address[0]) for _, address in found))[:_MAX_ADDRESSES]
    took = _ms(clock() - began_at)
    return Finding("name", True, f"{host} is {', '.join(addresses)} ({took})"), addresses


async def _try_addresses(config: Config, addresses: list[str], port: int) -> Finding:
    """Connect to each address; one that accepts is enough."""
    clock = loop_clock()
    times: dict[str, float] = {}
    causes: dict[str, str] = {}

    async def attempt(address: str) -> None:
        began_at = clock()
        try:
            with anyio.fail_after(config.upstream_connect_timeout):
                (await connect_tcp(address, port)).close()
            times[address] = clock() - began_at
        except TimeoutError:
            causes[address] = "tcp_timeout"
        except OSError as error:
            causes[address] = cause_of(error)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(attempt, address)
    failed = [f"{causes[each]} at {each}" for each in addresses if each in causes]
    if not times:
        cause = causes[addresses[0]]
        text = f"port {port}: {', '.join(failed)}: {CAUSES[cause]}. To do: {FIXES[cause]}"
        return Finding("addresses", False, text)
    accepted = [f"{each} in {_ms(times[each])}" for each in addresses if each in times]
    more = f"; but {', '.join(failed)}" if failed else ""
    return Finding("addresses", True, f"port {port} accepts: {', '.join(accepted)}{more}")


async def _connect(config: Config) -> list[Finding]:
    """Connect as a request would: through the proxy on the way, where there is one, and TLS."""
    api, proxy = config.cerebras_base_url, config.upstream_proxy
    context = ssl_context_for(config)
    clock, found, subject = loop_clock(), list[Finding](), "tls" if proxy is None else "egress"
    began_at, address, raw = clock(), None, None
    try:
        with anyio.fail_after(config.upstream_connect_timeout):
            raw = await connect_for(proxy)(api.host, api.port)
            address, connected_at = raw.peer, clock()
            if proxy is not None:
                took = _ms(connected_at - began_at)
                found.append(Finding(subject, True, f"{proxy} connects to the API ({took})"))
            subject = "tls"
            stream = await start_tls(raw, context, api.host)
            found.append(_describe_tls(stream, context, clock() - connected_at))
    except TimeoutError:
        found.append(_failure(subject, "tcp_timeout" if raw is None else "tls_timeout", address))
    except (BrokenResourceError, EndOfStream, OSError) as error:  # ssl.SSLError is one
        found.append(_failure(subject, cause_of(error), getattr(error, "address", None) or address))
    finally:
        if raw is not None:
            raw.close()
    return found


def _describe_tls(stream: ByteStream, context: ssl.SSLContext | None, took: float) -> Finding:
    if context is None:
        return Finding("tls", True, "none, because CEREBRAS_BASE_URL is http://")
    attributes: Mapping[Any, Any] = stream.extra_attributes
    certificate: Any = attributes[TLSAttribute.peer_certificate]()
    version = attributes[TLSAttribute.tls_version]()
    issuer = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    by = " ".join(filter(None, map(issuer.get, ("organizationName", "commonName"))))
    ends_at = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = int((ends_at - time.time()) / _DAY)
    until = datetime.fromtimestamp(ends_at, UTC).date()
    text = f"{version}, certificate by {_cut(by)} until {until}, in {days} days ({_ms(took)})"
    return Finding("tls", True, text)


# The request


class _ModelsReply(NamedTuple):
    """The response to ``GET /v1/models``. ``sent_at`` and ``arrived_at`` are of this machine's
    clock, in Unix time; ``took``: seconds."""

    status: int
    headers: Headers
    body: bytes
    quota: Quota
    sent_at: float
    arrived_at: float
    took: float


async def _request_models(config: Config) -> _ModelsReply:
    """Raises ProxyError."""
    client = UpstreamClient(config, connect_for(config.upstream_proxy))
    clock = loop_clock()
    exchange = Exchange(started_at=clock())
    try:
        with anyio.fail_after(_LIST_TIMEOUT):
            sent_at = time.time()
            with await client.send(exchange, UpstreamRequest("GET", "/v1/models")) as response:
                arrived_at = time.time()
                body = await response.read_all(_LIST_MAX_BYTES)
    except TimeoutError:
        raise InvalidResponse("silent", exchange.upstream_address) from None
    except ProxyError as error:
        error.address = error.address or exchange.upstream_address
        raise
    finally:
        client.pool.close()
    took = clock() - exchange.started_at
    status, headers = response.status, response.headers
    return _ModelsReply(status, headers, body, exchange.quota, sent_at, arrived_at, took)


async def fetch_models(config: Config) -> frozenset[str] | None:
    """The models that the API lists for the account; None where it gives no list. Raises
    ProxyError."""
    reply = await _request_models(config)
    return _read_models(reply.body) if reply.status == 200 else None


def _read_models(body: bytes) -> frozenset[str] | None:
    """The names in a list of models; None where it is none."""
    try:
        entries = orjson.loads(body)["data"]
        names = {entry["id"] for entry in entries}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    sound = isinstance(entries, list) and 0 < len(names) <= _MAX_MODELS
    return frozenset(names) if sound and all(isinstance(name, str) for name in names) else None


def _findings_of(reply: _ModelsReply, config: Config) -> Iterator[Finding]:
    if reply.status == 200:
        yield Finding("key", True, f"accepted, GET /v1/models took {_ms(reply.took)}")
        listed = _read_models(reply.body)
        if listed is None:
            yield _failure("models", "unusable")
        else:
            yield from _compare_models(config, listed)
    else:
        fix = _STATUSES.get(reply.status, FIXES["unusable"])
        yield Finding("request", False, f"status {reply.status}. To do: {fix}")
    yield _read_quota(reply.quota)
    yield _compare_clocks(reply)


def _compare_models(config: Config, listed: frozenset[str]) -> Iterator[Finding]:
    """Whether the models that the settings name are in the API's list."""
    yield Finding("models", True, f"{len(listed)}: {_names(listed)}")
    keys = () if config.ape_api_keys_file is None else config.ape_api_keys_file.keys
    prices = config.model_prices
    named: dict[str, tuple[Collection[str], str]] = {
        "default model": ((config.default_model,), "set DEFAULT_MODEL to one that is"),
        "aliases": (config.model_aliases.values(), "correct MODEL_ALIASES"),
        "prices": (() if prices.is_built_in else prices.prices, "correct MODEL_PRICES"),
        **{
            f"key {key.name}": (key.models, "correct models in APE_API_KEYS_FILE")
            for key in keys
            if key.models is not None
        },
    }
    for subject, (models, fix) in named.items():
        missing = set(models) - listed
        if missing:
            yield Finding(subject, False, f"not listed: {_names(missing)}. To do: {fix}")
        elif models:
            yield Finding(subject, True, f"listed: {_names(models)}")


def _read_quota(quota: Quota) -> Finding:
    spent = [f"{kind} per {window}" for (kind, window), left in quota.remaining.items() if not left]
    if spent:
        return Finding("quota", False, f"nothing is left of {', '.join(spent)}. To do: {_QUOTA}")
    parts = [
        f"{left:g} of {quota.limit.get(key, left):g} {key[0]} per {key[1]}"
        for key, left in quota.remaining.items()
    ]
    return Finding("quota", True, ", ".join(parts) or "the response has no quota headers")


def _compare_clocks(reply: _ModelsReply) -> Finding:
    """How far this machine's clock is from the API's."""
    text = dict(reply.headers).get(b"date", b"").decode("latin-1")
    try:
        date = parsedate_to_datetime(text)
        theirs = date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return Finding("clock", True, "the response has no Date that can be read")
    # A Date has no fraction of its second.
    skew = max(theirs - reply.arrived_at, reply.sent_at - theirs - 1, 0.0)
    if skew <= _SKEW_ALLOWED:
        return Finding("clock", True, f"within {_SKEW_ALLOWED:g} s of the API's")
    way = "behind" if theirs > reply.arrived_at else "ahead of"
    text = f"{skew:.0f} s {way} the API's. To do: {FIXES['not_yet_valid']}"
    return Finding("clock", False, text)


# Redis


def _use_redis(store: str, timeout: float) -> str:
    """Write a key that vanishes at once, by a script as limits use one; what to do where that
    fails, else nothing."""
    from redis import Redis, RedisError
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    client = Redis.from_url(store, retry=Retry(NoBackoff(), 0), **options)
    script = "return redis.call('SET', KEYS[1], '1', 'PX', 1)"
    try:
        client.eval(script, 1, "{ape-cerebras}:check")
    except (RedisError, OSError) as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = next((kind for kind in kinds if kind in _REDIS_FIXES), None)
        return _REDIS_FIXES.get(known or "", "it refuses the script: is it a Redis, 5 or newer?")
    finally:
        client.close()
    return ""
