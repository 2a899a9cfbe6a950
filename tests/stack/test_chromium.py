"""Web pages of other origins, in a real Chromium: what CORS_ORIGINS lets them do."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from programs import tool
from server_process import TIMEOUT, Served, serving

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--dump-dom",
)
BACKENDS = ("asyncio", "trio")
PAGE_KEY = "page-key-0123456789"  # Chromium prints it with the page
# The image holds the page's load event, at which Chromium prints the page, until all is done. The
# frame is the same page at another origin, whose name it reports.
PAGE = """<!doctype html><html><body><pre id="found"></pre><img src="/done"><script>
const proxies = PROXIES, key = "KEY";
const messages = [{role: "user", content: "hi"}];
const names = ["x-request-id", "x-trace-id", "inference-id", "retry-after", "server"];
async function request(url, more, token = key, fields = {}) {
  const response = await fetch(url, {
    method: "POST",
    headers: {"content-type": "application/json", authorization: `Bearer ${token}`, ...fields},
    body: JSON.stringify({model: "llama3.1-8b", messages, ...more}),
  });
  const headers = Object.fromEntries(names.map((name) => [name, response.headers.get(name)]));
  return [response, {status: response.status, headers}];
}
async function plain(url) {
  const [response, head] = await request(url, {});
  return {...head, text: (await response.json()).choices[0].message.content};
}
async function streamed(url) {
  const paced = {"x-simulate": "rate=80, tokens=80"};  // a second: no browser reads it at once
  const [response, head] = await request(url, {stream: true}, key, paced);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", reads = 0;
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    text += step.value;
    reads += 1;
  }
  return {...head, text, reads};
}
async function refused(url) {
  const [response, head] = await request(url, {}, "a-wrong-key");
  return {...head, code: (await response.json()).code};
}
async function tried(url) {
  const found = {};
  for (const each of [plain, streamed, refused]) {
    try { found[each.name] = await each(url); } catch (error) { found[each.name] = error.name; }
  }
  return found;
}
async function all() {
  const found = {};
  await Promise.all(Object.entries(proxies).map(async ([name, url]) => {
    found[name] = await tried(url);
  }));
  return found;
}
function strangers() {
  const frame = document.createElement("iframe");
  frame.src = location.href.replace("127.0.0.1", "localhost");
  document.body.append(frame);
  return new Promise((resolve) => addEventListener("message", ({data}) => resolve(data)));
}
async function main() {
  if (parent !== window) return parent.postMessage(await all(), "*");
  const [allowed, strange] = await Promise.all([all(), strangers()]);
  document.getElementById("found").textContent = JSON.stringify({allowed, strange});
  await fetch("/end", {method: "POST"});
}
main();
</script></body></html>
"""


class Pages(ThreadingHTTPServer):
    """The server of the page; ``page`` is its text."""

    daemon_threads = True
    page = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.done = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        is_page = self.path == "/"
        if self.path == "/done":
            self.server.done.wait(TIMEOUT)
        self.send_response(200 if is_page else 404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.page if is_page else b"")

    def do_POST(self) -> None:
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, *_: object) -> None:
        pass


class Visited(NamedTuple):
    """The proxies, and what a page of each origin has found at each."""

    proxies: dict[str, Served]
    allowed: dict[str, Any]
    strange: dict[str, Any]


def visit(url: str, profile: Path) -> dict[str, Any]:
    """What the page has found."""
    chromium = tool("chromium", "chromium")
    printed = subprocess.run(
        (chromium, *FLAGS, f"--user-data-dir={profile}", url),
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    ).stdout.decode()
    match = re.search(r'<pre id="found">(.*?)</pre>', printed, re.DOTALL)
    assert match, printed
    found: dict[str, Any] = json.loads(unescape(match[1]))
    return found


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """One Chromium for the proxies on both event loops, and for both origins."""
    with Pages() as pages, ExitStack() as stack:
        port = pages.server_address[1]
        settings = {
            "CORS_ORIGINS": f"http://127.0.0.1:{port}",
            "APE_API_KEY": f"page:{PAGE_KEY}",
            "LOG_LEVEL": "debug",
        }
        proxies = {
            backend: stack.enter_context(serving("serve", "--demo", BACKEND=backend, **settings))
            for backend in BACKENDS
        }
        chat = "http://127.0.0.1:{}/v1/chat/completions"
        urls = {backend: chat.format(each.port) for backend, each in proxies.items()}
        pages.page = PAGE.replace("PROXIES", json.dumps(urls)).replace("KEY", PAGE_KEY).encode()
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        try:
            found = visit(f"http://127.0.0.1:{port}/", tmp_path_factory.mktemp("profile"))
        finally:
            pages.shutdown()
            thread.join()
        yield Visited(proxies, found["allowed"], found["strange"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_page_uses_the_proxy_from_another_origin(visited: Visited, backend: str) -> None:
    served, found = visited.proxies[backend], visited.allowed[backend]
    preflight = served.first_line_where(
        lambda line: line.get("method") == "OPTIONS" and line["status_code"] == 204
    )
    plain, streamed, refused = found["plain"], found["streamed"], found["refused"]
    assert (plain["status"], streamed["status"], refused["status"]) == (200, 200, 401)
    assert plain["text"].startswith("the wafer holds")
    assert streamed["text"].endswith("data: [DONE]\n\n")
    assert streamed["reads"] > 1
    assert refused["code"] == "invalid_api_key"
    for each in (plain, streamed, refused):
        assert each["headers"]["x-request-id"]
        assert each["headers"]["x-trace-id"]
        assert each["headers"]["server"] is None
    assert plain["headers"]["inference-id"]
    assert preflight["outcome"] == "completed"
    assert "Chrome/" in preflight["user_agent"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_page_that_is_not_allowed_learns_nothing(visited: Visited, backend: str) -> None:
    """And its requests are not sent: only asked about."""
    strange = visited.strange[backend]
    turned_away = visited.proxies[backend].first_line_where(
        lambda line: line.get("method") == "OPTIONS" and line["status_code"] != 204
    )
    assert strange == dict.fromkeys(("plain", "streamed", "refused"), "TypeError")
    assert (turned_away["status_code"], turned_away["outcome"]) == (401, "unauthorized")
