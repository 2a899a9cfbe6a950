"""The handler of POST /v1/chat/completions: one request up, its response down.

The order is the measurement: a chunk is timestamped where it arrives, sent to the client, and only
then looked at. Up to the first token each chunk is written as it comes. After it, chunks that
arrived together are written together, as soon as upstream has nothing more to read: no byte is held
back while the proxy waits.

Where a plain request was converted into one for a stream, so that its first token can be timed, the
client gets nothing before the end, and then one reply that the chunks are reassembled to.
"""

from contextlib import suppress

import orjson

from ..config.config import Config
from ..downstream.connection import Downstream
from ..errors import IdleTimeout, InvalidResponse, ProxyError, Truncated
from ..http1.body import ContentDecoder
from ..http1.messages import Headers, Request, connection_options
from ..limits.admission import Admission
from ..limits.quota_pacing import estimate_prompt, estimate_reservation
from ..net.event_loop import yield_shielded
from ..telemetry.exchange import Exchange
from ..upstream.client import UpstreamRequest, UpstreamResponse
from ..upstream.connection import HandedOver
from ..upstream.retry import RetryingClient
from .assembly import Assembly
from .meter import Meter, StreamMeter, look_into, meter_for, text_of
from .models import Catalogue, UsageEstimates
from .request import ChatRequest, Compression, read_chat_request
from .sse import END_MARKER, END_OF_BODY, PART_BYTES, parts

__all__ = ("Relay", "error_body", "error_event")

_PATH = "/v1/chat/completions"
_END_TIMEOUT = 0.05  # seconds to wait for the end of a body whose content has ended
_JSON = (b"content-type", b"application/json")
_NOT_REASSEMBLED = frozenset((b"content-type", b"content-encoding"))

# Fields that concern one connection only (RFC 9110 section 7.6.1), or the other one not.
_HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization"),
        b"proxy-connection",  # never standard, still sent
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
_NOT_DOWN = _HOP_BY_HOP | {
    # Upstream's content delivery network describes itself in these, not the response.
    *(b"alt-svc", b"server", b"set-cookie", b"strict-transport-security"),
    # Which web pages may read a response is for this proxy to say.
    *(b"access-control-allow-credentials", b"access-control-allow-headers"),
    *(b"access-control-allow-methods", b"access-control-allow-origin"),
    *(b"access-control-expose-headers", b"access-control-max-age"),
    # Ours take the place of these.
    *(b"x-request-id", b"x-trace-id"),
}
_NOT_DOWN_IN_STREAM = _NOT_DOWN | {b"content-length"}
# Fields that a client may send to the API: its own parameters, and its SDK. An allow-list, because
# whatever else agents and gateways send (cookies, addresses, keys) is not the API's business.
_UP = frozenset(
    (
        b"accept",
        b"cf-ray",
        b"content-encoding",
        b"content-type",
        b"idempotency-key",
        b"queue_threshold",
        b"user-agent",
        b"x-amz-cf-id",
        b"x-delay-time",
        b"x-simulate",  # faults and times of the simulator; the real API ignores it
    )
)
_UP_PREFIXES = (b"x-cerebras-", b"x-stainless-")


class Relay:
    """Relays chat exchanges, one ``handle`` each."""

    def __init__(
        self,
        config: Config,
        upstream: RetryingClient,
        admission: Admission,
        catalogue: Catalogue,
    ) -> None:
        self._config = config
        self._bounds = config.completion_bounds
        self._gap_buckets = config.buckets["gap"]
        self._catalogue = catalogue
        self._estimates = UsageEstimates()
        self._upstream = upstream
        self._compression = Compression(config.upstream_gzip_min_bytes)
        self._admission = admission

    async def handle(self, exchange: Exchange, downstream: Downstream) -> None:
        """Relay one exchange. Raises ProxyError of every kind."""
        request = exchange.request
        assert request is not None  # noqa: S101 - the routes matched it
        chat = read_chat_request(
            exchange.body,
            request.header(b"content-type") or b"",
            request.header(b"content-encoding") or b"",
            self._config.default_model,
            self._config.model_aliases,
            convert=self._config.ttft_mode == "exact",
            bounds=self._bounds,
        )
        exchange.model, exchange.requested_model = chat.model, chat.requested_model
        exchange.stream = chat.stream
        if chat.model is not None:
            exchange.reserved_tokens = estimate_reservation(len(chat.body), chat.limit)
        limited = self._admission.is_limited
        if limited:
            prices = self._catalogue.prices
            exchange.reserved_cost = prices.cost_at_most(chat.model, *self._tokens_at_most(chat))
        async with downstream.watch_disconnect():
            if limited:
                async with self._admission.admitted(exchange):
                    await self._send(request, chat, exchange, downstream)
            else:
                await self._send(request, chat, exchange, downstream)

    async def _send(
        self, request: Request, chat: ChatRequest, exchange: Exchange, downstream: Downstream
    ) -> None:
        headers: Headers = (
            *_headers_up(request),
            (b"traceparent", exchange.traceparent),
            *(((b"tracestate", exchange.tracestate),) if exchange.tracestate else ()),
            (b"x-trace-id", exchange.trace_id.encode()),
        )
        body = chat.body
        if chat.model is not None:  # else it is binary, and may be compressed already
            headers, body = await self._compression.compress(headers, body)
        awaits_token = chat.converted or chat.stream is not False
        upstream_request = UpstreamRequest("POST", _PATH, headers, body, awaits_token)
        try:
            with await self._upstream.send(exchange, upstream_request) as response:
                if self._admission.paces_quota:
                    await self._admission.update_quota(exchange)
                await self._respond(response, exchange, downstream, chat)
        finally:
            self._account(exchange, chat)

    async def _respond(
        self,
        response: UpstreamResponse,
        exchange: Exchange,
        downstream: Downstream,
        chat: ChatRequest,
    ) -> None:
        content_type = response.header(b"content-type")
        choices = None if chat.model is None else chat.choices
        meter = meter_for(exchange, response.status, content_type, self._gap_buckets, choices)
        streams = isinstance(meter, StreamMeter)
        headers = _headers_down(response.headers, stream=streams)
        decoder = response.decoder
        output: _PassedOn | _Reassembled
        if chat.converted and streams:
            headers = (_JSON, *(field for field in headers if field[0] not in _NOT_REASSEMBLED))
            output = _Reassembled(exchange, downstream, meter, headers, decoder)
        else:
            if exchange.stream is None:
                exchange.stream = streams
            # Nothing readable fits behind compressed bytes.
            state = meter if decoder is None else None
            downstream.send_head(exchange, response.status, headers, state)
            output = _PassedOn(exchange, downstream, meter, decoder)
            if streams and downstream.can_send_now:
                response.relay_arrivals(output.take_now)
        try:
            await _relay(response, output)
        finally:
            meter.end()

    def _tokens_at_most(self, chat: ChatRequest) -> tuple[int, int]:
        """Tokens of the prompt, as estimated, and those that the completion may have."""
        most = self._catalogue.completion_at_most(chat.model, chat.limit, chat.choices)
        return estimate_prompt(len(chat.body)), most

    def _account(self, exchange: Exchange, chat: ChatRequest) -> None:
        """Find the tokens and the cost of an exchange, however it has ended. An estimate is at most
        what was reserved of the key's budget."""
        exchange.model = exchange.model or exchange.response_model
        usage = exchange.usage
        if usage is None or exchange.usage_events < exchange.token_events:
            prompt, most = self._tokens_at_most(chat)
            exchange.estimated_usage = self._estimates.usage_of(exchange, prompt, most)
            usage = exchange.counted_usage
        elif exchange.streamed:
            self._estimates.learn_from(exchange)
        if usage is not None and exchange.model is not None:
            exchange.cost = self._catalogue.prices.cost(
                exchange.model, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
            )
        if exchange.upstream_code == "model_not_found":
            self._catalogue.note_missing(exchange.model, exchange.trace_id)


class _PassedOn:
    """A body that goes to the client chunk by chunk, as it comes. ``decoder``: of a compressed
    one."""

    def __init__(
        self,
        exchange: Exchange,
        downstream: Downstream,
        meter: Meter,
        decoder: ContentDecoder | None,
    ) -> None:
        self._exchange = exchange
        self.downstream = downstream
        self._meter = meter
        self._decoder = decoder
        self._ended_unread = self._partly_sent = False

    def take_now(self, chunk: bytes, arrived_at: float) -> bool:
        """``take`` outside of any task, of a chunk that is small and does not end the content.
        Return whether all was sent. Raises HandedOver with a chunk that ``take`` has to take."""
        exchange, sent_at = self._exchange, None
        if len(chunk) > PART_BYTES or chunk.find(END_MARKER) >= 0:
            raise HandedOver(chunk)
        all_sent = self.downstream.send_chunk_now(chunk)
        if exchange.streamed and exchange.first_output_at is None:
            if not all_sent:  # the moment when it is sent may matter
                self._partly_sent = True
                raise HandedOver(chunk)
            sent_at = self.downstream.stream.sent_at
        self._meter.feed(chunk, arrived_at, sent_at)
        if sent_at is not None:
            self._note_send_seconds(sent_at)
        if exchange.done_seen:  # by a marker that came in two chunks
            raise HandedOver(b"")
        return all_sent

    async def take(self, chunk: bytes, arrived_at: float) -> bool:
        """Send a chunk, then look at it, also if the client has gone: its tokens are used. Return
        whether the content has ended."""
        sent_at, text = None, text_of(chunk, self._decoder, self._exchange)
        try:
            if self._partly_sent:
                self._partly_sent = False
                await self.downstream.flush()
            else:
                await self.downstream.send_chunk(chunk, hold=self._meter.may_hold(text))
            if self._exchange.streamed and self._exchange.first_output_at is None:
                sent_at = self.downstream.stream.sent_at
        finally:
            if len(text) <= PART_BYTES:
                self._meter.feed(text, arrived_at, sent_at)
            else:
                await look_into(text, self._meter, arrived_at, sent_at)
        if sent_at is not None:
            self._note_send_seconds(sent_at)
        # Compressed bytes go on behind the content's end: a checksum, if nothing else.
        return self._exchange.done_seen and self._decoder is None

    @property
    def complete(self) -> bool:
        return self._meter.complete or self._ended_unread

    def end_of_body(self, *, framed: bool) -> None:
        """Note the end of a body whose content has not ended. Of what cannot be read only the
        framing knows the end."""
        self._meter.end_of_body(self.downstream.stream.sent_at, framed=framed)
        self._ended_unread = framed and self._decoder is not None and self._decoder.blind

    def _note_send_seconds(self, sent_at: float) -> None:
        """Record how long the latest write took if it took along a first token."""
        exchange, took = self._exchange, self.downstream.stream.send_seconds
        if sent_at in (exchange.first_token_sent_at, exchange.first_output_sent_at):
            exchange.token_send_seconds = max(exchange.token_send_seconds, took)

    async def finish(self) -> None:
        if not self.complete:
            raise Truncated
        await self.downstream.send_end()


class _Reassembled:
    """A stream that goes to the client as one plain reply. A failure before its end is raised, so
    that the client gets its status: no byte has gone out."""

    def __init__(
        self,
        exchange: Exchange,
        downstream: Downstream,
        meter: Meter,
        headers: Headers,
        decoder: ContentDecoder | None,
    ) -> None:
        self._exchange = exchange
        self.downstream = downstream
        self._meter = meter
        self._headers = headers
        self._decoder = decoder
        self._assembly = Assembly()

    async def take(self, chunk: bytes, arrived_at: float) -> bool:
        """Look at a chunk and keep it. Return whether the content has ended."""
        text = text_of(chunk, self._decoder, self._exchange)
        if self._decoder is not None and self._decoder.blind:
            raise InvalidResponse
        await look_into(text, self._meter, arrived_at, None)
        for part in parts(text):
            self._assembly.feed(part)
            if len(part) < len(text):
                await yield_shielded()
        return self._meter.complete

    @property
    def complete(self) -> bool:
        return self._meter.complete

    def end_of_body(self, *, framed: bool) -> None:
        self._meter.end_of_body(None, framed=framed)
        if self._meter.complete:
            self._assembly.feed(END_OF_BODY)

    async def finish(self) -> None:
        if not self._meter.complete:
            raise Truncated
        status, body = self._assembly.reply()
        await self.downstream.respond(self._exchange, status, self._headers, body)


async def _relay(response: UpstreamResponse, output: _PassedOn | _Reassembled) -> None:
    """Relay a body to its end. Raises Truncated, IdleTimeout, and the errors of ``output``.

    The content may end before the body's framing does. Chunks that have arrived by then still go
    through, the client gets its end, and upstream gets a moment to end the body, so that the
    connection can be used again.
    """
    response.before_wait(output.downstream.flush)
    done = ended = False
    while not ended:
        try:
            chunk = await response.next_chunk()
        except (IdleTimeout, Truncated) as failure:
            if not done:
                raise
            ended = isinstance(failure, Truncated)
            break
        if chunk is None:
            ended = True
            if not output.complete:
                output.end_of_body(framed=response.is_framed)
        elif await output.take(chunk, response.arrived_at) and not done:
            done = True
            response.wind_down(0)
    await output.finish()
    if not ended:
        response.wind_down(_END_TIMEOUT)
        with suppress(IdleTimeout, Truncated):
            await response.next_chunk()


def _headers_up(request: Request) -> Headers:
    """The client's header fields that go upstream."""
    kept = [
        field for field in request.headers if field[0] in _UP or field[0].startswith(_UP_PREFIXES)
    ]
    if request.header(b"connection") is not None:
        listed = connection_options(request.headers) - {b"content-type", b"content-encoding"}
        kept = [field for field in kept if field[0] not in listed]
    return tuple(kept)


def _headers_down(headers: Headers, *, stream: bool) -> Headers:
    """Upstream's header fields that go to the client. A stream has no length, so that an error
    event can be put behind a part of it."""
    dropped = _NOT_DOWN_IN_STREAM if stream else _NOT_DOWN
    kept = [field for field in headers if field[0] not in dropped]
    if len(kept) < len(headers):  # a Connection field may be among the others
        listed = connection_options(headers)
        kept = [field for field in kept if field[0] not in listed] if listed else kept
    return tuple(kept)


def error_body(error: ProxyError) -> bytes:
    """An error as the OpenAI and the Cerebras SDKs both read it: wrapped, and flat."""
    shape = _error_shape(error)
    return orjson.dumps({"error": shape, **shape})


def error_event(error: ProxyError) -> bytes:
    """The same inside a stream, in the one shape that all SDKs raise on which can be told an error
    there. The Cerebras SDK of Python reports ``status_code``; without that, the status of the
    stream's head: 200. Without ``choices`` the AI SDK's provider for Cerebras finds no chunk in it,
    and with the flat members another one, and reports a TypeError of its own."""
    event = {"status_code": error.status, "error": _error_shape(error), "choices": []}
    return b"data: %b\n\n" % orjson.dumps(event)


def _error_shape(error: ProxyError) -> dict[str, str]:
    # No null among them: older clients that check the flat shape want four strings.
    return {"message": error.message, "type": error.type, "param": "", "code": error.code}
