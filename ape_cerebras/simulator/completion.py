"""Chat completions in the format of the Cerebras API: one JSON object, or a stream of events.

The words come from a fixed list, so that the same request always gets the same content, plain or
streamed; only ids and times differ. A *token* here is one word, or a few characters of a tool
call's arguments. Each event carries several tokens, only the first carries one, as those of
gpt-oss-120b do. Key order and spacing are those of recordings of the real API (2026).
"""

from collections.abc import Iterator
from hashlib import sha1
from itertools import groupby
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from .request import CompletionRequest

__all__ = ("Completion", "Event", "Timing")

_DONE = b"data: [DONE]\n\n"
_TEXT = (
    "the wafer holds every weight close to its core and so a word comes out long before "
    "anyone could ask for the next one while light crosses half a room"
)
_WORDS = tuple(_TEXT.split())
_REASONING_BEGINS_AT = 7  # in the list of words, so that reasoning and content differ
_ARGUMENT_CHARACTERS = 4  # per token
_MAX_DEPTH = 8  # of arguments derived from a schema


class Timing(NamedTuple):
    """The phases of a completion in seconds, as in ``time_info``. ``created`` is the Unix time of
    its begin; ``total_time`` is at least the sum of the phases."""

    created: float
    queue_time: float
    prompt_time: float
    completion_time: float
    total_time: float


class Event(NamedTuple):
    """One server-sent event, or a plain body. It can be sent once ``made`` tokens of each choice
    are generated; ``has_tokens``: whether it carries any."""

    data: bytes
    made: int = 0
    has_tokens: bool = False


class _Token(NamedTuple):
    """``kind``: reasoning, content, name (of the tool called) or arguments."""

    kind: str
    text: str


class Completion:
    """The response to a request.

    ``tokens`` is its length, reasoning included, unless the request sets a lower limit; a tool call
    has as many as its text needs. ``cached_tokens`` are of the prompt, at most all of it.
    """

    def __init__(
        self,
        request: CompletionRequest,
        *,
        tokens: int,
        reasoning_tokens: int,
        tokens_per_event: int,
        cached_tokens: int = 0,
    ) -> None:
        self.request = request
        self.id = f"chatcmpl-{uuid4()}"
        self._tokens_per_event = tokens_per_event
        self._cached = min(cached_tokens, request.prompt_tokens)
        choices = range(request.choices)
        whole = [_all_tokens(request, tokens, reasoning_tokens, choice) for choice in choices]
        self._choices = [tokens[: request.limit] for tokens in whole]
        self.token_count = len(self._choices[0])
        """Tokens of each choice."""
        cut = self.token_count < len(whole[0])
        self._finish_reason = "length" if cut else "tool_calls" if request.tool else "stop"

    def usage(self) -> dict[str, Any]:
        """The token counts of all choices; the details depend on the model."""
        completion = self.token_count * self.request.choices
        reasoning = sum(token.kind == "reasoning" for made in self._choices for token in made)
        takes_images = self.request.takes_images
        predicted = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
        return {
            "total_tokens": self.request.prompt_tokens + completion,
            "completion_tokens": completion,
            "completion_tokens_details": {
                **({} if takes_images else predicted),
                "reasoning_tokens": reasoning,
            },
            "prompt_tokens": self.request.prompt_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self._cached,
                **({"image_tokens": 0} if takes_images else {}),
            },
        }

    def _body(self, kind: str, choices: list[Any], timing: Timing, *, last: bool) -> bytes:
        body: dict[str, Any] = {
            "id": self.id,
            "choices": choices,
            "created": int(timing.created),
            "model": self.request.model,
            "system_fingerprint": "fp_" + _digest(self.request.model)[:20],
            "object": kind,
        }
        if last:
            body |= {"usage": self.usage(), "time_info": timing._asdict()}
        return orjson.dumps(body)

    def plain(self, timing: Timing) -> Event:
        """The whole completion as one JSON object."""
        choices = [
            {"finish_reason": self._finish_reason, "index": index, "message": self._message(index)}
            for index in range(self.request.choices)
        ]
        body = self._body("chat.completion", choices, timing, last=True)
        return Event(body, self.token_count, has_tokens=True)

    def _message(self, choice: int) -> dict[str, Any]:
        text = {
            kind: "".join(token.text for token in tokens)
            for kind, tokens in groupby(self._choices[choice], lambda token: token.kind)
        }
        reasoning = {"reasoning": text["reasoning"]} if "reasoning" in text else {}
        if "name" not in text:  # no call, or cut before it began
            return {"content": text.get("content", ""), **reasoning, "role": "assistant"}
        function = {"name": text["name"], "arguments": text.get("arguments", "")}
        call = {"function": function, "type": "function", "id": self._call_id(choice)}
        return {**reasoning, "tool_calls": [call], "role": "assistant"}

    def _call_id(self, choice: int) -> str:
        return _digest(f"{self.id} {choice}")[:9]

    def events(self, timing: Timing) -> list[Event]:
        """The whole completion as a stream. The last finish event has usage and times."""
        events = self._round([{"role": "assistant"}] * self.request.choices, timing)
        made = 0
        groups = [_grouped(tokens, self._tokens_per_event) for tokens in self._choices]
        for side_by_side in zip(*groups, strict=True):
            made += len(side_by_side[0])
            deltas = [self._delta(tokens, index) for index, tokens in enumerate(side_by_side)]
            events += self._round(deltas, timing, made, has_tokens=True)
        return events + self._finish(timing)

    def _round(
        self, deltas: list[Any], timing: Timing, made: int = 0, *, has_tokens: bool = False
    ) -> list[Event]:
        """One event for each choice."""
        return [
            Event(self._event([{"delta": delta, "index": index}], timing), made, has_tokens)
            for index, delta in enumerate(deltas)
        ]

    def _finish(self, timing: Timing) -> list[Event]:
        last = self.request.choices - 1
        ends = [
            self._event(
                [{"delta": {}, "finish_reason": self._finish_reason, "index": index}],
                timing,
                last=index == last,
            )
            for index in range(self.request.choices)
        ]
        if self.request.include_usage:
            ends.append(self._event([], timing, last=True))
        return [Event(data, self.token_count) for data in (*ends, _DONE)]

    def _event(self, choices: list[Any], timing: Timing, *, last: bool = False) -> bytes:
        return b"data: %s\n\n" % self._body("chat.completion.chunk", choices, timing, last=last)

    def _delta(self, tokens: list[_Token], choice: int) -> dict[str, Any]:
        kind, text = tokens[0].kind, "".join(token.text for token in tokens)
        if kind in ("reasoning", "content"):
            return {kind: text}
        call: dict[str, Any] = {"function": {"arguments": text}, "type": "function"}
        if kind == "name":
            call["function"] = {"name": text, "arguments": ""}
            call["id"] = self._call_id(choice)
        return {"tool_calls": [{**call, "index": 0}]}


def _digest(text: str) -> str:
    return sha1(text.encode(), usedforsecurity=False).hexdigest()


def _all_tokens(
    request: CompletionRequest, count: int, reasoning_count: int, choice: int
) -> list[_Token]:
    """The completion without the request's limit."""
    tokens = []
    if request.is_reasoning:
        words = _words(min(count, reasoning_count), choice + _REASONING_BEGINS_AT)
        tokens = [_Token("reasoning", word) for word in words]
    if request.tool is not None:
        return tokens + list(_call(request.tool))
    return tokens + [_Token("content", word) for word in _words(count - len(tokens), choice)]


def _words(count: int, start: int) -> list[str]:
    words = [_WORDS[(start + number) % len(_WORDS)] for number in range(count)]
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)]


def _call(tool: dict[str, Any]) -> Iterator[_Token]:
    yield _Token("name", tool["name"])
    arguments = orjson.dumps(
        _example({"type": "object", **(tool.get("parameters") or {})})
    ).decode()
    for start in range(0, len(arguments), _ARGUMENT_CHARACTERS):
        yield _Token("arguments", arguments[start : start + _ARGUMENT_CHARACTERS])


_EXAMPLES: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "null": None}


def _example(schema: Any, depth: int = 0) -> Any:
    """A value that a JSON schema allows, by its types and properties."""
    schema = schema if isinstance(schema, dict) else {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties")
        named = properties.items() if isinstance(properties, dict) and depth < _MAX_DEPTH else ()
        return {name: _example(each, depth + 1) for name, each in named}
    if kind == "array":
        return [_example(schema.get("items"), depth + 1)] if depth < _MAX_DEPTH else []
    return _EXAMPLES.get(str(kind), "test")


def _grouped(tokens: list[_Token], size: int) -> list[list[_Token]]:
    """Tokens by event: one kind to an event, the very first token alone."""
    groups: list[list[_Token]] = []
    for number, token in enumerate(tokens):
        if number <= 1 or groups[-1][0].kind != token.kind or len(groups[-1]) >= size:
            groups.append([token])
        else:
            groups[-1].append(token)
    return groups
