"""Reading of a chat request by the simulator, as far as it shapes the response.

A request that the real API rejects is rejected with the API's own text where that is known, else
with a text of ours in the API's shape.
"""

import zlib
from typing import Any, NamedTuple

import orjson

from .replies import ERRORS, MODELS, Rejected, wrong_format

__all__ = (
    "MAX_BODY_BYTES",
    "CompletionRequest",
    "read_completion_request",
    "parse_completion_request",
)

MAX_BODY_BYTES = 51 * 1024 * 1024  # of an inflated body; the API's documented limit
_CHARACTERS_PER_TOKEN = 4  # of JSON; a rule of thumb for English text

_REASONING = frozenset(("gpt-oss-120b", "qwen-3.8-27b", "zai-glm-4.7"))
# These take images: they report image tokens and no predicted ones. Recorded for gemma; qwen is
# assumed to be alike.
_WITH_IMAGES = frozenset(("gemma-4-31b", "qwen-3.8-27b"))

# Any other name is rejected (the API's OpenAPI description closes the object).
_FIELDS = frozenset(
    """
    clear_thinking disable_reasoning frequency_penalty logit_bias logprobs max_completion_tokens
    max_tokens messages min_completion_tokens min_tokens model model_parameters n
    parallel_tool_calls prediction presence_penalty prompt_cache_key reasoning_effort
    reasoning_format response_format seed service_tier stop stream stream_options temperature
    tool_choice tools top_logprobs top_p user
    """.split()  # noqa: SIM905 - 31 lines otherwise
)


class CompletionRequest(NamedTuple):
    """The parts of a request that shape its response. ``limit``: completion tokens, None for no
    limit; ``tool``: the function to call, None for a response in words."""

    model: str
    prompt_tokens: int = 1
    stream: bool = False
    limit: int | None = None
    choices: int = 1
    effort: str | None = None
    tool: dict[str, Any] | None = None
    include_usage: bool = False

    @property
    def is_reasoning(self) -> bool:
        return self.model in _REASONING and self.effort != "none"

    @property
    def takes_images(self) -> bool:
        """Whether the model takes images."""
        return self.model in _WITH_IMAGES


def read_completion_request(
    body: bytes, content_type: bytes, content_encoding: bytes, default_model: str
) -> CompletionRequest:
    """Read a request body. MessagePack is recognised, not parsed: ``default_model`` responds to it,
    as a stream if the body requests one. Raises Rejected."""
    if content_encoding.strip().lower() == b"gzip":
        body = _inflate(body)
    if b"msgpack" in content_type.lower():
        streams = b"\xa6stream\xc3" in body  # a string of six bytes, then true
        return CompletionRequest(default_model, len(body) // _CHARACTERS_PER_TOKEN or 1, streams)
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Rejected(wrong_format("body: is not valid JSON")) from None
    return parse_completion_request(request)


def _inflate(body: bytes) -> bytes:
    gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated = gzip.decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        raise Rejected(wrong_format("body: is not valid gzip")) from None
    if not gzip.eof:
        raise Rejected(wrong_format("body: the gzip stream is cut short, or too large"))
    return inflated


def parse_completion_request(request: Any) -> CompletionRequest:
    """Read a parsed request. Raises Rejected."""
    if not isinstance(request, dict):
        raise Rejected(wrong_format("body: must be an object"))
    unknown = [name for name in request if name not in _FIELDS]
    if unknown:
        lines = (f"body.{name}: property 'body.{name}' is unsupported" for name in unknown)
        raise Rejected(wrong_format("\n".join(lines)))
    model, messages = request.get("model"), request.get("messages")
    if not isinstance(model, str) or not isinstance(messages, list) or not messages:
        raise Rejected(wrong_format("body: needs 'model', and 'messages' that are not empty"))
    if model not in MODELS:
        raise Rejected(ERRORS["model_not_found"])
    prompt = orjson.dumps([messages, request.get("tools")])
    return CompletionRequest(
        model,
        prompt_tokens=max(1, len(prompt) // _CHARACTERS_PER_TOKEN),
        stream=request.get("stream") is True,
        limit=_read_limit(request),
        choices=_read_whole(request, "n", 1) or 1,
        effort=request.get("reasoning_effort"),
        tool=_tool_to_call(request, messages[-1]),
        include_usage=_member(request.get("stream_options"), "include_usage") is True,
    )


def _member(parent: Any, name: str) -> Any:
    return parent.get(name) if isinstance(parent, dict) else None


def _read_whole(request: dict[str, Any], name: str, least: int) -> int | None:
    value = request.get(name)
    if value is not None and (type(value) is not int or value < least):
        raise Rejected(wrong_format(f"body.{name}: must be a whole number from {least} up"))
    return value


def _read_limit(request: dict[str, Any]) -> int | None:
    """The completion limit in tokens; the API takes -1 for none."""
    names = ("max_completion_tokens", "max_tokens")
    given = [limit for name in names if (limit := _read_whole(request, name, -1)) is not None]
    if len(given) > 1:
        raise Rejected(wrong_format(f"body: only one of {' and '.join(names)} can be given"))
    return given[0] if given and given[0] >= 0 else None


def _tool_to_call(request: dict[str, Any], last_message: Any) -> dict[str, Any] | None:
    """The first tool's function, unless tools are off or the call has its result."""
    tools = request.get("tools")
    if not isinstance(tools, list) or not tools or request.get("tool_choice") == "none":
        return None
    if _member(last_message, "role") == "tool":
        return None
    function = _member(tools[0], "function")
    if not isinstance(_member(function, "name"), str):
        raise Rejected(wrong_format("body.tools.0.function: needs a name"))
    return dict(function)
