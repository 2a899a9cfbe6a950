"""Web pages of other origins, in a real Chromium: what CORS_ORIGINS lets them do."""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from programs import tool
from server_process import TIMEOUT, serving

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--dump-dom",
)
PAGE_KEY = "page-key-0123456789"  # Chromium prints it with the page
# The image holds the page's load event, at which Chromium prints the page, until all is done.
PAGE = """<!doctype html><html><body><pre id="found"></pre><img src="/done"><script>
const url = "PROXY/v1/chat/completions", key = "KEY", found = {};
const messages = [{role: "user", content: "hi"}];
const names = ["x-request-id", "x-trace-id", "inference-id", "retry-after", "server"];
async function request(more, token = key, fields = {}) {
  const response = await fetch(url, {
    method: "POST",
    headers: {"content-type": "application/json", authorization: `Bearer ${token}`, ...fields},
    body: JSON.stringify({model: "llama3.1-8b", messages, ...more}),
  });
  const headers = Object.fromEntries(names.map((name) => [name, response.headers.get(name)]));
  return [response, {status: response.status, headers}];
}
async function plain() {
  const [response, head] = await request({});
  return {...head, text: (await response.json()).choices[0].message.content};
}
async function streamed() {
  const paced = {"x-simulate": "rate=80, tokens=80"};  // a second: no browser reads it at once
  const [response, head] = await request({stream: true}, key, paced);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", reads = 0;
  for (let step = await reader.read(); !step.done; step = await reader.read()) {
    text += step.value;
    reads += 1;
  }
  return {...head, text, reads};
}
async function refused() {
  const [response, head] = await request({}, "a-wrong-key");
  return {...head, code: (await response.json()).code};
}
async function all() {
  for (const each of [plain, streamed, refused]) {
    try { found[each.name] = await each(); } catch (error) { found[each.name] = error.name; }
  }
  document.getElementById("found").textContent = JSON.stringify(found);
  await fetch("/end", {method: "POST"});
}
all();
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


@pytest.fixture
def pages() -> Iterator[Pages]:
    with Pages() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


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


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_page_uses_the_proxy_from_another_origin(
    pages: Pages, tmp_path: Path, backend: str
) -> None:
    port = pages.server_address[1]
    settings = {
        "CORS_ORIGINS": f"http://127.0.0.1:{port}",
        "APE_API_KEY": f"page:{PAGE_KEY}",
        "BACKEND": backend,
        "LOG_LEVEL": "debug",
    }
    with serving("serve", "--demo", **settings) as served:
        text = PAGE.replace("PROXY", f"http://127.0.0.1:{served.port}").replace("KEY", PAGE_KEY)
        pages.page = text.encode()
        found = visit(f"http://127.0.0.1:{port}/", tmp_path / "allowed")
        pages.done.clear()
        strange = visit(f"http://localhost:{port}/", tmp_path / "refused")
        preflight = served.first_line_where(lambda line: line.get("method") == "OPTIONS")
        turned_away = served.first_line_where(
            lambda line: line.get("method") == "OPTIONS" and line["status_code"] != 204
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
    assert (preflight["outcome"], preflight["status_code"]) == ("completed", 204)
    assert "Chrome/" in preflight["user_agent"]
    # A page that is not allowed learns nothing, and its requests are not sent: only asked about.
    assert strange == dict.fromkeys(("plain", "streamed", "refused"), "TypeError")
    assert (turned_away["status_code"], turned_away["outcome"]) == (401, "unauthorized")
