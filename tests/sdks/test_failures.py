"""The official Python SDKs read every failure: the API's errors, the proxy's own, and streams that
break. None of them takes a failure for a success."""

from collections.abc import Callable
from typing import Any

import pytest
from sdks import LEAVES_GENERATORS, REQUEST, SdkClient
from server_process import Served

pytestmark = [LEAVES_GENERATORS, pytest.mark.loops_in_turn]
MakeClient = Callable[..., SdkClient]

KEYS = ("message", "type", "param", "code")
INVALID = "invalid_request_error"
NOT_THERE = "Model does not exist or you do not have access to it."
UNKNOWN_FIELD = "body.store: property 'body.store' is unsupported"
BUSY = "We're experiencing high traffic right now! Please try again soon."


def failure(client: SdkClient, simulate: str = "", **request: Any) -> Any:
    """The exception that the request raises."""
    with pytest.raises(client.sdk.errors.APIStatusError) as caught:
        client.whole(simulate, **request)
    return caught.value


def reported(error: Any) -> tuple[Any, ...]:
    return tuple(error.body[key] for key in KEYS)


THE_APIS = [
    (
        "unknown_field",
        (400, "BadRequestError"),
        (UNKNOWN_FIELD, INVALID, "validation_error", "wrong_api_format"),
    ),
    (
        "queue",
        (429, "RateLimitError"),
        (BUSY, "too_many_requests_error", "queue", "queue_exceeded"),
    ),
]


@pytest.mark.parametrize(("fault", "kind", "expected"), THE_APIS)
def test_the_apis_errors(
    sdk_client: MakeClient,
    demo: Served,
    fault: str,
    kind: tuple[int, str],
    expected: tuple[str, ...],
) -> None:
    client = sdk_client(demo)
    error = failure(client, f"fault={fault}")
    assert (error.status_code, type(error).__name__) == kind
    assert reported(error) == expected
    assert expected[0] in str(error)
    assert demo.exchange(client.trace_id)["upstream_status"] == kind[0]


def test_a_rejected_account_key_is_not_the_clients_error(
    sdk_client: MakeClient, demo: Served
) -> None:
    client = sdk_client(demo)
    error = failure(client, "fault=wrong_api_key")
    message = "The upstream API did not accept this proxy's own API key."
    assert isinstance(error, client.sdk.errors.InternalServerError)
    assert (error.status_code, reported(error)) == (
        502,
        (message, "upstream_error", "", "upstream_key_refused"),
    )
    # An event line, which says that the account's key is refused, has the same trace id.
    line = demo.line_where(
        lambda line: line.get("trace_id") == client.trace_id and "outcome" in line
    )
    assert (line["upstream_status"], line["level"]) == (401, "error")
    assert line["outcome"] == "upstream_key_refused"


def test_an_unknown_model(sdk_client: MakeClient, demo: Served) -> None:
    error = failure(sdk_client(demo), model="nobody")
    assert isinstance(error, sdk_client(demo).sdk.errors.NotFoundError)
    assert reported(error) == (NOT_THERE, "not_found_error", "model", "model_not_found")


def test_a_field_that_the_api_does_not_know(sdk_client: MakeClient, demo: Served) -> None:
    error = failure(sdk_client(demo), extra_body={"store": True})
    assert reported(error) == (UNKNOWN_FIELD, INVALID, "validation_error", "wrong_api_format")


def test_an_error_of_the_apis_server(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    error = failure(client, "fault=500")
    assert isinstance(error, client.sdk.errors.InternalServerError)
    assert error.status_code == 500
    assert error.body["message"] == "Encountered a server error, please try again."


def test_a_rate_limit_has_a_retry_after(sdk_client: MakeClient, demo: Served) -> None:
    headers = failure(sdk_client(demo), "fault=429").response.headers
    assert headers["retry-after"] == "1"
    assert headers["x-ratelimit-limit-requests-day"]
    assert "set-cookie" not in headers


def test_a_body_that_the_proxy_refuses(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    error = failure(client, extra_body={"model": 5})
    assert isinstance(error, client.sdk.errors.BadRequestError)
    assert reported(error) == ("'model' must be a non-empty string.", INVALID, "", "bad_request")
    assert demo.exchange(client.trace_id)["outcome"] == "refused"


def test_a_key_that_the_proxy_does_not_know(sdk_client: MakeClient, guarded: Served) -> None:
    client = sdk_client(guarded, api_key="another-key")
    error = failure(client)
    message, *rest = reported(error)
    assert isinstance(error, client.sdk.errors.AuthenticationError)
    assert message.startswith("Missing or wrong API key.")
    assert rest == ["authentication_error", "", "invalid_api_key"]
    assert "another-key" not in str(error)
    assert guarded.exchange(client.trace_id)["outcome"] == "unauthorized"


def test_an_upstream_that_cannot_be_reached(sdk_client: MakeClient, unreachable: Served) -> None:
    client = sdk_client(unreachable)
    error = failure(client)
    message = "Could not connect to the upstream API."
    assert isinstance(error, client.sdk.errors.InternalServerError)
    assert error.status_code == 502
    assert reported(error) == (message, "upstream_error", "", "connect_error")
    assert message in str(error)
    assert unreachable.exchange(client.trace_id)["outcome"] == "upstream_connect_failed"


@pytest.mark.parametrize("fault", ["close", "garbage"])
def test_without_a_response_from_upstream_there_is_one_request(
    sdk_client: MakeClient, demo: Served, fault: str
) -> None:
    """It may have been carried out: the response has a header that forbids retries, and the SDKs
    obey it."""
    client = sdk_client(demo, max_retries=2)
    error = failure(client, f"fault={fault}")
    assert reported(error)[3] == "invalid_response"
    assert error.response.headers["x-should-retry"] == "false"
    assert demo.exchange(client.trace_id)["outcome"] == "upstream_invalid"
    later = sdk_client(demo)
    later.whole()
    demo.exchange(later.trace_id)
    assert [line["trace_id"] for line in demo.lines].count(client.trace_id) == 1


def test_an_error_event_in_a_stream(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    with pytest.raises(client.sdk.errors.APIError, match="Encountered a server error") as caught:
        client.stream("fault=error_event, at=4")
    line = demo.exchange(client.trace_id)
    assert len(client.events) == 3
    assert getattr(caught.value, "status_code", 500) == 500  # OpenAI's has none
    assert (line["status_code"], line["outcome"]) == (200, "upstream_stream_error")


@pytest.mark.parametrize("fault", ["cut", "end"])
def test_a_stream_that_ends_between_events(
    sdk_client: MakeClient, demo: Served, fault: str
) -> None:
    client = sdk_client(demo)
    with pytest.raises(client.sdk.errors.APIError, match="ended before it was complete") as caught:
        client.stream(f"fault={fault}, at=4")
    line = demo.exchange(client.trace_id)
    assert len(client.events) == 4
    assert reported(caught.value)[1:] == ("upstream_error", "", "stream_truncated")
    assert getattr(caught.value, "status_code", 502) == 502
    assert (line["status_code"], line["outcome"]) == (200, "upstream_truncated")


def test_a_stream_that_is_cut_inside_an_event(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    with pytest.raises(Exception, match=r"Connection error|closed connection"):
        client.stream("fault=cut_inside, at=4")
    assert len(client.events) == 3
    assert demo.exchange(client.trace_id)["outcome"] == "upstream_truncated"


def test_a_plain_response_that_is_cut(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    with pytest.raises(client.sdk.errors.APIConnectionError):
        client.whole("fault=cut_inside")
    assert demo.exchange(client.trace_id)["outcome"] == "upstream_truncated"


def test_a_connection_serves_on_after_a_failure(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    failure(client, **{**REQUEST, "model": "nobody"})
    assert client.whole().usage.completion_tokens == 64
