"""The usual HTTP clients, each as a function that reads a response whole, and raises an error where
the client reports one."""

import asyncio
import atexit
import http.client
import subprocess
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sdks import NO_CERTIFICATES

__all__ = ("CLIENTS", "PROGRAMS")

_TIMEOUT = 60.0  # seconds; Java compiles its client first
_BODY = b'{"model":"gpt-oss-120b","messages":[]}'
_HEADERS = {"Content-Type": "application/json"}


def _http_client(url: str) -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT)
    try:
        connection.request("POST", parts.path, _BODY, _HEADERS)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def _urllib3(url: str) -> bytes:
    library: Any = import_module("urllib3")
    with library.PoolManager(retries=False, timeout=_TIMEOUT) as pool:
        response = pool.request("POST", url, body=_BODY, headers=_HEADERS)
        assert response.status == 200
        return bytes(response.data)


def _requests(url: str) -> bytes:
    library: Any = import_module("requests")
    with library.post(url, _BODY, headers=_HEADERS, timeout=_TIMEOUT) as response:
        assert response.status_code == 200
        return bytes(response.content)


def _httpx(url: str) -> bytes:
    with httpx.Client(verify=NO_CERTIFICATES, timeout=_TIMEOUT) as client:
        return client.post(url, content=_BODY, headers=_HEADERS).raise_for_status().content


def _aiohttp(url: str) -> bytes:
    library: Any = pytest.importorskip("aiohttp")

    async def post() -> bytes:
        session = library.ClientSession()
        async with session, session.post(url, data=_BODY, headers=_HEADERS) as response:
            assert response.status == 200
            return bytes(await response.read())

    return asyncio.run(asyncio.wait_for(post(), _TIMEOUT))


def _program(*command: str) -> bytes:
    """Run another language's client."""
    done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode())
    return done.stdout


def _curl(url: str) -> bytes:
    fields = [f"-H{name}: {value}" for name, value in _HEADERS.items()]
    return _program("curl", "-sSf", *fields, "-d", _BODY.decode(), url)


@cache
def _running(*command: str) -> subprocess.Popen[bytes]:
    """A program that goes on until the tests end. A start of Java with what it compiles is 2 s of
    CPU, one of Node 0.3 s."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end() -> None:
        process.kill()
        process.communicate()

    atexit.register(end)
    return process


def _request_of(process: subprocess.Popen[bytes], url: str) -> bytes:
    """The body that a program which goes on gets from there, over a new connection."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{url}\n".encode())
    process.stdin.flush()
    if not select([process.stdout], (), (), _TIMEOUT)[0]:
        process.kill()
        raise AssertionError("no response, and no error")
    line = process.stdout.readline()
    if line == b"error\n":
        raise OSError
    return b64decode(line)


_FETCH = """
const [body] = process.argv.slice(1);
const headers = { "Content-Type": "application/json" };
for await (const url of require("readline").createInterface({ input: process.stdin })) {
  try {
    const response = await fetch(url, { method: "POST", body, headers });
    if (response.status !== 200) throw new Error(`status ${response.status}`);
    console.log(Buffer.from(await response.arrayBuffer()).toString("base64"));
  } catch { console.log("error"); }
}
"""


def _fetch(url: str) -> bytes:
    program = f"(async () => {{{_FETCH}}})()"
    return _request_of(_running("node", "-e", program, _BODY.decode()), url)


def _java(url: str) -> bytes:
    source = Path(__file__).parent / "HttpClients.java"
    quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    return _request_of(_running("java", *quick, str(source), _BODY.decode()), url)


CLIENTS: dict[str, Callable[[str], bytes]] = {
    "http.client": _http_client,
    "urllib3": _urllib3,
    "requests": _requests,
    "httpx": _httpx,
    "aiohttp": _aiohttp,
    "curl": _curl,
    "fetch": _fetch,
    "Java": _java,
}

PROGRAMS = {
    "curl": ("curl", "curl"),
    "fetch": ("node", "nodejs"),
    "Java": ("java", "default-jdk-headless"),
}
"""What those in another language run with, and Debian's package of it."""
