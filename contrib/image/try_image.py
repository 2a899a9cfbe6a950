#!/usr/bin/env python3
"""Build the image without a container engine, run it and test it: ``make image-test``.

debootstrap makes a base that stands for python:3.13-slim, Debian with Python 3.13, from the mirror
that apt uses here; buildah builds the image on it; runc runs that as a hardened container, on both
event loops. As root, on Debian.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from build_image import ROOT, TAG, build, revision
from container import Container, Run, running
from write_locks import LOCK

BASE = "localhost/python:3.13"
SUITE = "trixie"
PACKAGES = "ca-certificates,python3,python3-venv"
CACHE = ROOT / ".image"
MOST_ADDED = 32_000_000  # bytes, on top of the base
TOOLS = ("buildah", "debootstrap", "runc")
TIMEOUT = 30.0  # seconds
VERSION = re.findall('VERSION = "(.+)"', (ROOT / "ape_cerebras/version.py").read_text())[0]
ANY_USER = "65534:65534"  # the image has no file that only its own user may read
MIB = 2**20
# How the proxy is started, and its memory, which the programs that test it inside share.
WAYS = (
    (("--backend", "asyncio"), 64 * MIB),
    (("--backend", "trio"), 64 * MIB),
    (("--workers", "2"), 128 * MIB),
)

CGROUP_LIMITS = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"  # 1 and 2
CHAT = "http://localhost:8000/v1/chat/completions"
JSON = "Content-Type: application/json"
REQUEST = '{"model":"llama3.1-8b","messages":[{"role":"user","content":"Hello!"}]%s}'
STREAM = REQUEST % ',"stream":true'


class Store:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        storage = ("--root", f"{folder}/storage", "--runroot", f"{folder}/run")
        self.command = ("buildah", "--storage-driver", "vfs", *storage)

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run((*self.command, *arguments), stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().strip()


def main() -> int:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        print(f"Not tried: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print("Not tried: only root can make the base and the container.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        return try_image(Path(folder))


def try_image(folder: Path) -> int:
    store = Store(folder)
    digest = _make_base(store)
    builder = (*store.command, "build", "--isolation", "chroot", "--format", "docker", "--quiet")
    base = ("--build-arg", f"BASE={BASE}", "--build-arg", f"BASE_DIGEST={digest}")
    commit = revision()
    if build((*builder, *base, *commit, "--tag", TAG)):
        return 1
    added = _added_bytes(store, folder / "layers")
    print(f"Added to the base: {added / 1e6:.1f} MB, of {MOST_ADDED / 1e6:.0f} at most")
    assert added <= MOST_ADDED
    image = json.loads(store("inspect", "--type", "image", TAG))["Docker"]["config"]
    assert image["Healthcheck"]["Test"] == ["CMD", "ape-cerebras", "health"]
    root = Path(store("mount", store("from", "--pull-never", TAG)))
    _labels(image, commit, digest)
    _packages(root)
    for number, (flags, memory) in enumerate(WAYS):
        user = ANY_USER if number else image["User"]
        run = Run(root, {**image, "User": user}, ("serve", "--demo", *flags), memory)
        with running(f"proxy-{os.getpid()}-{number}", run, folder) as container:
            _check(container, " ".join(flags), run)
    return 0


def _make_base(store: Store) -> str:
    """Its digest. It is kept for the next time as a folder; so a change of Debian's packages is not
    seen."""
    if not (CACHE / "base").is_dir():
        unfinished = CACHE / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        print(f"Making a base of Debian {SUITE}, which takes a minute", flush=True)
        command = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE)
        subprocess.run((*command, unfinished, _mirror()), stdout=subprocess.DEVNULL, check=True)
        unfinished.rename(CACHE / "base")
    container = store("from", "scratch")
    store("add", "--quiet", container, str(CACHE / "base"), "/")
    store("commit", "--quiet", container, BASE)
    return store("images", "--format", "{{.Digest}}", BASE)


def _mirror() -> str:
    """Debian's, as apt knows it."""
    command = ("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
    of_debian = ("Origin: Debian", "Label: Debian")
    listed = subprocess.run(
        (*command, *of_debian), capture_output=True, text=True, check=True
    ).stdout
    if not listed:
        raise SystemExit("apt knows no mirror of Debian; run apt-get update")
    return listed.splitlines()[0]


def _added_bytes(store: Store, folder: Path) -> int:
    """The size of the layers above the base's one, uncompressed."""
    store("push", "--quiet", "--disable-compression", TAG, f"dir:{folder}")
    layers = json.loads((folder / "manifest.json").read_text())["layers"]
    return sum(layer["size"] for layer in layers[1:])


def _labels(image: dict[str, Any], commit: list[str], digest: str) -> None:
    """What was built, and from which commit and which base, as both were named to the builder."""
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): text for name, text in image["Labels"].items()}
    named = {"title": TAG, "version": VERSION, "licenses": "MIT"}
    named |= {"revision": "".join(commit).partition("=")[2], "base.name": BASE}
    named |= {"base.digest": digest}
    assert {name: labels[name] for name in named} == named


def _packages(root: Path) -> None:
    """The bill of materials lists what the lock names; nothing can install more."""
    bill = json.loads((root / "opt/ape-cerebras/sbom.cdx.json").read_text())
    listed = {f"{each['name']}=={each['version']}" for each in bill["components"]}
    locked = re.findall(r"^(\S+==\S+)( ;.*)? \\$", LOCK.read_text(), re.MULTILINE)
    always = {pin for pin, marker in locked if not marker}
    assert always <= listed <= {pin for pin, _ in locked}
    installers = [path for name in ("pip", "ensurepip") for path in root.rglob(f"{name}*")]
    left = [str(path.relative_to(root)) for path in installers if "python3" in path.parts[-2]]
    assert left + [str(path) for path in root.rglob("*.whl")] == []
    print(f"{len(listed)} packages, as the lock names them, and no pip")


def _check(container: Container, flags: str, run: Run) -> None:
    _wait_until(lambda: "Listening" in container.log, container)
    _confined(container, run)
    for check in (_health, _four_paths, _wrong_bodies, _ending):
        check(container)
        print(f"{flags}: {(check.__doc__ or '').partition('.')[0]}: as it should be", flush=True)


def _wait_until(is_so: Callable[[], bool], container: Container) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not is_so():
        if time.monotonic() > deadline or container.process.poll() is not None:
            raise SystemExit(f"The container does not become ready:\n{container.log}")
        time.sleep(0.05)


def _curl(container: Container, *arguments: str) -> str:
    done = container.exec("curl", "--silent", "--show-error", *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def _health(container: Container) -> None:
    """Health, by curl and by the image's own check."""
    healthy = json.loads(_curl(container, "--fail", "http://localhost:8000/health"))
    assert healthy["status"] == "healthy"
    assert container.exec("ape-cerebras", "health").returncode == 0


def _four_paths(container: Container) -> None:
    """The four paths."""
    _health(container)
    models = json.loads(_curl(container, "--fail", "http://localhost:8000/v1/models"))
    assert "llama3.1-8b" in {model["id"] for model in models["data"]}
    whole = json.loads(_curl(container, "--fail", CHAT, "-H", JSON, "-d", REQUEST % ""))
    streamed = _curl(container, "--fail", "-N", CHAT, "-H", JSON, "-d", STREAM)
    events = [event.removeprefix("data: ") for event in streamed.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    assert _text(events) == whole["choices"][0]["message"]["content"]
    metrics = _curl(container, "--fail", "http://localhost:8000/metrics")
    assert 'cerebras_proxy_requests_total{model="llama3.1-8b"} 2.0' in metrics


def _text(events: list[str]) -> str:
    deltas: list[dict[str, Any]] = [
        choice["delta"] for event in events for choice in json.loads(event)["choices"]
    ]
    return "".join(delta.get("content") or "" for delta in deltas)


def _wrong_bodies(container: Container) -> None:
    """Bodies that are not JSON."""
    for body in ("", " ", "{", '{"a":1,}', "{'a':1}", "nul", "{} x", "{}{}"):
        body_and_status = _curl(container, "-w", "%{http_code}", CHAT, "-H", JSON, "-d", body)
        assert body_and_status.endswith("400"), (body, body_and_status)
        assert json.loads(body_and_status[:-3])["type"] == "invalid_request_error"


def _confined(container: Container, run: Run) -> None:
    """The process has none of the privileges that the container drops."""
    status = container.exec("cat", "/proc/1/status").stdout.splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
    assert fields["Uid"] == [run.image["User"].partition(":")[0]] * 4
    assert (fields["CapEff"], fields["CapBnd"], fields["NoNewPrivs"]) == (
        ["0" * 16],
        ["0" * 16],
        ["1"],
    )
    assert "Read-only file system" in container.exec("touch", "/tmp/any").stderr
    limits = container.exec("sh", "-c", f"cat {CGROUP_LIMITS} 2>/dev/null")
    assert limits.stdout.split() == [str(run.memory)]


def _ending(container: Container) -> None:
    """SIGTERM during a stream, which ends complete."""
    slow = ("-H", "X-Simulate: ttft=0.2, rate=50, tokens=50")
    command = container.exec_command("curl", "-sN", CHAT, "-H", JSON, *slow, "-d", STREAM)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        first = client.stdout.readline()
        container.signal("TERM")
        streamed = first + client.stdout.read()
    assert streamed.endswith(b"data: [DONE]\n\n"), streamed[-200:]
    assert container.ended() == 0
    assert '"message":"Draining"' in container.log
    assert '"message":"Stopped"' in container.log


if __name__ == "__main__":
    sys.exit(main())
