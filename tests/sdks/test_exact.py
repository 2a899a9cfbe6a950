"""The official SDKs request plain replies that the proxy reassembles from streams: they see no
difference."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sdks import LEAVES_GENERATORS, TOOL, SdkClient
from server_process import Served, serving

pytestmark = [LEAVES_GENERATORS, pytest.mark.loops_in_turn]
MakeClient = Callable[..., SdkClient]


@pytest.fixture(scope="module")
def exact(backend: str) -> Iterator[Served]:
    """A process that serves the simulator to everybody, and times plain replies."""
    with serving("serve", "--demo", BACKEND=backend, TTFT_MODE="exact") as served:
        yield served


@pytest.mark.parametrize(
    "requested", [{}, {"model": "llama3.1-8b", "n": 2}, {"tools": [TOOL]}, {"max_tokens": 5}]
)
def test_a_plain_response(
    sdk_client: MakeClient, demo: Served, exact: Served, requested: dict[str, Any]
) -> None:
    client = sdk_client(exact)
    response, other = client.whole(**requested), sdk_client(demo).whole(**requested)
    line = exact.exchange(client.trace_id)
    differs = {"id": None, "created": None, "time_info": None}
    made, expected = response.model_dump() | differs, other.model_dump() | differs
    for choice in (*made["choices"], *expected["choices"]):
        for call in choice["message"]["tool_calls"] or ():
            assert call.pop("id")
    assert made == expected
    assert (line["stream"], line["outcome"]) == (False, "completed")
    assert (line["ttft_source"], line["total_tokens"]) == ("measured", response.usage.total_tokens)


def test_an_error_inside_the_stream_is_raised_by_its_status(
    sdk_client: MakeClient, exact: Served
) -> None:
    client = sdk_client(exact)
    with pytest.raises(client.sdk.errors.InternalServerError) as caught:
        client.whole("fault=error_event, at=4")
    line = exact.exchange(client.trace_id)
    assert caught.value.status_code == line["status_code"] == 500
    assert "Encountered a server error" in str(caught.value.body)
    assert line["outcome"] == "upstream_stream_error"


def test_a_stream_that_is_cut_is_raised(sdk_client: MakeClient, exact: Served) -> None:
    client = sdk_client(exact)
    with pytest.raises(client.sdk.errors.InternalServerError) as caught:
        client.whole("fault=cut, at=4")
    assert caught.value.status_code == 502
    assert exact.exchange(client.trace_id)["outcome"] == "upstream_truncated"
