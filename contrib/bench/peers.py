"""The proxies that ours is measured beside: how each is found, set up and started.

A peer is a row of ``PEERS``. Its configuration is what its users would have for this job: one
worker, connections to upstream kept, nothing of a stream buffered, a key required from clients. In
commands, environments and configurations ``@NAME@`` stands for a value of ``Setting.values``.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from processes import PROXY_CORE, Process, free_port, listening

HERE = Path(__file__).resolve().parent
TOOLS = HERE / ".venv" / "bin"  # the peers' own environment, apart from the project's
CONFIGS = HERE / "configs"
PORTKEY = HERE / "node_modules" / "@portkey-ai" / "gateway"
CLIENT_KEY = "sk-bench-key"
OURS = "ape_cerebras"
_BY_MAKE = "make bench-peers"
_LISTENS = ("--host", "127.0.0.1", "--port", "@PORT@")


@dataclass(frozen=True)
class Peer:
    name: str
    needs: tuple[str, ...]  # programs and files without which it cannot be started
    install: str  # how to get them
    command: tuple[str, ...]
    version: tuple[str, ...]  # a command that prints it
    environment: dict[str, str] = field(default_factory=dict)
    config: str = ""  # a file of configs/
    headers: tuple[str, ...] = ()  # that its clients send
    imports: tuple[str, str] = ("", "")  # a Python, and the module whose import time counts
    scales: bool = False  # to @WORKERS@ workers
    timeout: float = 20.0  # seconds until it has to listen, and again to respond
    schemes: tuple[str, ...] = ("http", "https")  # of upstreams that it can use
    counted: tuple[str, ...] = ()  # its command where instructions are counted, if another

    def missing(self) -> list[str]:
        needs = (filled(need, {}) for need in self.needs)
        return [need for need in needs if not (shutil.which(need) or Path(need).exists())]

    def version_found(self) -> str:
        command = [filled(part, {}) for part in self.version]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "?"


def _version_of(package: str) -> tuple[str, ...]:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return ("@TOOLS@/python", "-c", code)


def _floor(name: str) -> Peer:
    """The least that a relay on our libraries costs; see ``configs/floor_sockets.py``."""
    script = f"@CONFIGS@/{name.replace('-', '_')}.py"
    code = "import h11, httpcore; print(httpcore.__version__, 'h11', h11.__version__)"
    return Peer(
        name,
        needs=("@PYTHON@",),
        install="make run",
        command=("@PYTHON@", script, "@PORT@", "@UPSTREAM_PORT@"),
        version=("@PYTHON@", "-c", code),
        schemes=("http",),
    )


def _router(name: str, *more: str) -> Peer:
    """A router in Rust, of one upstream."""
    return Peer(
        name,
        needs=(f"@TOOLS@/{name}",),
        install=_BY_MAKE,
        command=(
            *(f"@TOOLS@/{name}", *more, *_LISTENS, "--worker-urls", "@URL@"),
            *("--policy", "round_robin", "--prometheus-port", "@SPARE_PORT@"),
            *("--api-key", "@KEY@", "--request-timeout-secs", "60"),
        ),
        version=_version_of(name),
        environment={"SSL_CERT_FILE": "@CA@"},
        timeout=60.0,
    )


PEERS = (
    Peer(
        OURS,
        needs=("@PYTHON@",),
        install="make run",
        command=("@PYTHON@", "-m", "ape_cerebras", "serve"),
        version=("@PYTHON@", "-c", "from ape_cerebras.version import VERSION; print(VERSION)"),
        # Logs, metrics, the check of keys and all limits are on by themselves.
        environment={
            "CEREBRAS_API_KEY": "upstream-key",
            "CEREBRAS_BASE_URL": "@URL@",
            "APE_API_KEY": "@KEY@",
            "SSL_CERT_FILE": "@CA@",
            "HOST": "127.0.0.1",
            "PORT": "@PORT@",
            "BACKEND": "@BACKEND@",
            "CONNECTION_POOL_SIZE": "2000",
            "KEEP_ALIVE_CONNECTIONS": "1100",
            "REQUEST_TIMEOUT": "60",
            "TTFT_TARGET_MS": "200",
            "ASYNC_WORKERS": "@WORKERS@",
        },
        scales=True,
        imports=("@PYTHON@", "ape_cerebras.server"),
        counted=("@PYTHON@", "@CONFIGS@/steady.py", "serve"),
    ),
    _floor("floor"),
    _floor("floor-h11"),
    _floor("floor-coro"),
    Peer(
        "nginx",
        needs=("nginx",),
        install="apt-get install nginx",
        command=("nginx", "-p", "@DIR@", "-c", "@DIR@/nginx.conf"),
        version=("nginx", "-v"),
        config="nginx.conf",
        counted=("nginx", "-p", "@DIR@", "-c", "@DIR@/nginx.conf", "-g", "master_process off;"),
    ),
    Peer(
        "haproxy",
        needs=("haproxy",),
        install="apt-get install haproxy",
        command=("haproxy", "-f", "@DIR@/haproxy.cfg"),
        version=("haproxy", "-v"),
        config="haproxy.cfg",
    ),
    Peer(
        "envoy",
        needs=("@TOOLS@/envoy",),
        install=_BY_MAKE,
        command=(
            *("@TOOLS@/envoy", "-c", "@DIR@/envoy.yaml", "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "error"),
        ),
        version=("@TOOLS@/envoy", "--version"),
        config="envoy.yaml",
    ),
    Peer(
        "fastapi",
        needs=("@TOOLS@/uvicorn",),
        install=_BY_MAKE,
        command=(
            *("@TOOLS@/uvicorn", "fastapi_proxy:app", "--app-dir", "@DIR@", *_LISTENS),
            *("--timeout-keep-alive", "75"),
        ),
        version=_version_of("fastapi"),
        environment={
            "UPSTREAM_URL": "@URL@",
            "CLIENT_KEY": "@KEY@",
            "SSL_CERT_FILE": "@CA@",
        },
        config="fastapi_proxy.py",
        imports=("@TOOLS@/python", "fastapi, httpx, prometheus_client, uvicorn"),
    ),
    Peer(
        "litellm",
        needs=("@TOOLS@/litellm",),
        install=_BY_MAKE,
        command=(
            *("@TOOLS@/litellm", "--config", "@DIR@/litellm.yaml", *_LISTENS),
            *("--keepalive_timeout", "75"),
        ),
        version=_version_of("litellm"),
        environment={"SSL_CERT_FILE": "@CA@", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        config="litellm.yaml",
        imports=("@TOOLS@/python", "litellm.proxy.proxy_server"),
        timeout=90.0,
    ),
    _router("sglang-router", "launch", "--max-concurrent-requests", "4096"),
    _router("vllm-router"),
    Peer(
        "portkey",
        needs=("node", f"{PORTKEY}/build/start-server.js"),
        install=f"a Node, and {_BY_MAKE}",
        command=("node", f"{PORTKEY}/build/start-server.js", "--headless", "--port=@PORT@"),
        version=("node", "-p", f"require('{PORTKEY}/package.json').version"),
        environment={"NODE_EXTRA_CA_CERTS": "@CA@", "NODE_ENV": "production"},
        headers=("x-portkey-provider: openai", "x-portkey-custom-host: @URL@/v1"),
    ),
)


def ours_with(environment: Mapping[str, str], name: str = OURS) -> Peer:
    """Our proxy with other settings."""
    [peer] = (peer for peer in PEERS if peer.name == OURS)
    return replace(peer, name=name, environment={**peer.environment, **environment})


# The mock upstream, without a proxy: what a proxy adds is taken from it.
DIRECT = Peer("direct", needs=(), install="", command=(), version=())

# The last lines of its configuration.
_ENVOY_TLS = """\
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: localhost
          common_tls_context: {validation_context: {trusted_ca: {filename: "%s"}}}
"""


def filled(text: str, values: dict[str, str]) -> str:
    places = {"PYTHON": sys.executable, "TOOLS": str(TOOLS), "CONFIGS": str(CONFIGS)}
    known = {**places, **values}
    return re.sub(r"@([A-Z_]+)@", lambda found: known[found[1]], text)


@dataclass(frozen=True)
class Setting:
    """Where peers run: their upstream, and a directory for what they write."""

    scheme: str
    upstream_port: int
    ca: str
    backend: str
    directory: Path

    def values(self, port: int, directory: Path, workers: int = 1) -> dict[str, str]:
        tls = f"ssl verify required verifyhost localhost ca-file {self.ca}"
        return {
            "PORT": str(port),
            "SPARE_PORT": str(free_port()),
            "UPSTREAM_PORT": str(self.upstream_port),
            "SCHEME": self.scheme,
            "URL": f"{self.scheme}://127.0.0.1:{self.upstream_port}",
            "CA": self.ca,
            "HAPROXY_TLS": tls if self.scheme == "https" else "",
            "ENVOY_TLS": _ENVOY_TLS % self.ca if self.scheme == "https" else "",
            "KEY": CLIENT_KEY,
            "BACKEND": self.backend,
            "DIR": str(directory),
            "WORKERS": str(workers),
        }


@dataclass
class Running:
    """A peer that listens."""

    peer: Peer
    port: int
    process: Process
    listening_after: float  # seconds
    headers: tuple[str, ...] = ()

    @property
    def imports(self) -> tuple[str, str]:
        python, module = self.peer.imports
        return filled(python, {}), module


def start(
    peer: Peer, setting: Setting, workers: int = 1, cores: Collection[int] = (PROXY_CORE,)
) -> Running:
    """Start it; it listens, or it is ended and ``ConnectionError`` has what it wrote last."""
    port = free_port()
    directory = setting.directory / f"{peer.name}-{port}"
    directory.mkdir()
    values = setting.values(port, directory, workers)
    if peer.config:
        text = (CONFIGS / peer.config).read_text()
        (directory / peer.config).write_text(filled(text, values))
    command = [filled(part, values) for part in peer.command]
    environment = {name: filled(value, values) for name, value in peer.environment.items()}
    set_ones = {name: value for name, value in environment.items() if value}
    process = Process(cores, command, set_ones, directory / "output")
    after = listening(port, process, peer.timeout)
    if after == float("inf"):
        process.stop()
        lines = process.output.read_text(errors="replace").strip().splitlines()[-3:]
        raise ConnectionError(f"{peer.name} does not listen: " + " | ".join(lines))
    headers = tuple(filled(header, values) for header in peer.headers)
    return Running(peer, port, process, after, headers)
