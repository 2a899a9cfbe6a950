"""The failures: the drawn tree is the real one, and every row of it can be sent and counted."""

import re
from collections.abc import Iterator

import h11
import orjson
import pytest
from failure_examples import FAILURES, example

from ape_cerebras import errors
from ape_cerebras.errors import (
    BadRequest,
    ConnectFailed,
    ConnectTimeout,
    ExchangeTimeout,
    MethodNotAllowed,
    NotFound,
    ProxyError,
    ShutDown,
    TlsFailed,
    UpstreamFailed,
)
from ape_cerebras.telemetry.outcomes import OUTCOMES

WITH_STATUS = [each for each in FAILURES if each.status]
WITHOUT_STATUS = {"ProxyError", "RequestRefused", "ClientGone", "ClientStalled"}


def drawn_tree() -> Iterator[tuple[str, str, str | None]]:
    """Class, parent and status text of every entry in the module's docstring."""
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        entry = re.match(r"^( *(?:[│├└][── │├└]*)?)([A-Z]\w+)(?: +(\d{3}))?(?:[ ,].*)?$", line)
        if entry is None or not (path or entry[2] == "ProxyError"):
            continue
        depth = len(entry[1])
        path = [(at, name) for at, name in path if at < depth]
        yield entry[2], path[-1][1] if path else "Exception", entry[3]
        path.append((depth, entry[2]))
        for child in re.findall(r"[├└]── (\w+)", line[entry.end(2) :]):
            yield child, entry[2], entry[3]
        for sibling, status in re.findall(r", ([A-Z]\w+)(?: (\d{3}))?", line):
            yield sibling, path[-2][1], status or None


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = {name: (parent, status) for name, parent, status in drawn_tree()}
    real = {each.__name__: each.__bases__[0].__name__ for each in FAILURES}
    assert {name: parent for name, (parent, _) in drawn.items()} == real
    for failure in WITH_STATUS:
        _, status = drawn[failure.__name__]
        # A group's heading shows no status: its members do.
        assert status in (str(failure.status), None)
        assert status or failure.__subclasses__()


def test_all_failures_are_public() -> None:
    assert sorted(errors.__all__) == sorted(each.__name__ for each in FAILURES)


@pytest.mark.parametrize("failure", FAILURES)
def test_the_outcome_is_known(failure: type[ProxyError]) -> None:
    assert failure.outcome in OUTCOMES


@pytest.mark.parametrize("failure", FAILURES)
def test_the_status_is_an_error_status(failure: type[ProxyError]) -> None:
    if failure.__name__ in WITHOUT_STATUS:
        assert failure.status == 0
    else:
        assert 400 <= failure.status <= 599


@pytest.mark.parametrize("failure", WITH_STATUS)
def test_the_body_is_plain_text_in_json(failure: type[ProxyError]) -> None:
    error = example(failure)
    if failure is not UpstreamFailed:
        assert error.message
        assert error.message.isascii()
        assert error.message.isprintable()
    body = {"message": error.message, "type": error.type, "code": error.code}
    assert orjson.loads(orjson.dumps(body)) == body
    assert re.fullmatch(r"[a-z_]+", error.type)
    assert re.fullmatch(r"[a-z_]+", error.code)


@pytest.mark.parametrize("failure", WITH_STATUS)
def test_the_headers_are_valid_and_in_lower_case(failure: type[ProxyError]) -> None:
    headers = example(failure).headers
    assert all(name == name.lower() for name, _ in headers)
    h11.Response(status_code=failure.status, headers=list(headers))


@pytest.mark.parametrize("failure", [each for each in WITH_STATUS if each.status >= 500])
def test_a_request_that_may_have_been_carried_out_must_not_be_retried(
    failure: type[ProxyError],
) -> None:
    """It may have been once its first byte was sent: not while connecting or queued."""
    sent = issubclass(failure, UpstreamFailed | ExchangeTimeout | ShutDown)
    connecting = (ConnectFailed, TlsFailed, ConnectTimeout)
    final = (b"x-should-retry", b"false") in example(failure).headers
    assert final == (sent and not issubclass(failure, connecting))


def test_uncertain_framing_ends_the_connection() -> None:
    ends = {each.__name__ for each in WITH_STATUS if not each.keeps}
    assert ends == {
        *("RequestTimeout", "BodyTooLarge", "TargetTooLong", "HeadersTooLarge", "CodingUnknown"),
        *("VersionUnsupported", "Draining", "ShutDown", "InternalError"),
    }


def test_a_bad_request_can_keep_the_connection() -> None:
    assert BadRequest("Reason.").keeps
    assert not BadRequest("Reason.", keeps=False).keeps
    assert BadRequest.keeps
    assert str(BadRequest("Reason.")) == BadRequest("Reason.").message == "Reason."


def test_method_not_allowed_lists_the_allowed_methods() -> None:
    assert MethodNotAllowed("GET", "HEAD").headers == ((b"allow", b"GET, HEAD"),)
    assert MethodNotAllowed.headers == ()


def test_a_class_inherits_the_rest_of_its_row() -> None:
    assert (NotFound.type, NotFound.outcome) == ("invalid_request_error", "refused")
    assert errors.ModelNotFound.type == "not_found_error"
    assert NotFound.type == "invalid_request_error"
    assert errors.DoubledPrefix.code == NotFound.code
