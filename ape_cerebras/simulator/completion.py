"""Chat completions in the format of the Cerebras API: one JSON object, or a stream of events.

The words come from a fixed list, and JSON from its schema, so that the same request always gets the
same content, plain or streamed; only ids and times differ. A *token* here is one word, or a few
characters of JSON. Each event carries several tokens, only the first carries one, as those of
gpt-oss-120b do. Key order and spacing are those of recordings of the real API (2026).
"""

from hashlib import sha1
from itertools import groupby
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from .request import CompletionRequest, example_of

__all__ = ("Completion", "Event", "Timing")

_DONE = b"data: [DONE]\n\n"
_TEXT = (
    "the wafer holds every weight close to its core and so a word comes out long before "
    "anyone could ask for the next one while light crosses half a room"
)
_WORDS = tuple(_TEXT.split())
_REASONING_BEGINS_AT = 7  # in the list of words, so that reasoning and content differ
_CHARACTERS = 4  # per token of JSON


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
    and JSON have as many as their text needs. ``cached_tokens`` are of the prompt, at most all.
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
            {
                "finish_reason": self._finish_reason,
                "index": index,
                "message": self._message(index),
                **self._logprobs(tokens),
            }
            for index, tokens in enumerate(self._choices)
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
        """The whole completion as a stream.

        The last finish event has usage and times, as recorded; with ``include_usage``, too:
        OpenAI's extra event was never recorded, and whoever adds up would count it twice.
        """
        role = {"role": "assistant"}
        choices = [{"delta": role, "index": index} for index in range(self.request.choices)]
        events = [Event(self._event([choice], timing)) for choice in choices]
        made = 0
        groups = [_grouped(tokens, self._tokens_per_event) for tokens in self._choices]
        for side_by_side in zip(*groups, strict=True):
            made += len(side_by_side[0])
            for index, tokens in enumerate(side_by_side):
                choice = {"delta": self._delta(tokens, index), "index": index}
                choice |= self._logprobs(tokens)
                events.append(Event(self._event([choice], timing), made, has_tokens=True))
        return events + self._finish(timing)

    def _logprobs(self, tokens: list[_Token]) -> dict[str, Any]:
        """The log probabilities of a choice, if requested; their place in it is a guess."""
        top = self.request.top_logprobs
        members = {"reasoning": "reasoning_logprobs", "content": "logprobs"}
        if top is None:
            return {}
        return {
            name: {"content": [_logprob(token.text, top) for token in tokens if token.kind == kind]}
            for kind, name in members.items()
            if any(token.kind == kind for token in tokens)
        }

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
        return tokens + _call(request.tool)
    if request.schema is not None:
        return tokens + _in_tokens("content", example_of(request.schema))
    return tokens + [_Token("content", word) for word in _words(count - len(tokens), choice)]


def _words(count: int, start: int) -> list[str]:
    words = [_WORDS[(start + number) % len(_WORDS)] for number in range(count)]
    return [word if number == 0 else f" {word}" for number, word in enumerate(words)]


def _in_tokens(kind: str, text: str) -> list[_Token]:
    starts = range(0, len(text), _CHARACTERS)
    return [_Token(kind, text[start : start + _CHARACTERS]) for start in starts]


def _call(tool: dict[str, Any]) -> list[_Token]:
    parameters = tool.get("parameters")
    schema = parameters if isinstance(parameters, dict) else {}
    arguments = example_of({"type": "object", **schema})
    return [_Token("name", tool["name"]), *_in_tokens("arguments", arguments)]


def _logprob(token: str, top: int) -> dict[str, Any]:
    """The probabilities of a token and of the ``top`` likeliest in its place, itself first."""
    likeliest = [token, *(word for word in dict.fromkeys(_WORDS) if word != token)][:top]
    one, *alternatives = [
        {"token": each, "logprob": -0.125 * (place + 1), "bytes": list(each.encode())}
        for place, each in enumerate(likeliest or [token])
    ]
    return {**one, "top_logprobs": [one, *alternatives][:top]}


def _grouped(tokens: list[_Token], size: int) -> list[list[_Token]]:
    """Tokens by event: one kind to an event, the very first token alone."""
    groups: list[list[_Token]] = []
    for number, token in enumerate(tokens):
        if number <= 1 or groups[-1][0].kind != token.kind or len(groups[-1]) >= size:
            groups.append([token])
        else:
            groups[-1].append(token)
    return groups
