"""Crash reports: whatever goes wrong in a process, none of its texts is logged."""

import subprocess
import sys
from typing import Any

import orjson
import pytest
from end_to_end import KEY
from server_process import TIMEOUT, environment

from ape_cerebras.config.values import BACKENDS
from ape_cerebras.process.hardening import ends_with_its_reader
from ape_cerebras.telemetry.logs import describe_exceptions


def caught(work: Any) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError


def fails() -> None:
    raise ValueError(KEY)


def fails_over_it() -> None:
    try:
        fails()
    except ValueError as error:
        raise RuntimeError(KEY) from error


def fails_beside_it() -> None:
    try:
        fails()
    except ValueError:
        raise OSError(KEY)  # noqa: B904 - left to be the context


def fails_instead() -> None:
    try:
        fails()
    except ValueError:
        raise LookupError(KEY) from None


def types(described: list[str]) -> list[str]:
    return [text.partition(" ")[0] for text in described]


def test_an_exception_is_described_by_type_and_locations() -> None:
    [described] = describe_exceptions(caught(fails))
    first = fails.__code__.co_firstlineno
    assert described.startswith(f"ValueError < test_hardening.py:{first + 1} fails < ")
    assert described.endswith(" caught")


def test_causes_and_contexts_are_described_too_and_once() -> None:
    assert types(describe_exceptions(caught(fails_over_it))) == ["RuntimeError", "ValueError"]
    assert types(describe_exceptions(caught(fails_beside_it))) == ["OSError", "ValueError"]
    assert types(describe_exceptions(caught(fails_instead))) == ["LookupError"]
    group = ExceptionGroup(KEY, [caught(fails_over_it), caught(fails_instead)])
    group.__cause__ = group.exceptions[0]
    assert types(describe_exceptions(group)) == [
        "ExceptionGroup",
        "RuntimeError",
        "LookupError",
        "ValueError",
    ]


def test_large_groups_and_deep_stacks_are_cut() -> None:
    def deep(left: int) -> None:
        deep(left - 1) if left else fails()

    group = ExceptionGroup(KEY, [caught(lambda: deep(100)) for _ in range(100)])
    described = describe_exceptions(group)
    assert len(described) == 8
    assert max(map(len, described)) < 400
    assert KEY not in "".join(described)


EVERYWHERE = f"""
import gc, logging, threading
from ape_cerebras.config.values import BACKENDS
from ape_cerebras.process.hardening import report_crashes
key = {KEY!r}

class Finalized:
    def __del__(self):
        raise ValueError(key)

def fail():
    raise KeyError(key)

report_crashes()
thread = threading.Thread(target=fail, name=key)
thread.start()
thread.join()
Finalized()
gc.collect()
try:
    fail()
except KeyError:
    logging.getLogger(key).exception("%s", key)
logging.getLogger(key).warning(key)
raise ExceptionGroup(key, [RuntimeError(key)])
"""


def run(script: str, **settings: str) -> tuple[list[dict[str, Any]], str]:
    """The log lines of a script, and its output on standard error."""
    done = subprocess.run(
        (sys.executable, "-c", script),
        env=environment(**settings),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert KEY.encode() not in done.stdout
    return [orjson.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_crashes_are_reported_in_threads_finalizers_and_libraries() -> None:
    lines, rest = run(EVERYWHERE)
    assert rest == ""
    described = [(line["message"], types(line["exceptions"])) for line in lines]
    assert described == [
        ("A thread failed", ["KeyError"]),
        ("A finalizer failed", ["ValueError"]),
        ("A library reported a problem", ["KeyError"]),
        ("A library reported a problem", []),
        ("Failed", ["ExceptionGroup", "RuntimeError"]),
    ]


BROKEN = """
import os, sys
import ape_cerebras.server as server
from ape_cerebras.__main__ import main
async def fail(*_, **__):
    raise ValueError(os.environ["CEREBRAS_API_KEY"])
server.serve = fail
raise SystemExit(main(["serve"]))
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_proxy_that_fails_reports_its_crash(backend: str, workers: str) -> None:
    settings = {"HOST": "127.0.0.1", "PORT": "0", "BACKEND": backend, "ASYNC_WORKERS": workers}
    lines, rest = run(BROKEN, CEREBRAS_API_KEY=KEY, **settings)
    assert rest == ""
    described = [line for line in lines if "exceptions" in line]
    assert described
    assert {line["message"] for line in described} == {
        "Failed" if workers == "1" else "Worker failed"
    }
    assert {line.get("worker") for line in described} <= ({None} if workers == "1" else {1, 2})
    assert all("ValueError" in types(line["exceptions"]) for line in described)


def breaks_one_inside() -> None:
    raise ExceptionGroup("", [BrokenPipeError()])


def breaks_one() -> None:
    raise BrokenPipeError


@pytest.mark.parametrize("breaks", [breaks_one, breaks_one_inside])
def test_another_broken_pipe_is_no_end(breaks: Any) -> None:
    """Somebody reads the output of these tests."""
    with pytest.raises(ExceptionGroup) as caught, ends_with_its_reader():
        breaks()
    assert caught.group_contains(BrokenPipeError)
