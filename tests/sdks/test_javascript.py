"""The official JavaScript SDKs through the proxy. One Node process sends every request of all
tests (tests/sdks/js), as reading the SDKs takes a second of CPU; the tests look at what it
printed."""

import subprocess
import threading
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import orjson
import pytest
from sdks import JAVASCRIPT, node
from server_process import Served, environment

TIMEOUT = 30.0  # seconds; a cold Node reads thousands of small files first
SDKS = ("openai", "cerebras")

RESPONDED = ("plain", "stream", "tool", "toolStream", "models", "model")
REFUSED = ("unknownModel", "modelNotFound", "upstreamKey", "rateLimit", "serverError", "refused")
BROKEN = ("errorEvent", "cut", "cutInside")

NO_BODY = "status code (no body)"
NOT_THERE = "Model does not exist or you do not have access to it."


class Outcomes(NamedTuple):
    """What a client printed: the response or the error, and the events of a stream before it."""

    response: Any
    error: dict[str, Any]
    events: int


Outputs = dict[tuple[str, str], Outcomes]


class Clients:
    """The Node process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def _ask(self, served: Served, **wanted: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = {"url": f"http://127.0.0.1:{served.port}", **wanted}
        self._process.stdin.write(orjson.dumps(question) + b"\n")
        self._process.stdin.flush()
        late = threading.Timer(TIMEOUT, self._process.kill)
        late.start()
        printed = self._process.stdout.readline()
        late.cancel()
        late.join()
        assert printed, "Node has ended, or printed nothing in time"
        return orjson.loads(printed)

    def request(self, served: Served, *scenarios: str) -> Outputs:
        lines = self._ask(served, scenarios=scenarios)
        assert len(lines) == len(SDKS) * len(scenarios)
        return {
            (line["sdk"], line["scenario"]): Outcomes(
                line.get("response"), line.get("error", {}), line["events"]
            )
            for line in lines
        }

    def errors_of_the_ai_sdk(self, served: Served, simulate: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = self._ask(served, breaks=simulate)
        return found


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    pipe = subprocess.PIPE
    command = (node(), str(JAVASCRIPT / "clients.mjs"))
    with (
        TemporaryFile() as complaints,
        subprocess.Popen(
            command, env=environment(), stdin=pipe, stdout=pipe, stderr=complaints
        ) as process,
    ):
        try:
            yield Clients(process)
            process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        complaints.seek(0)
        assert (process.returncode, complaints.read()) == (0, b"")


@pytest.fixture(scope="module")
def reported(clients: Clients, demo: Served) -> Outputs:
    return clients.request(demo, *RESPONDED, *REFUSED, *BROKEN)


@pytest.mark.parametrize("sdk", SDKS)
def test_responses_and_streams(reported: Outputs, sdk: str) -> None:
    plain, stream = reported[sdk, "plain"], reported[sdk, "stream"]
    assert not plain.error
    assert not stream.error
    assert stream.response == plain.response
    assert stream.events > 3
    assert len(plain.response["text"].split()) == 48
    assert len(plain.response["reasoning"].split()) == 16
    assert (plain.response["finish"], plain.response["tokens"]) == ("stop", 64)


@pytest.mark.parametrize("sdk", SDKS)
def test_tool_calls(reported: Outputs, sdk: str) -> None:
    plain, stream = reported[sdk, "tool"], reported[sdk, "toolStream"]
    assert stream.response == plain.response
    assert plain.response["tool"] == "get_weather"
    assert plain.response["arguments"] == '{"city":"test"}'
    assert plain.response["finish"] == "tool_calls"


@pytest.mark.parametrize("sdk", SDKS)
def test_models(reported: Outputs, sdk: str) -> None:
    unknown = reported[sdk, "unknownModel"].error
    assert {"gpt-oss-120b", "llama3.1-8b"} <= set(reported[sdk, "models"].response)
    assert reported[sdk, "model"].response == "gpt-oss-120b"
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
def test_errors_of_the_proxy(reported: Outputs, sdk: str, scenario: str) -> None:
    assert_readable(reported[sdk, scenario].error, *OWN[scenario])


def test_a_refused_key(clients: Clients, guarded: Served) -> None:
    message = "Missing or wrong API key."
    for line in clients.request(guarded, "plain").values():
        assert line.error["name"] == "AuthenticationError"
        assert_readable(line.error, 401, message, "authentication_error", "invalid_api_key")


def test_an_upstream_that_cannot_be_reached(clients: Clients, unreachable: Served) -> None:
    message = "Could not connect to the upstream API."
    for line in clients.request(unreachable, "plain").values():
        assert line.error["name"] == "InternalServerError"
        assert_readable(line.error, 502, message, "upstream_error", "connect_error")


@pytest.mark.parametrize("sdk", SDKS)
def test_a_rejected_account_key_is_not_the_clients_error(reported: Outputs, sdk: str) -> None:
    error = reported[sdk, "upstreamKey"].error
    message = "The upstream API did not accept this proxy's own API key."
    assert error["name"] == "InternalServerError"
    assert_readable(error, 502, message, "upstream_error", "upstream_key_refused")


# Errors of the API pass as they are: flat. OpenAI's JavaScript SDK reads only wrapped ones.
THE_APIS = {
    "modelNotFound": (404, "NotFoundError", NOT_THERE),
    "rateLimit": (429, "RateLimitError", "Requests per minute limit exceeded"),
}


@pytest.mark.parametrize("scenario", THE_APIS)
def test_flat_errors_of_the_api(reported: Outputs, scenario: str) -> None:
    status, name, message = THE_APIS[scenario]
    for sdk, text in (("openai", NO_BODY), ("cerebras", message)):
        error = reported[sdk, scenario].error
        assert (error["status"], error["name"]) == (status, name)
        assert error["message"].startswith(f"{status} {text}")
        assert error.get("retryAfter") == ("1" if scenario == "rateLimit" else None)


@pytest.mark.parametrize("sdk", SDKS)
def test_a_wrapped_error_of_the_api(reported: Outputs, sdk: str) -> None:
    error = reported[sdk, "serverError"].error
    assert (error["status"], error["name"]) == (500, "InternalServerError")
    assert "Encountered a server error" in error["message"]


@pytest.mark.parametrize("sdk", SDKS)
@pytest.mark.parametrize("scenario", BROKEN)
def test_a_stream_that_breaks_is_an_error(reported: Outputs, sdk: str, scenario: str) -> None:
    """Messages differ: an SDK may see the connection break before it reads the event."""
    line = reported[sdk, scenario]
    assert line.response is None
    assert line.error["message"]
    assert 0 < line.events <= 4


def test_the_ai_sdk_reports_a_stream_that_breaks(clients: Clients, demo: Served) -> None:
    """The error event's message comes first; the cut behind it is another error."""
    reported = clients.errors_of_the_ai_sdk(demo, "fault=cut, at=4")
    assert set(reported) == {"cerebras", "compatible"}
    for messages in reported.values():
        assert messages[0] == "The upstream API's response ended before it was complete."


def test_the_warm_up_of_the_cerebras_client(clients: Clients, guarded: Served) -> None:
    """It carries a key that is not accepted, and does not matter."""
    clients.request(guarded, "models")
    warmed = guarded.line_where(lambda line: line.get("route") == "/v1/tcp_warming")
    assert (warmed["status_code"], warmed["outcome"]) == (200, "completed")
