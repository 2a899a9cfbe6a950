"""The check for leaked keys notices a key in any output."""

import base64
from pathlib import Path

import pytest
from key_leaks import KEYS

KEY = KEYS[0].decode()
ENCODED = base64.b64encode(KEYS[1]).decode()
SUPPORT = str(Path(__file__).parents[1] / "support")

PLUGIN = f"""
import sys
sys.path.insert(0, {SUPPORT!r})
import key_leaks

def pytest_configure(config):
    config.pluginmanager.register(key_leaks)
"""
TALKATIVE = f"""
import logging, subprocess, sys
import pytest

@pytest.fixture
def prints_it():
    print({KEY!r})

def test_harmless():
    print("nothing of it")

def test_prints_it():
    print("the key is", {KEY!r})

def test_prints_a_part_of_it():
    print("the key is", {KEY[:8]!r}, file=sys.stderr)

def test_prints_it_encoded():
    print({ENCODED!r})

def test_prints_it_before(prints_it):
    pass

def test_logs_it():
    logging.warning({KEY!r})

def test_has_a_process_print_it():
    subprocess.run((sys.executable, "-c", "print({KEY!r})"))

def test_reads_it_from_a_process():
    subprocess.run((sys.executable, "-c", "print({KEY!r})"), capture_output=True)
"""
# In one process of tests only: it loads the whole proxy.
TALKATIVE_LOG = f"""
from end_to_end import Lines

def test_has_it_in_the_log():
    Lines().write(b'{{"a":"{KEY}"}}')
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_each_way_to_leak_a_key_fails_its_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    # Of the plugins it needs one; hypothesis and the others take a second in each process.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    logs = processes == "0"
    pytester.makepyfile(TALKATIVE + TALKATIVE_LOG * logs)
    pytester.makeconftest(PLUGIN)
    options = ("-p", "xdist", "-q", "--tb=no", "--no-summary", "--numprocesses", processes)
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, failed=6 + logs, errors=1)
