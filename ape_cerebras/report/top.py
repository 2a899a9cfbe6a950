"""The command ``ape-cerebras top``: running proxies, watched in a terminal.

A thread for each proxy scrapes it once a second; the terminal is drawn from what they have, so that
one that hangs delays neither the others nor a key.

Exit status of ``--once``: 0 where all proxies were read, 1 where only some were, 2 where none was.
"""

import argparse
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.live import Live

from .scrape import ScrapedProxy
from .screen import SORTS, Look, frame

__all__ = ("add_flags", "run_top")

_DEFAULT = "http://127.0.0.1:8000"
_PIPED_WIDTH = 100  # columns, where there is no terminal
_LEAST = 60  # columns
_LEAST_INTERVAL = 0.1  # seconds


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("urls", nargs="*", metavar="URL", help=f"addresses of proxies (default: {_DEFAULT})")
    add("--once", action="store_true", help="print one frame, from two scrapes, and end")
    text = "seconds between two scrapes (default: 1)"
    add("--interval", type=_seconds, default=1.0, metavar="SECONDS", help=text)
    text = "seconds that rates and percentiles are of (default: 10)"
    add("--window", type=_seconds, default=10.0, metavar="SECONDS", help=text)
    text = "seconds for a proxy to respond (default: 2)"
    add("--timeout", type=_seconds, default=2.0, metavar="SECONDS", help=text)
    add("--sort", choices=SORTS, default=SORTS[0], help="what models and clients are sorted by")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not _LEAST_INTERVAL <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be {_LEAST_INTERVAL:g} to 3600 seconds")
    return value


def run_top(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    urls = dict.fromkeys(options.urls or [_DEFAULT])
    window = max(options.window, options.interval)
    proxies = [ScrapedProxy(url, window, options.timeout) for url in urls]
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the terminal is left as it was
        signal.signal(ending, signal.default_int_handler)
    try:
        if options.once:
            return _print_once(proxies, options)
        _watch(proxies, options)
    except KeyboardInterrupt:
        pass
    return 0


def _print_once(proxies: list[ScrapedProxy], options: argparse.Namespace) -> int:
    for number in range(2):
        if number:
            time.sleep(options.interval)
        _poll_all(proxies, options.timeout)
    _print(proxies, _console(), options.sort)
    down = [proxy for proxy in proxies if not proxy.is_up]
    for proxy in down:
        sys.stderr.write(f"ape-cerebras top: {proxy.name}: {proxy.problem}\n")
    return 0 if not down else 2 if len(down) == len(proxies) else 1


def _poll_all(proxies: list[ScrapedProxy], timeout: float) -> None:
    """Scrape all at once. One that is not done in time, say in the lookup of its name, is down."""
    threads = [threading.Thread(target=proxy.poll, daemon=True) for proxy in proxies]
    ends_at = time.monotonic() + timeout + 1.0
    for thread in threads:
        thread.start()
    for thread, proxy in zip(threads, proxies, strict=True):
        thread.join(max(0.0, ends_at - time.monotonic()))
        if thread.is_alive():
            proxy.fail(f"no response within {timeout:g} s")


def _console() -> Console:
    """The terminal, or where there is none plain text without colours."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else _PIPED_WIDTH
    return Console(highlight=False, width=max(width, _LEAST), no_color=True, force_terminal=False)


def _print(proxies: list[ScrapedProxy], console: Console, sort: str, behind: str = "") -> None:
    """Print a frame, all of it at once, and not by rich: it flushes by itself, and exits with 1
    where it finds that nobody reads any more."""
    with console.capture() as captured:
        console.print(frame(proxies, _look(console, sort)))
    lines = (f"{line.rstrip()}\n" for line in captured.get().splitlines())
    sys.stdout.write("".join((*lines, behind)))
    sys.stdout.flush()


def _look(console: Console, sort: str, *, is_paused: bool = False, keys: bool = False) -> Look:
    width = max(console.width, _LEAST)
    return Look(width, sort, is_paused, keys, datetime.now().astimezone().strftime("%H:%M:%S"))


def _watch(proxies: list[ScrapedProxy], options: argparse.Namespace) -> None:
    """Draw until a key or a signal ends it."""
    running = threading.Event()
    running.set()
    for proxy in proxies:
        arguments = (proxy, options.interval, running)
        threading.Thread(target=_poll_for_ever, args=arguments, daemon=True).start()
    console = _console()
    if not console.is_terminal:
        while True:
            time.sleep(options.interval)
            _print(proxies, console, options.sort, "\n")
    with _keys() as next_key, Live(console=console, screen=True, auto_refresh=False) as live:
        sort = options.sort
        while True:
            look = _look(console, sort, is_paused=not running.is_set(), keys=True)
            live.update(frame(proxies, look), refresh=True)
            key = next_key(options.interval)
            if key in ("q", "\x03", "\x1b"):
                return
            if key == "s":
                sort = SORTS[(SORTS.index(sort) + 1) % len(SORTS)]
            if key in ("p", " "):
                (running.clear if running.is_set() else running.set)()


def _poll_for_ever(proxy: ScrapedProxy, interval: float, running: threading.Event) -> None:
    due_at = time.monotonic()
    while running.wait():
        proxy.poll()
        due_at = max(due_at + interval, time.monotonic())
        time.sleep(max(0.0, due_at - time.monotonic()))


@contextmanager
def _keys() -> Iterator["_NextKey"]:
    """Have keys arrive as they are pressed, and not shown."""
    if not sys.stdin.isatty():
        yield _NextKey(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _NextKey(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _NextKey:
    """Waits for a key for some seconds; empty where none is pressed."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def __call__(self, seconds: float) -> str:
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        return os.read(self._descriptor, 64).decode("latin-1")[:1] if ready else ""
