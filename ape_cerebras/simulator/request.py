"""Reading of a chat request by the simulator, as far as it shapes the response, and an example of a
JSON schema in it.

A request that the real API rejects is rejected with the API's own text where that is known, else
with a text of ours in the API's shape.
"""

import zlib
from contextlib import suppress
from math import ceil, floor, inf, isfinite
from typing import Any, NamedTuple

import orjson

from .replies import ERRORS, MODELS, Rejected, wrong_format

__all__ = (
    "ANY_OBJECT",
    "MAX_BODY_BYTES",
    "CompletionRequest",
    "example_of",
    "read_completion_request",
    "parse_completion_request",
)

MAX_BODY_BYTES = 51 * 1024 * 1024  # of an inflated body; the API's documented limit
_MAX_TOP_LOGPROBS = 20
_MAX_DEPTH, _MAX_SCHEMAS = 100, 10_000  # that are looked at for an example
_CHARACTERS_PER_TOKEN = 4  # of JSON; a rule of thumb for English text

ANY_OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
"""The schema of a response for which only JSON was requested."""

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
    limit; ``tool``: the function to call, None for a response in words; ``schema``: of a response
    in JSON, None for any text; ``top_logprobs``: alternatives per token, None for no logprobs."""

    model: str
    prompt_tokens: int = 1
    stream: bool = False
    limit: int | None = None
    choices: int = 1
    effort: str | None = None
    tool: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    top_logprobs: int | None = None

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
        tool=_tool_to_call(request, messages),
        schema=_read_schema(request.get("response_format")),
        top_logprobs=_read_top_logprobs(request),
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


def _read_top_logprobs(request: dict[str, Any]) -> int | None:
    top = _read_whole(request, "top_logprobs", 0) or 0
    if top > _MAX_TOP_LOGPROBS:
        raise Rejected(wrong_format(f"body.top_logprobs: must be at most {_MAX_TOP_LOGPROBS}"))
    return top if request.get("logprobs") is True else None


def _read_schema(response_format: Any) -> dict[str, Any] | None:
    """The JSON schema of the response; that of any object for ``json_object``."""
    kind = _member(response_format, "type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    json_schema = _member(response_format, "json_schema")
    # The SDK's maintainers say that the name is required.
    if kind != "json_schema" or not isinstance(_member(json_schema, "name"), str):
        raise Rejected(wrong_format("body.response_format: needs a known 'type', and a 'name'"))
    schema = json_schema.get("schema")
    return schema if isinstance(schema, dict) else ANY_OBJECT


def _read_tools(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The functions that can be called, by name."""
    tools = request.get("tools")
    functions = [_member(tool, "function") for tool in tools] if isinstance(tools, list) else []
    if not all(isinstance(_member(function, "name"), str) for function in functions):
        raise Rejected(wrong_format("body.tools: each function needs a name"))
    if len({_member(function, "strict") is True for function in functions}) > 1:
        raise Rejected(ERRORS["mixed_strict"])
    return {function["name"]: dict(function) for function in functions}


def _tool_to_call(request: dict[str, Any], messages: list[Any]) -> dict[str, Any] | None:
    """The function that ``tool_choice`` names, else the first one. Where a call is required again,
    it is the first that was not called yet, so that an agent with a final tool comes to its end."""
    functions, choice = _read_tools(request), request.get("tool_choice")
    if choice is not None and not functions:
        raise Rejected(wrong_format("body.tool_choice: is only allowed with 'tools'"))
    if isinstance(choice, dict):
        name = _member(choice.get("function"), "name")
        if not isinstance(name, str) or name not in functions:
            raise Rejected(wrong_format("body.tool_choice: names no function of 'tools'"))
        return functions[name]
    has_result = _member(messages[-1], "role") == "tool"
    if not functions or choice == "none" or (has_result and choice != "required"):
        return None
    made = [_member(message, "tool_calls") for message in messages]
    calls = [call for calls in made if isinstance(calls, list) for call in calls]
    called = [_member(_member(call, "function"), "name") for call in calls]
    return next(
        (function for name, function in functions.items() if name not in called),
        [*functions.values()][-1],
    )


# JSON by a schema


class _NoExample(Exception):
    """A schema that allows no value that is finite."""


# A schema that is none shows as one of the others.
_UNUSABLE = _NoExample, AttributeError, LookupError, RecursionError, TypeError, ValueError


def example_of(schema: dict[str, Any]) -> str:
    """A value that a JSON schema allows, as compact JSON. Raises Rejected."""
    try:
        return orjson.dumps(_Example(schema).value(schema, frozenset(), 0)).decode()
    except _UNUSABLE:
        raise Rejected(wrong_format("the simulator finds no example of a schema")) from None


class _Example:
    """A value that a JSON schema allows: the first of every choice that has one, and what is
    optional as far as it does not contain itself.

    No definition is used within itself: a value that is finite can do without. ``pattern``,
    ``not`` and conditions are not looked at, which the API does not support where it is strict.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._schemas = 0

    def value(self, schema: Any, inside: frozenset[str], depth: int) -> Any:
        self._schemas += 1
        if schema is False or self._schemas > _MAX_SCHEMAS or depth > _MAX_DEPTH:
            raise _NoExample
        schema, inside = self._resolved({} if schema is True else schema, inside)
        for alternatives in map(schema.pop, ("anyOf", "oneOf"), (None, None)):
            if alternatives:
                return self._first(schema, alternatives, inside, depth + 1)
        if "const" in schema or schema.get("enum"):
            return schema["const"] if "const" in schema else schema["enum"][0]
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._first(schema, [{"type": each} for each in kind], inside, depth + 1)
        if kind == "object" or schema.get("properties"):
            return self._object(schema, inside, depth + 1)
        if kind == "array" or "items" in schema:
            return self._array(schema, inside, depth + 1)
        return _scalar(kind, schema)

    def _resolved(
        self, schema: Any, inside: frozenset[str]
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """The schema with its references and ``allOf`` put into it, and the definitions used."""
        schema = dict(schema)
        while (reference := schema.pop("$ref", None)) is not None:
            if reference in inside:
                raise _NoExample
            found: Any = self._root
            for name in reference.split("/")[1:]:
                found = found[name.replace("~1", "/").replace("~0", "~")]
            schema, inside = _merged(found, schema), inside | {reference}
        for part in schema.pop("allOf", ()):
            resolved, inside = self._resolved(part, inside)
            schema = _merged(schema, resolved)
        return schema, inside

    def _first(self, schema: Any, others: list[Any], inside: frozenset[str], depth: int) -> Any:
        for other in others:
            with suppress(_NoExample):
                return self.value(_merged(schema, other), inside, depth)
        raise _NoExample

    def _object(self, schema: dict[str, Any], inside: frozenset[str], depth: int) -> Any:
        required, properties = schema.get("required", ()), schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        value = {}
        for name in dict.fromkeys((*properties, *required)):
            try:
                value[name] = self.value(properties.get(name, others), inside, depth)
            except _NoExample:
                if name in required:
                    raise
        return value

    def _array(self, schema: dict[str, Any], inside: frozenset[str], depth: int) -> list[Any]:
        first, least = schema.get("prefixItems", []), schema.get("minItems", 0)
        items: list[Any] = []
        for number in range(min(max(least, len(first) or 1), schema.get("maxItems", _MAX_SCHEMAS))):
            item = first[number] if number < len(first) else schema.get("items", True)
            try:
                items.append(self.value(item, inside, depth))
            except _NoExample:
                if number < least:
                    raise
                break
        return items


def _merged(one: Any, other: Any) -> dict[str, Any]:
    """A schema that has the members of both."""
    if one is False or other is False:
        raise _NoExample
    one, other = ({} if schema is True else schema for schema in (one, other))
    return {
        **one,
        **other,
        "properties": {**one.get("properties", {}), **other.get("properties", {})},
        "required": [*one.get("required", ()), *other.get("required", ())],
    }


_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "email": "agent@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "uuid": "6fa459ea-ee8a-4ca4-894e-db77e160355e",
}


def _scalar(kind: str | None, schema: dict[str, Any]) -> Any:
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind in ("boolean", "null"):
        return True if kind == "boolean" else None
    if (least := schema.get("minLength", 0)) > _MAX_SCHEMAS:
        raise _NoExample
    text = _FORMATS.get(schema.get("format", ""), "test")
    return text.ljust(least, "t")[: schema.get("maxLength")]


def _number(schema: dict[str, Any], *, whole: bool) -> float:
    least, most = schema.get("minimum", -inf), schema.get("maximum", inf)
    above, below = schema.get("exclusiveMinimum", -inf), schema.get("exclusiveMaximum", inf)
    low, high = max(least, above), min(most, below)
    middle = (low + high) / 2 if isfinite(high - low) else low + 1 if isfinite(low) else high - 1
    step = schema.get("multipleOf") or (1 if whole else None)
    wanted = [each for each in (1 if whole else 1.5, low, high, middle) if isfinite(each)]
    if step:
        wanted = [step * round_to(each / step) for each in wanted for round_to in (floor, ceil)]
    for value in wanted:
        if least <= value <= most and above < value < below and not (whole and value % 1):
            return int(value) if whole else value
    raise _NoExample
