"""A plugin: no key may be in the output of tests, nor of the proxies that they start.

A test fails if a key is in its captured output, in the log of a proxy inside the process, or in the
output of a process that it started. The tests' own failure messages are no part of that. Each
process of pytest-xdist looks at the output of its own tests.
"""

import base64
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

__all__ = ("KEYS", "check_for_keys")

KEYS = (
    *(b"csk-upstream-key-0123456789", b"ape-key-0123456789", b"T-client-key-9876543210"),
    *(b"secret-of-alice", b"csk-secret-inner"),
)
_SECRETS = {text for key in KEYS for text in (key, key[:8], base64.b64encode(key))}
_found: list[bytes] = []


def check_for_keys(text: bytes | str | None) -> None:
    """Remember the keys in an output, for the running test to fail."""
    if text:
        shown = text.encode(errors="replace") if isinstance(text, str) else text
        _found.extend(secret for secret in _SECRETS if secret in shown)


def pytest_configure() -> None:
    run = subprocess.run

    def checked(*arguments: Any, **options: Any) -> Any:
        done = run(*arguments, **options)
        check_for_keys(done.stdout)
        check_for_keys(done.stderr)
        return done

    subprocess.run = checked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for title, text in report.sections:
        if title.endswith(report.when):  # sections of earlier phases are repeated
            check_for_keys(text)
    if _found:
        report.outcome = "failed"
        report.longrepr = f"A key was shown: {sorted(set(_found))}"
        _found.clear()
    return report
