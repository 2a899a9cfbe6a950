"""Scraping and differencing: restarts, proxies that are down, quantiles, and what is no proxy."""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from exchanges import stream_exchange
from hypothesis import given
from hypothesis import strategies as st
from programs import tool
from prometheus_server import Prometheus, until, watching_prometheus
from scraped_metrics import observed, rendered
from scraped_proxies import buckets_text, serving_text
from server_process import serving
from worker_service import CHAT, JSON, running_workers

from ape_cerebras.report.scrape import (
    ScrapedProxy,
    ScrapeFailed,
    merged,
    parse,
    quantile,
    scrape,
)


def proxy_of(*texts: str, window: float = 100.0) -> ScrapedProxy:
    """A proxy that was scraped once a second, and said so."""
    proxy = ScrapedProxy("http://a:1", window)
    for second, text in enumerate(texts):
        proxy.add(parse(text.encode()), float(second))
    return proxy


def requests(count: float, model: str = "m") -> str:
    return f'cerebras_proxy_requests_total{{model="{model}"}} {count}\n'


# Counters


def test_a_rate_is_the_increase_by_the_seconds() -> None:
    now = merged([proxy_of(requests(5), requests(8), requests(15))])
    assert now.rate("requests_total") == 5.0
    assert now.count("requests_total") == 10.0
    assert merged([proxy_of(requests(5))]).rate("requests_total") == 0.0


def test_a_series_that_appears_has_counted_from_0() -> None:
    now = merged([proxy_of(requests(5), requests(5) + requests(2, "n"))])
    assert now.rates_by("requests_total", "model") == {"m": 0.0, "n": 2.0}


def test_a_series_that_is_missing_once_is_not_counted_twice() -> None:
    both = requests(5) + requests(7, "n")
    assert merged([proxy_of(both, requests(5), both)]).count("requests_total") == 0.0


def test_only_the_window_counts() -> None:
    proxy = proxy_of(*(requests(count) for count in (0, 90, 91, 92)), window=2.0)
    assert merged([proxy]).rate("requests_total") == 1.0


@pytest.mark.parametrize("after", [0.0, 3.0, 9.0])
def test_a_restarted_proxy_counts_from_0(after: float) -> None:
    proxy = proxy_of(requests(10), requests(after))
    assert merged([proxy]).count("requests_total") == after
    assert proxy.restarts == 1


def test_a_restart_resets_counters_that_are_higher_than_before() -> None:
    """One of them fell, so that the other has begun anew, too, and has counted 12 and not 2."""
    before = requests(10) + requests(100, "n")
    after = requests(12) + requests(1, "n")
    assert merged([proxy_of(before, after)]).count("requests_total") == 13.0


def test_a_histogram_is_of_one_life() -> None:
    """By each bucket alone it would be 2 observations up to 0.1 and 7 in all."""
    before = buckets_text("ttft_seconds", {"0.1": 5, "1.0": 20, "+Inf": 20})
    after = buckets_text("ttft_seconds", {"0.1": 7, "1.0": 7, "+Inf": 7})
    now = merged([proxy_of(before, after)])
    assert now.count("ttft_seconds_bucket", le="0.1") == 7
    assert now.quantile(0.5, "ttft_seconds") == pytest.approx(0.05)


def test_resets_at_each_scrape_are_said() -> None:
    proxy = proxy_of(*(requests(count) for count in (9, 5, 3, 2)))
    assert "several proxies at one address?" in proxy.problem
    assert proxy.is_up


def test_proxies_are_added_up() -> None:
    first, second = proxy_of(requests(0), requests(5)), proxy_of(*map(requests, (0, 1, 2)))
    assert merged([first, second]).rate("requests_total") == 6.0


def test_a_proxy_that_was_down_has_no_rate_of_that_time() -> None:
    proxy = proxy_of(requests(0), requests(5))
    proxy.fail("refused")
    assert not proxy.is_up
    assert (proxy.gauges(), proxy.counted()) == ({}, (0, {}))
    proxy.add(parse(requests(500).encode()), 10.0)
    assert merged([proxy]).count("requests_total") == 0.0
    proxy.add(parse(requests(501).encode()), 11.0)
    assert merged([proxy]).rate("requests_total") == 1.0


def test_bounds_that_proxies_do_not_share() -> None:
    """0.2 is only one's: counted there, the other's 10 below would be missing."""
    texts = {"0.1": 0, "+Inf": 0}, {"0.1": 10, "+Inf": 10}
    first = proxy_of(*(buckets_text("ttft_seconds", each) for each in texts))
    more = {"0.1": 0, "0.2": 0, "+Inf": 0}, {"0.1": 0, "0.2": 10, "+Inf": 10}
    second = proxy_of(*(buckets_text("ttft_seconds", each) for each in more))
    now = merged([first, second])
    assert now.quantile(0.5, "ttft_seconds") == pytest.approx(0.1)
    assert now.quantile(0.9, "ttft_seconds") == pytest.approx(0.1)


def test_labels_select() -> None:
    texts = [
        "".join(
            buckets_text("ttft_seconds", {"0.1": n, "1.0": n, "+Inf": n}, labels=f'model="{m}",')
            for m, n in (("a", count), ("b", 2 * count))
        )
        for count in (0, 4)
    ]
    now = merged([proxy_of(*texts)])
    assert now.count("ttft_seconds_count") == 12
    assert now.count("ttft_seconds_count", model="b") == 8
    assert now.quantile(0.5, "ttft_seconds", model="c") is None


# Quantiles


def test_quantiles_interpolate() -> None:
    buckets = {0.1: 10.0, 0.2: 10.0, 0.4: 30.0, math.inf: 40.0}
    assert quantile(0.5, buckets) == pytest.approx(0.3)
    assert quantile(0.25, buckets) == pytest.approx(0.1)
    assert quantile(0.125, buckets) == pytest.approx(0.05)
    assert quantile(0.99, buckets) == 0.4  # in the last bucket: its lower bound
    assert quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {0.1: 5.0}) is None
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {-1.0: 5.0, math.inf: 5.0}) == -1.0


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=12),
    st.floats(0.01, 0.999),
    st.data(),
)
def test_a_quantile_is_within_the_bucket_of_the_true_one(
    inside: list[int], q: float, data: st.DataObject
) -> None:
    """Values put into buckets, and their quantile found by sorting them."""
    bounds = [0.1 * (number + 1) for number in range(len(inside) - 1)]
    values = [
        data.draw(st.floats(0.1 * number, 0.1 * (number + 1), exclude_min=True))
        for number, count in enumerate(inside[:-1])
        for _ in range(min(count, 3))
    ]
    counts = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    found = quantile(q, {**counts, math.inf: float(len(values))})
    if not values:
        assert found is None
        return
    assert found is not None
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    above = next(bound for bound in bounds if true <= bound)
    assert above - 0.1 - 1e-9 <= found <= above + 1e-9


def test_quantiles_are_those_of_prometheus(tmp_path: Path) -> None:
    tool("prometheus", "prometheus")
    settings = {"METRICS_PORT": "0", "BACKEND": "asyncio"}
    with serving("serve", "--demo", **settings) as served:
        connection = served.connection()
        for number in range(40):
            body = CHAT.replace(b"hi", b"hi " * (1 + 40 * number % 500))
            connection.request("POST", "/v1/chat/completions", body, JSON)
            connection.getresponse().read()
        connection.close()
        with watching_prometheus(served, tmp_path) as prometheus:
            assert_quantiles_agree(prometheus, f"http://127.0.0.1:{served.port}")


def assert_quantiles_agree(prometheus: Prometheus, url: str) -> None:
    empty = dict.fromkeys(scrape(url, 5.0), 0.0)
    proxy = ScrapedProxy(url, 10.0)
    proxy.add(empty, 0.0)
    proxy.add(scrape(url, 5.0), 1.0)
    now = merged([proxy])
    compared = 0
    for name in ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "tpot_seconds"):
        until(lambda n=name: prometheus.query(f"cerebras_proxy_{n}_count"), "a scrape")  # type: ignore[misc]
        for q in (0.01, 0.5, 0.9, 0.95, 0.99, 1.0):
            buckets = f"sum by (le) (cerebras_proxy_{name}_bucket)"
            [expected] = prometheus.query(f"histogram_quantile({q}, {buckets})")
            assert now.quantile(q, name) == pytest.approx(expected.value, rel=1e-9)
            compared += 1
    assert compared == 24


# Real proxies


def test_no_label_is_obeyed_by_a_terminal() -> None:
    text = 'cerebras_proxy_requests_total{model="\x1b[2J"} 1\n'
    [series] = parse(text.encode())
    assert series.label("model") == r"\x1b[2J"


def test_what_a_proxy_renders_is_read() -> None:
    metrics = observed(stream_exchange(client="alice"), stream_exchange())
    samples = parse(rendered(metrics)[0])
    proxy = ScrapedProxy("a", 10.0)
    proxy.add(dict.fromkeys(samples, 0.0), 0.0)
    proxy.add(samples, 2.0)
    now = merged([proxy])
    assert now.rate("requests_total", model="gpt-oss-120b") == 1.0
    assert now.rates_by("client_requests_total", "client") == {"alice": 0.5}
    assert now.count("ttft_seconds_sum") == pytest.approx(2 * 0.203)
    assert now.rate("tokens_total", type="completion") == 5.0


@pytest.mark.parametrize("loop", ["asyncio"])
def test_a_restarted_worker_loses_no_count(loop: str, tmp_path: Path) -> None:
    """Its successor counts on in the same files: nothing has begun anew."""
    with running_workers(loop, tmp_path) as workers:
        url = f"http://127.0.0.1:{workers.served.port}"
        proxy = ScrapedProxy(url, 100.0)
        for step in range(3):
            connection = workers.connection(1)
            headers = {**JSON, "X-Trace-ID": f"chat-{step}"}
            connection.request("POST", "/v1/chat/completions", CHAT, headers)
            connection.getresponse().read()
            workers.line_of(f"chat-{step}")  # it is counted by then
            if step == 1:
                workers.end(1)
                workers.wait_for(1)
            proxy.poll()
            assert proxy.problem == ""
    assert merged([proxy]).count("requests_total") == 2
    assert merged([proxy]).count("worker_restarts_total") == 1
    assert proxy.restarts == 0


# What is no proxy


@contextmanager
def responding(status: int, body: bytes) -> Iterator[str]:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with serving_text(respond) as url:
        yield url


OTHER = b"# TYPE go_goroutines gauge\ngo_goroutines 8\n"


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (200, b"<!doctype html><title>Hello</title>", "a web page"),
        (200, OTHER, "metrics of another program"),
        (200, b"", "metrics of another program, or with none"),
        (200, b"\xff\xfe\x00", "no text of metrics that can be read"),
        (200, b"cerebras_proxy_requests_total{model= 5\n", "no text of metrics that can be read"),
        (401, b"", "wants authentication (status 401)"),
        (403, b"", "wants authentication (status 403)"),
        (404, b"", "has no metrics there (status 404)"),
        (302, b"", "redirects elsewhere"),
        (500, b"", "responds with status 500"),
    ],
)
def test_responses_that_are_no_metrics(status: int, body: bytes, word: str) -> None:
    with responding(status, body) as url, pytest.raises(ScrapeFailed) as caught:
        scrape(url, 5.0)
    assert word in str(caught.value)


def test_a_huge_body() -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"a" * 1_000_000)

    with serving_text(respond) as url, pytest.raises(ScrapeFailed, match="more than 32 MB"):
        scrape(url, 60.0)


def test_a_body_that_is_cut() -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(requests(1).encode())

    with serving_text(respond) as url, pytest.raises(ScrapeFailed, match="ended too early"):
        scrape(url, 5.0)


def test_a_body_that_never_ends_has_its_time() -> None:
    stop = threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b"# more\n")

    with serving_text(respond) as url:
        with pytest.raises(ScrapeFailed, match=r"no response within 0.2 s"):
            scrape(url, 0.2)
        stop.set()


@contextmanager
def listening(data: bytes) -> Iterator[str]:
    """Sends that to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(1000)
                stream.sendall(data)
                stream.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not speak HTTP"), (b"", "no response within 0.3 s")],
)
def test_ports_of_other_protocols(data: bytes, word: str) -> None:
    with listening(data) as address, pytest.raises(ScrapeFailed, match=word):
        scrape(address, 0.3)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        ("127.0.0.1:1/metrics", "connection refused"),
        ("http://nowhere.invalid:1", "no such host"),
        ("https://127.0.0.1:1", "connection refused"),
        ("ftp://127.0.0.1", "no URL such as"),
        ("http://", "no URL such as"),
        ("http://a:b@c", "no URL such as"),
        ("http://a:99999", "no URL such as"),
        ("http://[::1", "no URL such as"),
        ("two words", "no URL such as"),
        ("http://a/two words", "no URL such as"),
        ("http://é:1", "no URL such as"),
        ("", "no URL such as"),
    ],
)
def test_addresses_where_nothing_is(url: str, word: str) -> None:
    with pytest.raises(ScrapeFailed, match=word):
        scrape(url, 2.0)
