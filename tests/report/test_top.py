"""The command as a user runs it: one frame, piped, and in a terminal with keys."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pyte
import pytest
from rich.console import Console
from run_here import run_here
from scraped_proxies import buckets_text
from server_process import TIMEOUT, Served, environment, run, serving
from worker_service import CHAT, JSON

from ape_cerebras.report.scrape import ScrapedProxy, parse
from ape_cerebras.report.screen import SORTS, Look, frame

FAST = ("--interval", "0.2")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Served]:
    with serving("serve", "--demo") as served:
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        connection.getresponse().read()
        connection.close()
        yield served


def text_of(proxies: list[ScrapedProxy], look: Look) -> str:
    console = Console(width=look.width, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(frame(proxies, look))
    return captured.get()


def made(step: int) -> str:
    """What a proxy of two models says at its second ``step``."""
    lines = [
        *(f'requests_total{{model="slow"}} {4 * step}', f'requests_total{{model="quick"}} {step}'),
        *(f'errors_total{{model="slow"}} {step}', 'tokens_total{model="slow",type="prompt"} 0'),
        *(f'tokens_total{{model="quick",type="completion"}} {500 * step}',),
        *(f'cost_usd_total{{model="quick"}} {0.001 * step}',),
        *(f'client_requests_total{{client="alice"}} {2 * step}',),
        f'outcomes_total{{route="r",outcome="upstream_failed",class="upstream",status_code="502"}} '
        f"{step}",
        *("requests_in_flight 3", "queue_length 2", "client_connections 7"),
        *('upstream_circuit{state="open"} 1', 'upstream_circuit{state="closed"} 0'),
        *("workers_up 1", "workers_configured 2", 'degraded{reason="ttft"} 1'),
        *('upstream_ratelimit_limit{kind="tokens",window="minute"} 1000',),
        *('upstream_ratelimit_remaining{kind="tokens",window="minute"} 40',),
    ]
    text = "".join(f"cerebras_proxy_{line}\n" for line in lines)
    for name, share in (("ttft_seconds", 10), ("upstream_ttft_seconds", 9)):
        counts = {"0.1": 5 * step, "+Inf": 5 * step}
        text += buckets_text(name, counts, share * step / 100, 'model="slow",')
    text += buckets_text("proxy_own_seconds", {"+Inf": 5 * step}, step / 100, 'model="slow",')
    return text + buckets_text("network_seconds", {"+Inf": 5 * step}, 0.06 * step, 'model="slow",')


def two_proxies() -> list[ScrapedProxy]:
    up, down = ScrapedProxy("http://one:8000", 10), ScrapedProxy("two:8000/metrics", 10)
    for step in range(3):
        up.add(parse(made(step).encode()), float(step))
    down.fail("connection refused")
    return [up, down]


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_shows_all_of_it_within_its_width(width: int) -> None:
    text = text_of(two_proxies(), Look(width))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for words in (
        *(r"1 of 2 up", r"last 2 s", r"5/s +1/s 20.0 % +3 +2 +500/s +0/s +\$3.60/h"),
        *(r"felt +50.0 ms +95.0 ms +99.0 ms +10", r"mean TTFT 20.0 ms", r"network 12.0 ms"),
        *(r"own 2.00 ms", r"upstream 6.00 ms", r"tokens/minute +40 +1,000 +4 %"),
        *(r"slow +4/s +1/s +95.0 ms +0/s", r"quick +1/s +0/s +- +500/s", r"alice +2/s"),
        *(r"upstream_failed +1/s +upstream", r"one:8000 +5/s +3 +2 +7 +1/2 +circuit open"),
        *(r"two:8000 +(- +){5}connection",),
    ):
        assert re.search(words, text), words


def test_the_bar_is_as_long_as_its_parts() -> None:
    """Network 12 of 20 ms, the rest of upstream 6, our own 2: 60, 30 and 10 %."""
    console = Console(width=102, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as captured:
        console.print(frame(two_proxies(), Look(102)))
    [bar] = [line for line in captured.get().splitlines() if "██" in line]
    parts = [len(part) for part in re.findall("█+", bar)]
    assert parts == [60, 30, 10]


def test_sorting() -> None:
    for sort, first in (("requests", "slow"), ("tokens", "quick"), ("name", "quick")):
        text = text_of(two_proxies(), Look(120, sort))
        names = re.findall(r"^(slow|quick) ", text, re.MULTILINE)
        assert names[0] == first, sort
    assert "name" in SORTS


def test_a_frame_without_anything() -> None:
    text = text_of([ScrapedProxy("http://a", 10)], Look(80))
    assert "0 of 1 up" in text
    assert "not read yet" in text
    assert "mean TTFT" not in text


# The command


def test_once_prints_a_frame(proxy: Served) -> None:
    url = f"http://127.0.0.1:{proxy.port}"
    done = run("top", url, "--once", *FAST)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 1 up" in done.stdout
    assert "\x1b" not in done.stdout
    assert f"127.0.0.1:{proxy.port}" in done.stdout


def test_a_proxy_that_is_down_is_said_and_others_go_on(proxy: Served) -> None:
    done = run_here("top", f"127.0.0.1:{proxy.port}", "127.0.0.1:1", "--once", *FAST)
    assert done.returncode == 1
    assert "1 of 2 up" in done.stdout
    assert done.stderr == "ape-cerebras top: 127.0.0.1:1: connection refused\n"


def test_nothing_to_watch() -> None:
    done = run_here("top", "127.0.0.1:1", "--once", *FAST)
    assert done.returncode == 2
    assert done.stderr == "ape-cerebras top: 127.0.0.1:1: connection refused\n"


@pytest.mark.parametrize("flags", [["--interval", "0"], ["--window", "x"], ["--sort", "colour"]])
def test_wrong_flags(flags: list[str]) -> None:
    done = run_here("top", *flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_frames_follow_one_another_in_a_pipe(proxy: Served) -> None:
    command = (sys.executable, "-m", "ape_cerebras", "top", f"127.0.0.1:{proxy.port}", *FAST)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    ) as process:
        assert process.stdout is not None
        frames = 0
        while frames < 3:
            frames += process.stdout.readline().startswith("ape-cerebras top")
        process.stdout.close()
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


class Terminal:
    """A terminal of 90 columns and 40 lines in which the command runs."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._screen = pyte.Screen(90, 40)
        self._stream = pyte.ByteStream(self._screen)

    def press(self, key: str) -> None:
        os.write(self._descriptor, key.encode())

    def until(self, words: str) -> str:
        """What is shown once ``words`` are."""
        ends_at = time.monotonic() + TIMEOUT
        while words not in (shown := "\n".join(self._screen.display)):
            ready, _, _ = select.select([self._descriptor], [], [], ends_at - time.monotonic())
            assert ready, shown
            self._stream.feed(os.read(self._descriptor, 65536))
        return shown

    def is_echoing(self) -> bool:
        return bool(termios.tcgetattr(self._descriptor)[3] & termios.ECHO)


@contextmanager
def in_a_terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 90))
    process = subprocess.Popen(
        (sys.executable, "-m", "ape_cerebras", "top", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(TERM="xterm-256color"),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_keys_sort_pause_and_quit(proxy: Served) -> None:
    with in_a_terminal(f"127.0.0.1:{proxy.port}", *FAST) as terminal:
        assert "q quit  p pause  s by requests" in terminal.until("1 of 1 up   last 1 s")
        assert not terminal.is_echoing()
        terminal.press("s")
        terminal.until("s by errors")
        terminal.press("p")
        assert "p go on" in terminal.until("paused")
        terminal.press(" ")
        terminal.until("p pause")
        terminal.press("q")
        assert terminal.process.wait(TIMEOUT) == 0
        assert terminal.is_echoing()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_leave_the_terminal_as_it_was(proxy: Served, number: int) -> None:
    with in_a_terminal(f"127.0.0.1:{proxy.port}", *FAST) as terminal:
        terminal.until("1 of 1 up")
        terminal.process.send_signal(number)
        assert terminal.process.wait(TIMEOUT) == 0
        assert terminal.is_echoing()


# The extra


def test_without_the_extra_it_says_which() -> None:
    code = (
        "from importlib import util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'rich' else found(name, *more)\n"
        "from ape_cerebras.commands import run_command\nrun_command(['top'])"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs rich: pip install 'ape-cerebras[top]'" in done.stderr
