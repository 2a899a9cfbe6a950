"""Errors, models and headers, against recordings of the real API."""

import orjson
import pytest

from ape_cerebras.simulator.replies import (
    ERRORS,
    Rejected,
    error_named,
    model_list,
    one_model,
    over_quota,
    reply_headers,
    stream_error,
    wrong_format,
)

BODIES = {
    "unknown_field": b'{"message":"body.store: property \'body.store\' is unsupported",'
    b'"type":"invalid_request_error","param":"validation_error","code":"wrong_api_format"}',
    "mixed_strict": b'{"message":"Tools with mixed values for \'strict\' are not allowed. Please'
    b" set all tools to 'strict: true' or 'strict: false'"
    b'","type":"invalid_request_error","param":"tools","code":"wrong_api_format"}',
    "wrong_api_key": b'{"message":"Wrong API Key","type":"invalid_request_error",'
    b'"param":"api_key","code":"wrong_api_key"}',
    "payment_required": b'{"message":"Payment required to access this resource. Visit your billing'
    b' tab.","type":"payment_required_error","param":"quota","code":"payment_required"}',
    "unauthenticated": b'{"detail":"Not authenticated"}',
    "model_not_found": b'{"message":"Model does not exist or you do not have access to it.",'
    b'"type":"not_found_error","param":"model","code":"model_not_found"}',
    "route_not_found": b"",
    "requests": b'{"message":"Requests per minute limit exceeded - too many requests sent.",'
    b'"type":"too_many_requests_error","param":"quota","code":"request_quota_exceeded"}',
    "tokens": b'{"message":"Tokens per minute limit exceeded - too many tokens processed.",'
    b'"type":"too_many_tokens_error","param":"quota","code":"token_quota_exceeded"}',
    "queue": b'{"message":"We\'re experiencing high traffic right now! Please try again soon.",'
    b'"type":"too_many_requests_error","param":"queue","code":"queue_exceeded"}',
    "server_error": b'{"status_code":500,"error":{"message":"Encountered a server error, please try'
    b' again.","type":"server_error","param":"","code":"","id":""}}',
}


@pytest.mark.parametrize("name", BODIES)
def test_an_error_has_the_recorded_body(name: str) -> None:
    assert ERRORS[name].body == BODIES[name]


@pytest.mark.parametrize("what", ["requests", "tokens"])
def test_an_exceeded_quota_names_its_window_and_retry_after(what: str) -> None:
    reply = over_quota(what, "day", 90)
    assert reply.status == 429
    assert reply.body == BODIES[what].replace(b"minute", b"day")
    assert (b"retry-after", b"90") in reply.headers


def test_only_one_error_body_is_a_guess() -> None:
    assert ERRORS.keys() - BODIES.keys() == {"unavailable"}
    assert orjson.loads(ERRORS["unavailable"].body)["status_code"] == 503


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("400", "unknown_field"),
        ("401", "wrong_api_key"),
        ("402", "payment_required"),
        ("403", "unauthenticated"),
        ("404", "model_not_found"),
        ("429", "requests"),
        ("queue", "queue"),
        ("tokens", "tokens"),
        ("500", "server_error"),
        ("503", "unavailable"),
    ],
)
def test_an_error_is_found_by_name_or_status(wanted: str, name: str) -> None:
    assert error_named(wanted) is ERRORS[name]


@pytest.mark.parametrize("name", ["", "200", "418", "cut"])
def test_other_names_find_no_error(name: str) -> None:
    assert error_named(name) is None


@pytest.mark.parametrize("name", ERRORS)
def test_only_a_429_has_a_retry_after(name: str) -> None:
    headers = dict(ERRORS[name].headers)
    assert (b"retry-after" in headers) == (ERRORS[name].status == 429)
    json = b"text/plain" if name == "route_not_found" else b"application/json"
    assert headers[b"content-type"] == json


def test_a_schema_error_has_the_recorded_shape() -> None:
    assert orjson.loads(wrong_format("body.x: no").body) == {
        "message": "body.x: no",
        "type": "invalid_request_error",
        "param": "validation_error",
        "code": "wrong_api_format",
    }


def test_the_error_event() -> None:
    assert stream_error() == (
        b'data: {"status_code":500,"error":{"message":"Encountered a server error, please try '
        b'again","type":"server_error","param":"","code":"","id":""}}\n\n'
    )


# Models


def test_the_list_of_models() -> None:
    text = model_list()
    entry = b'{"id":"gpt-oss-120b","object":"model","created":0,"owned_by":"Cerebras"}'
    assert text.startswith(b'{"object":"list","data":[' + entry + b",")
    assert one_model("gpt-oss-120b") == entry
    assert {row["id"] for row in orjson.loads(text)["data"]} >= {"zai-glm-4.7", "llama3.1-8b"}


@pytest.mark.parametrize(
    ("model", "prompt", "completion"),
    [
        ("gpt-oss-120b", "0.00000035", "0.00000075"),
        ("llama3.1-8b", "0.0000001", "0.0000001"),
    ],
)
def test_the_public_list_has_prices_per_token(model: str, prompt: str, completion: str) -> None:
    rows = {row["id"]: row for row in orjson.loads(model_list(public=True))["data"]}
    assert rows[model]["pricing"] == {"prompt": prompt, "completion": completion}
    assert orjson.loads(one_model(model, public=True)) == rows[model]


@pytest.mark.parametrize("public", [False, True])
def test_an_unknown_model_is_not_found(public: bool) -> None:
    with pytest.raises(Rejected) as caught:
        one_model("gpt-5", public=public)
    assert caught.value.reply is ERRORS["model_not_found"]


# Headers


def test_the_headers_of_cloudflare() -> None:
    headers = dict(reply_headers(b"ray-1"))
    assert headers[b"server"] == b"cloudflare"
    assert headers[b"cf-ray"] == b"ray-1"
    # Headers that a proxy must drop are sent, so that tests see it drop them.
    assert {b"alt-svc", b"strict-transport-security", b"set-cookie"} <= headers.keys()
