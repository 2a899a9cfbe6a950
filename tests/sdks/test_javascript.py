"""The official JavaScript SDKs through the proxy. One Node process sends every request
(tests/sdks/js); the tests look at what it printed."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from server_process import Served, environment

HERE = Path(__file__).parent / "js"
TIMEOUT = 30.0  # seconds; a cold Node reads thousands of small files first
SDKS = ("openai", "cerebras")

ANSWERED = ("plain", "stream", "tool", "toolStream", "models", "model")
REFUSED = ("unknownModel", "modelNotFound", "upstreamKey", "rateLimit", "serverError", "refused")
BROKEN = ("errorEvent", "cut", "cutInside")

NO_BODY = "status code (no body)"
NOT_THERE = "Model does not exist or you do not have access to it."


class Told(NamedTuple):
    """What a client printed: the answer or the error, and the events of a stream before it."""

    answer: Any
    error: dict[str, Any]
    events: int


Answers = dict[tuple[str, str], Told]


def node() -> str:
    """Where Node is; the tests are skipped where there is none, save in CI."""
    path = shutil.which("node")
    missing = "" if path else "there is no Node"
    if not (HERE / "node_modules").is_dir():
        missing = missing or "the SDKs are not installed: run 'npm ci' in tests/sdks/js"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    assert path is not None
    return path


def ask(served: Served, *scenarios: str) -> Answers:
    url = f"http://127.0.0.1:{served.port}"
    done = subprocess.run(
        (node(), str(HERE / "clients.mjs"), url, "any-key", *scenarios),
        env=environment(),
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [orjson.loads(text) for text in done.stdout.splitlines()]
    assert len(lines) == len(SDKS) * len(scenarios)
    return {
        (line["sdk"], line["scenario"]): Told(
            line.get("answer"), line.get("error", {}), line["events"]
        )
        for line in lines
    }


@pytest.fixture(scope="module")
def told(demo: Served) -> Answers:
    return ask(demo, *ANSWERED, *REFUSED, *BROKEN)


@pytest.mark.parametrize("sdk", SDKS)
def test_responses_and_streams(told: Answers, sdk: str) -> None:
    plain, stream = told[sdk, "plain"], told[sdk, "stream"]
    assert not plain.error
    assert not stream.error
    assert stream.answer == plain.answer
    assert stream.events > 3
    assert len(plain.answer["text"].split()) == 48
    assert len(plain.answer["reasoning"].split()) == 16
    assert (plain.answer["finish"], plain.answer["tokens"]) == ("stop", 64)


@pytest.mark.parametrize("sdk", SDKS)
def test_tool_calls(told: Answers, sdk: str) -> None:
    plain, stream = told[sdk, "tool"], told[sdk, "toolStream"]
    assert stream.answer == plain.answer
    assert plain.answer["tool"] == "get_weather"
    assert plain.answer["arguments"] == '{"city":"test"}'
    assert plain.answer["finish"] == "tool_calls"


@pytest.mark.parametrize("sdk", SDKS)
def test_models(told: Answers, sdk: str) -> None:
    unknown = told[sdk, "unknownModel"].error
    assert {"gpt-oss-120b", "llama3.1-8b"} <= set(told[sdk, "models"].answer)
    assert told[sdk, "model"].answer == "gpt-oss-120b"
    assert (unknown["name"], unknown["message"]) == ("NotFoundError", f"404 {NOT_THERE}")


OWN = {
    "refused": (400, "'model' must be a non-empty string.", "invalid_request_error", "bad_request"),
    "unknownModel": (404, NOT_THERE, "not_found_error", "model_not_found"),
}


def assert_readable(error: dict[str, Any], *expected: Any) -> None:
    """Both read an error that the proxy made; OpenAI's SDK has attributes, Cerebras's the body."""
    status, message, type_, code = expected
    read = error if "code" in error else error["body"]
    assert error["status"] == status
    assert error["message"].startswith(f"{status} {message}")
    assert (read["type"], read["code"], read["param"]) == (type_, code, "")


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("scenario", OWN)
def test_errors_of_the_proxy(told: Answers, sdk: str, scenario: str) -> None:
    assert_readable(told[sdk, scenario].error, *OWN[scenario])


def test_a_refused_key(guarded: Served) -> None:
    message = "Missing or wrong API key."
    for line in ask(guarded, "plain").values():
        assert line.error["name"] == "AuthenticationError"
        assert_readable(line.error, 401, message, "authentication_error", "invalid_api_key")


def test_an_upstream_that_cannot_be_reached(unreachable: Served) -> None:
    message = "Could not connect to the upstream API."
    for line in ask(unreachable, "plain").values():
        assert line.error["name"] == "InternalServerError"
        assert_readable(line.error, 502, message, "upstream_error", "connect_error")


@pytest.mark.parametrize("sdk", SDKS)
def test_a_rejected_account_key_is_not_the_clients_error(told: Answers, sdk: str) -> None:
    error = told[sdk, "upstreamKey"].error
    message = "The upstream API did not accept this proxy's own API key."
    assert error["name"] == "InternalServerError"
    assert_readable(error, 502, message, "upstream_error", "upstream_key_refused")


# Errors of the API pass as they are: flat. OpenAI's JavaScript SDK reads only wrapped ones.
THE_APIS = {
    "modelNotFound": (404, "NotFoundError", NOT_THERE),
    "rateLimit": (429, "RateLimitError", "Requests per minute limit exceeded"),
}


@pytest.mark.parametrize("scenario", THE_APIS)
def test_flat_errors_of_the_api(told: Answers, scenario: str) -> None:
    status, name, message = THE_APIS[scenario]
    for sdk, text in (("openai", NO_BODY), ("cerebras", message)):
        error = told[sdk, scenario].error
        assert (error["status"], error["name"]) == (status, name)
        assert error["message"].startswith(f"{status} {text}")
        assert error.get("retryAfter") == ("1" if scenario == "rateLimit" else None)


@pytest.mark.parametrize("sdk", SDKS)
def test_a_wrapped_error_of_the_api(told: Answers, sdk: str) -> None:
    error = told[sdk, "serverError"].error
    assert (error["status"], error["name"]) == (500, "InternalServerError")
    assert "Encountered a server error" in error["message"]


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("scenario", BROKEN)
def test_a_stream_that_breaks_is_an_error(told: Answers, sdk: str, scenario: str) -> None:
    """What it says differs: an SDK may see the connection break before it reads the event."""
    line = told[sdk, scenario]
    assert line.answer is None
    assert line.error["message"]
    assert 0 < line.events <= 4


def test_the_warm_up_of_the_cerebras_client(guarded: Served) -> None:
    """It carries a key that is not accepted, and does not matter."""
    ask(guarded, "models")
    warmed = guarded.line_where(lambda line: line.get("route") == "/v1/tcp_warming")
    assert (warmed["status_code"], warmed["outcome"]) == (200, "completed")
