"""The frozen ``Config``: every limit and timeout by name, read and checked once at the start.

``SETTINGS`` has a row per environment variable with its parser and meaning; the field of ``Config``
has the variable's name in lower case and holds the default. Defaults without a comment follow
nginx, HAProxy and uvicorn where these agree.
"""

import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .environment import (
    describe_proxies,
    find_proxy,
    grace_advice,
    near_misses,
    without_meaning,
)
from .keys import ClientKey, KeysFile
from .prices import PriceTable
from .settings import BUCKETS, SETTINGS, Setting
from .values import (
    CompletionBounds,
    EgressProxy,
    Networks,
    Origin,
    has_opentelemetry,
    read_file,
    reject_unfinished,
)

__all__ = ("Config", "ConfigError", "contradictions", "doubts", "read_address")

_MAX_SECRET_FILE_BYTES = 64 * 1024
_MAY_BE_A_KEY = r"sk-|@|[?&][^=]*=|[A-Za-z0-9_-]{24}"
_SHOWN = 64  # characters of a refused value
_SERVERS_KEEP_ALIVE = 75.0  # seconds; nginx's default, and the shortest that is common

# What the agents of 2026 send: any that follow the common name, Claude Code, Docker's cagent,
# opencode, and Codex in its older and newer form.
_SESSION_HEADERS = (
    *(b"x-session-id", b"x-claude-code-session-id", b"x-cagent-session-id"),
    *(b"x-opencode-session", b"session-id", b"session_id"),
)
_AGENT_HEADERS = (b"x-agent-id", b"x-claude-code-agent-id", b"x-cagent-id")

_CEREBRAS = Origin("https", "api.cerebras.ai", 443)


class ConfigError(Exception):
    """Wrong settings: a text for each, with the variable's name and never a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _connections_the_file_limit_allows() -> int:
    """Half of the open files allowed, because a client connection may need an upstream one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65_536 if soft == resource.RLIM_INFINITY else max(16, min(65_536, (soft - 64) // 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings. Durations are seconds, sizes are bytes; ``SETTINGS`` has the meanings."""

    cerebras_api_key: str = field(repr=False)
    cerebras_base_url: Origin = _CEREBRAS
    upstream_proxy: EgressProxy | None = field(default=None, repr=False)
    ape_api_key: tuple[ClientKey, ...] = field(default=(), repr=False)
    ape_api_keys_file: KeysFile | None = None
    log_level: str = "info"
    run_id: str | None = None
    log_peer: bool = True
    trusted_proxies: Networks = ()
    session_id_headers: tuple[bytes, ...] = _SESSION_HEADERS
    agent_id_headers: tuple[bytes, ...] = _AGENT_HEADERS
    cors_origins: tuple[bytes, ...] = ()
    host: str = "0.0.0.0"  # noqa: S104 - a container serves its network
    port: int = 8000
    metrics_port: int | None = None
    metrics_enabled: bool = True
    metrics_on_main_port: bool = True
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_traces_endpoint: str | None = None
    otel_exporter_otlp_metrics_endpoint: str | None = None
    otel_exporter_otlp_protocol: str = "http/protobuf"
    otel_traces_exporter: str = "otlp"
    otel_metrics_exporter: str | None = None
    default_model: str = "llama3.1-8b"
    model_aliases: Mapping[str, str] = field(default_factory=dict)
    model_prices: PriceTable = field(default_factory=PriceTable.built_in)
    price_catalogue: bool = False
    async_workers: int = 1
    backend: str = "asyncio"
    max_concurrent_requests: int | None = None
    max_queue_seconds: float | None = None
    max_queue_length: int = 1000
    rate_limit_per_minute: int | None = None
    quota_pacing: bool = False
    max_completion_tokens_default: int | None = None
    max_completion_tokens_cap: int | None = None
    limits_store: str | None = field(default=None, repr=False)
    # A Redis in the same network responds in about a millisecond.
    limits_store_timeout: float = 0.25
    limits_store_outage: str = "open"
    connection_pool_size: int = 1000
    keep_alive_connections: int = 100
    warm_connections: int = 1
    # An idle connection must be closed here before upstream closes it; nginx's 75 s is the most
    # common timeout there.
    upstream_keep_alive_timeout: float = 60.0
    # The API's address may change, and a busy connection is never idle for long. nginx closes its
    # own after an hour; DNS records in a cloud are valid for one to five minutes.
    upstream_max_connection_age: float = 600.0
    upstream_connect_timeout: float = 5.0
    upstream_first_byte_timeout: float = 60.0
    upstream_idle_timeout: float = 60.0
    upstream_gzip_min_bytes: int | None = None
    retry_attempts: int = 0
    retry_backoff: float = 1.5
    circuit_failures: int | None = None
    request_timeout: float | None = None
    client_head_timeout: float = 10.0
    client_body_timeout: float = 30.0
    client_write_timeout: float = 60.0
    keep_alive_timeout: float = 75.0
    max_header_bytes: int = 16 * 1024
    max_headers: int = 100
    max_target_bytes: int = 8 * 1024
    max_body_bytes: int = 10 * 1024 * 1024
    max_connections: int = field(default_factory=_connections_the_file_limit_allows)
    max_requests_per_connection: int = 10_000
    graceful_shutdown_timeout: float = 10.0
    ttft_target_ms: float | None = None
    ttft_mode: str = "passthrough"
    kernel_stamps: bool = True
    histogram_buckets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ssl_cert_file: str | None = None
    ssl_cert_dir: str | None = None
    # No setting: whether the clients' keys are set, and empty, as compose files pass them on.
    keys_are_empty: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **overrides: Any) -> "Config":
        """Read every setting; ``overrides`` (by field name, already parsed) win over variables.

        Raises ConfigError with all problems at once.
        """
        wanted = [each for each in SETTINGS if each.variable.lower() not in overrides]
        values = {"keys_are_empty": _has_empty_keys(environment), **overrides}
        values |= _read_all(environment, wanted)
        if "upstream_proxy" not in values:
            try:
                api = values.get("cerebras_base_url", _CEREBRAS)
                values["upstream_proxy"] = find_proxy(environment, api)
            except ValueError as problem:
                raise ConfigError([str(problem)]) from None
        config = cls(**values)
        on_some_port = config.metrics_on_main_port or config.scrapers_port is not None
        if config.metrics_enabled and not on_some_port:
            raise ConfigError(["METRICS_ON_MAIN_PORT off needs a METRICS_PORT other than PORT"])
        default, cap = config.completion_bounds
        if default is not None and cap is not None and default > cap:
            variable = "MAX_COMPLETION_TOKENS"
            raise ConfigError([f"{variable}_DEFAULT must not be above {variable}_CAP"])
        return config

    @property
    def scrapers_port(self) -> int | None:
        """The separate port for scrapers; None if there is none."""
        is_same = self.metrics_port == self.port != 0
        return None if is_same or not self.metrics_enabled else self.metrics_port

    @property
    def traces_url(self) -> str | None:
        """The URL that spans are sent to; None where they are not."""
        base = self.otel_exporter_otlp_endpoint
        url = self.otel_exporter_otlp_traces_endpoint or (base and f"{base.rstrip('/')}/v1/traces")
        return url if "otlp" in self.otel_traces_exporter.split(",") else None

    @property
    def otlp_metrics_url(self) -> str | None:
        """The URL that metrics are sent to by OTLP; None where they are not."""
        base, exporter = self.otel_exporter_otlp_endpoint, self.otel_metrics_exporter
        if exporter is not None and "otlp" not in exporter.split(","):
            return None
        by_name = base and exporter and f"{base.rstrip('/')}/v1/metrics"
        return self.otel_exporter_otlp_metrics_endpoint or by_name

    @property
    def otlp_obstacle(self) -> str:
        """What keeps spans and metrics from a collector that is named; empty if nothing does. It is
        no error: a platform sets these variables for every program that it runs."""
        if self.traces_url is None and self.otlp_metrics_url is None:
            return ""
        if self.otel_exporter_otlp_protocol != "http/protobuf":
            return "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf: no traces are sent"
        if not has_opentelemetry():
            return "no traces are sent: pip install 'ape-cerebras[otel]' for OpenTelemetry's SDK"
        return ""

    @property
    def queue_timeout(self) -> float:
        """The longest wait of a chat request for admission. The default with quota pacing is the
        time in which a bucket of a minute refills; without, requests do not wait."""
        if self.max_queue_seconds is not None:
            return self.max_queue_seconds
        return 60.0 if self.quota_pacing else 0.0

    @property
    def known_models(self) -> frozenset[str]:
        """The models that metrics and quotas are kept of, however many names clients send."""
        named = (self.default_model, *self.model_aliases.values())
        return frozenset((*named, *self.model_prices.prices))

    @property
    def completion_bounds(self) -> CompletionBounds:
        return CompletionBounds(self.max_completion_tokens_default, self.max_completion_tokens_cap)

    @property
    def buckets(self) -> Mapping[str, tuple[float, ...]]:
        """Upper bounds of the histogram buckets by metric family."""
        return {**BUCKETS, **self.histogram_buckets}

    def visible(self) -> dict[str, str]:
        """Every setting as text in the table's order, with secrets hidden."""
        shown = {}
        for setting in SETTINGS:
            value = getattr(self, setting.variable.lower())
            if setting.secret:
                shown[setting.variable] = "(set)" if value else "(not set)"
            else:
                shown[setting.variable] = _as_text(value)
        return shown

    @property
    def open_warning(self) -> str:
        """That every client is served, and why; empty where clients need a key."""
        if self.ape_api_key or self.ape_api_keys_file is not None:
            return ""
        if self.keys_are_empty:
            return "APE_API_KEY is set, and empty: every client is served"
        return "APE_API_KEY is not set: every client is served"


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items()) or "(not set)"
    if isinstance(value, PriceTable):
        return ", ".join(
            f"{model}={'/'.join(map(str, price))}" for model, price in value.prices.items()
        )
    if type(value) is tuple:
        return ",".join(_as_text(item) for item in value) or "(not set)"
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool):
        return "on" if value else "off"
    return "(not set)" if value is None else str(value)


def read_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Read HOST and PORT alone, for commands that need no key. Raises ConfigError."""
    wanted = [each for each in SETTINGS if each.variable in ("HOST", "PORT")]
    config = Config(cerebras_api_key="", **_read_all(environment, wanted))
    return config.host, config.port


def _has_empty_keys(environment: Mapping[str, str]) -> bool:
    guards = [setting.variable for setting in SETTINGS if setting.guards]
    return any(environment.get(name + end) == "" for name in guards for end in ("", "_FILE"))


def _read_all(environment: Mapping[str, str], settings: list[Setting]) -> dict[str, Any]:
    """The values of the settings that are set, by field name. Raises ConfigError."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for setting in settings:
        source = ""
        try:
            source, text = _find(environment, setting)
            if source.endswith("_FILE") and setting.secret:
                text = _read_secret(text)
            if text:
                reject_unfinished(text)
                api = values.get("cerebras_base_url", _CEREBRAS)
                is_used = api.scheme == "https" or not setting.of_https
                values[setting.variable.lower()] = setting.parse(text) if is_used else text
            elif setting.required:
                problems.append(f"{setting.variable} is required, except with --demo")
        except ValueError as problem:
            problems.append(f"{source} {problem}{_quoted(setting, environment)}".lstrip())
    if problems:
        raise ConfigError(problems)
    return values


def _quoted(setting: Setting, environment: Mapping[str, str]) -> str:
    """The value that is refused, for the message, unless it is a secret or looks like one."""
    text = environment.get(setting.variable, "").strip()
    if setting.secret or not text or re.search(_MAY_BE_A_KEY, text):
        return ""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f" (it is {shown!a})"


def _find(environment: Mapping[str, str], setting: Setting) -> tuple[str, str]:
    """The variable that holds the setting, and its text, empty where it is unset. A secret may be
    in a file instead: then the variable that has its path, and the path.

    Raises ValueError if both are set, or if the clients' keys are white space and nothing else.
    """
    variable, file_variable = setting.variable, setting.variable + "_FILE"
    given = {variable: environment.get(variable, "")}
    if setting.secret:
        given[file_variable] = environment.get(file_variable, "")
    found = [(name, text.strip()) for name, text in given.items() if text.strip()]
    if len(found) > 1:
        raise ValueError(f"{variable} and {file_variable} are both set")
    blank = [name for name, text in given.items() if text]
    if blank and not found and setting.guards:
        raise ValueError(f"{blank[0]} is white space and nothing else")
    return found[0] if found else (variable, "")


def _read_secret(path: str) -> str:
    content = read_file(path, "a secret", _MAX_SECRET_FILE_BYTES)
    if not content.strip():
        raise ValueError("names an empty file")
    return content.decode("latin-1").strip()


# What deserves a look in settings that are not wrong: ``check`` and the start say it. Texts have
# names of variables and numbers, and no other value.

_RULES = (
    (
        *("CONNECTION_POOL_SIZE", "MAX_CONCURRENT_REQUESTS"),
        "requests beyond it wait for a connection for UPSTREAM_CONNECT_TIMEOUT and then get 503",
    ),
    ("MAX_CONNECTIONS", "MAX_CONCURRENT_REQUESTS", "so many requests cannot arrive"),
    ("CONNECTION_POOL_SIZE", "WARM_CONNECTIONS", "so many connections cannot be kept ready"),
    (
        *("REQUEST_TIMEOUT", "UPSTREAM_CONNECT_TIMEOUT"),
        "the exchange ends before the connection may",
    ),
    (
        *("REQUEST_TIMEOUT", "MAX_QUEUE_SECONDS"),
        "the exchange ends before its wait in the queue may",
    ),
    (
        *("UPSTREAM_MAX_CONNECTION_AGE", "UPSTREAM_KEEP_ALIVE_TIMEOUT"),
        "no connection is idle for so long",
    ),
)
"""A setting, the one that it must not be below, and what happens where it is."""


def contradictions(config: Config) -> list[str]:
    """A text for each pair of settings that do not fit."""
    in_effect = {"MAX_QUEUE_SECONDS": config.queue_timeout}
    found = []
    for *names, effect in _RULES:
        low, high = (in_effect.get(name, getattr(config, name.lower())) for name in names)
        if low is not None and high is not None and low < high:
            found.append(f"{names[0]} ({low:g}) is below {names[1]} ({high:g}): {effect}")
    if b"*" in config.cors_origins and not config.open_warning:
        found.append(
            "CORS_ORIGINS is *, and clients need keys: every web page may use a key that its "
            "visitor gives it"
        )
    keep_alive = config.upstream_keep_alive_timeout
    if keep_alive > _SERVERS_KEEP_ALIVE:
        found.append(
            f"UPSTREAM_KEEP_ALIVE_TIMEOUT ({keep_alive:g}) is above {_SERVERS_KEEP_ALIVE:g}, after "
            "which most servers close an idle connection: requests may meet one that is closing"
        )
    return found


def doubts(config: Config, environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What deserves a look in settings that are not wrong: level, message, and the problem."""
    found = [("warning", "Contradiction", text) for text in contradictions(config)]
    found += [("warning", "No setting", text) for text in near_misses(environment)]
    if config.otlp_obstacle:
        found.append(("warning", "No traces", config.otlp_obstacle))
    if grace := grace_advice(config.graceful_shutdown_timeout, environment):
        found.append(("info", "Grace period", grace))
    way = describe_proxies(config.upstream_proxy, environment)
    if "HTTPS_PROXY" in way.upper():  # UPSTREAM_PROXY would have been meant
        level = "info" if config.upstream_proxy is None else "warning"
        found.append((level, "Proxy on the way", way))
    if former := without_meaning(environment):
        text = f"{', '.join(former)}: of the older proxy, without a meaning here"
        found.append(("debug", "No setting", text))
    return found
