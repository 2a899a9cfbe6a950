"""H keys."""

import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from end_to_end import KEY, Conversation, Response
from fault_bench import BODY, CLIENT_KEY, Case, Scene, get, post
from server_process import run, serving

__all__ = ("CASES",)

OK = post()


def keyed(value: bytes) -> bytes:
    return b"Authorization: " + value


T = CLIENT_KEY.encode()
OWN_PORT = {"METRICS_PORT": "0"}
OWN_PORT_ONLY = {**OWN_PORT, "METRICS_ON_MAIN_PORT": "false"}


def challenged(scene: Scene, response: Response) -> None:
    assert response.headers["www-authenticate"] == "Bearer"


async def many_wrong_keys(scene: Scene) -> None:
    client = await scene.client()
    for number in range(200):
        response = await client.request(post(b"{}", key=keyed(b"Bearer %016x-wrong" % number)))
        assert response.status == 401
    assert b"-wrong" not in b"".join(scene.written) + scene.seen
    assert len(scene.exchanges) == 200


async def metrics_on_both_ports(scene: Scene) -> None:
    for client in (await scene.client(), await scene.scraper()):
        response = await client.get("/metrics")
        assert response.status == 200
        assert b"cerebras_proxy_requests_in_flight" in response.body


async def metrics_on_their_port(scene: Scene) -> None:
    refused = await (await scene.client()).get("/metrics")
    assert (refused.status, refused.json()["code"]) == (404, "not_found")
    assert b"cerebras_proxy" not in refused.body
    assert (await (await scene.scraper()).get("/metrics")).status == 200


async def nothing_shown_so_far(scene: Scene) -> None:
    """All that this proxy has written in all cases so far; it writes at its most talkative."""
    assert scene.bench.running.proxy.config.log_level == "debug"
    written = b"".join(scene.bench.running.lines.raw)
    for key in (KEY.encode(), T):
        assert key[:8] not in written


def wrong_keys(backend: str) -> None:
    """H8"""
    for content in (b"csk-secret-\ninner", b"csk-secret\0", "csk-secret-é".encode()):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            ended = run(
                "serve",
                BACKEND=backend,
                CEREBRAS_API_KEY_FILE=file.name,
                APE_API_KEY_FILE=file.name,
            )
        assert ended.returncode == 2
        assert "CEREBRAS_API_KEY_FILE" in ended.stdout
        assert "APE_API_KEY_FILE" in ended.stdout
        assert "csk-secret" not in ended.stdout + ended.stderr


def no_key_in_the_file(backend: str) -> None:
    """H9"""
    with tempfile.TemporaryDirectory() as folder:
        empty, huge = Path(folder, "empty"), Path(folder, "huge")
        empty.touch()
        with huge.open("wb") as file:
            file.truncate(2**30)
        for path in (empty, huge, Path(folder), Path(folder, "missing")):
            ended = run("serve", BACKEND=backend, CEREBRAS_API_KEY_FILE=str(path))
            assert ended.returncode == 2
            assert "CEREBRAS_API_KEY_FILE" in ended.stdout
            assert "Traceback" not in ended.stderr


def both_ways(backend: str) -> None:
    """H10"""
    ended = run("serve", BACKEND=backend, CEREBRAS_API_KEY=KEY, CEREBRAS_API_KEY_FILE="/dev/null")
    assert ended.returncode == 2
    assert "both set" in ended.stdout
    assert KEY not in ended.stdout + ended.stderr


def no_key_in_proc(backend: str) -> None:
    """H14"""
    with tempfile.NamedTemporaryFile() as file:
        file.write(KEY.encode())
        file.flush()
        settings = {"CEREBRAS_API_KEY_FILE": file.name, "BACKEND": backend}
        with serving("serve", by="exec", **settings) as served:
            for name in ("cmdline", "environ"):
                shown = Path(f"/proc/{served.process.pid}/{name}")
                readable = os.access(shown, os.R_OK)  # the environment is root's
                assert not readable or KEY.encode() not in shown.read_bytes()


def no_core_file(backend: str) -> None:
    """H15"""
    if sys.platform != "linux":
        pytest.skip("Linux tells how a process ended")
    for number in (signal.SIGSEGV, signal.SIGABRT):
        with serving("serve", "--demo", BACKEND=backend) as served:
            assert resource.prlimit(served.process.pid, resource.RLIMIT_CORE) == (0, 0)
            assert not served.dumps_core(number)


async def quotes_the_key(peer: Conversation) -> None:
    await peer.request()
    body = b'{"message":"Incorrect API key provided: csk-up***89"}'
    await peer.respond(body, status="401 Unauthorized")


async def redirects(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"", status="302 Found", headers=b"Location: http://evil/\r\n")


async def random_requests(scene: Scene) -> None:
    """H17: whatever clients send, they make no series."""
    dice = random.Random(1)
    client = await scene.client()

    async def series() -> set[str]:
        text = (await client.get("/metrics")).body.decode()
        return {line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"}

    async def one_of_each() -> None:
        word = b"%016x" % dice.getrandbits(64)
        for sends in (
            post(key=keyed(b"Bearer " + word)),
            post(b'{"model":"m%s"}' % word),
            get(b"GET /%s HTTP/1.1" % word),
            get(b"M%s / HTTP/1.1" % word, b"User-Agent: " + word),
            get(b"GET /nope HTTP/1.1", host=b"Host: h" + word),
        ):
            await client.request(sends)

    for _ in range(2):  # so that an upstream connection has been reused
        await one_of_each()
        await client.get("/metrics")
    before = await series()
    for _ in range(50):
        await one_of_each()
    assert await series() == before


INJECTED = b'\\n{\\"level\\":\\"info\\"}'


def one_line(scene: Scene, response: Response) -> None:
    assert len(scene.written) == len(scene.exchanges)
    assert all(line.count(b"\n") == 1 for line in scene.written)


CASES: list[Case] = [
    Case("H1", post(key=None), 401, check=challenged, code="invalid_api_key"),
    *(
        Case(f"H2 {number}", post(key=keyed(value)), 401, check=challenged, code="invalid_api_key")
        for number, value in enumerate(
            (b"Bearer wrong", b"Bearer " + T[:-1], b"Bearer " + T + b"x", b"Bearer ", b"Bearer")
        )
    ),
    Case("H3 lower case", post(key=keyed(b"bearer " + T)), up=1),
    Case("H3 upper case", post(key=keyed(b"BEARER " + T)), up=1),
    *(
        Case(f"H4 {number}", post(key=keyed(value)), 401, check=challenged)
        for number, value in enumerate(
            (b"Basic abc", T, b"Bearer " + T + b",U", b"Bearer " + T + b" U")
        )
    ),
    Case(
        "H5 query",
        post(line=b"POST /v1/chat/completions?access_token=" + T + b" HTTP/1.1", key=None),
        401,
    ),
    Case("H5 headers", post(BODY, b"X-Api-Key: " + T, b"Cookie: key=" + T, key=None), 401),
    Case("H6", play=many_wrong_keys, lines=200),
    Case("H7", play=nothing_shown_so_far, lines=0),
    Case("H8", process=wrong_keys, once=True),
    Case("H9", process=no_key_in_the_file, once=True),
    Case("H10", process=both_ways, once=True),
    Case("H11", OK, 502, up=1, code="upstream_key_refused", upstream=quotes_the_key),
    Case("H12", OK, 502, up=1, code="invalid_response", upstream=redirects),
    Case("H13", play=nothing_shown_so_far, lines=0),
    Case("H14", process=no_key_in_proc, once=True),
    Case("H15", process=no_core_file, once=True),
    Case("H16 a", get(b"GET /metrics HTTP/1.1")),
    Case("H16 b", play=metrics_on_both_ports, settings=OWN_PORT, lines=2),
    Case("H16 c", play=metrics_on_their_port, settings=OWN_PORT_ONLY, lines=2),
    Case("H17", play=random_requests, lines=None, up=None),
    Case("H18 model", post(b'{"model":"m%s"}' % INJECTED), up=1, check=one_line),
    Case("H18 header", post(BODY, b"User-Agent: " + INJECTED), up=1, check=one_line),
    Case("H18 path", get(b"GET /" + INJECTED + b" HTTP/1.1"), 404, check=one_line),
]
