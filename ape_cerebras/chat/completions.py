"""One chat request up, its response down: the heart of the proxy.

A chunk is stamped where it arrives, sent to the client, and only then looked at. Up to the first
token each chunk is written as it comes; after it chunks that arrived together are written together,
as soon as upstream has nothing more to read: no byte is ever held back while we wait.

Where a plain request was converted into one for a stream, so that its first token can be timed, the
client gets nothing before the end, and then what the chunks add up to.
"""

import orjson

from ..config.config import Config
from ..downstream.connection import Downstream
from ..errors import ClientGone, IdleTimeout, ProxyError, Truncated
from ..http1.messages import Request
from ..limits.admission import Admission
from ..limits.quota_pacing import estimate_reservation
from ..net.steps import yield_shielded
from ..telemetry.exchange import Exchange
from ..upstream.client import UpstreamClient, UpstreamResponse
from ..upstream.tries import RetryingClient
from .assembly import Assembly
from .compression import Compression
from .crossing import headers_down, headers_up, plain_headers
from .meter import Meter, StreamMeter, meter_for
from .models import Catalogue
from .request import ChatRequest, read_chat_request
from .sse import parts

__all__ = ("Relay", "error_body")

_PATH = "/v1/chat/completions"
_END_TIMEOUT = 0.05  # seconds to wait for the end of a body whose content has ended


def _error(error: ProxyError) -> dict[str, object]:
    # No null among them: older clients that check the flat shape want four strings.
    shape = {"message": error.message, "type": error.type, "param": "", "code": error.code}
    return {"error": shape, **shape}


def error_body(error: ProxyError) -> bytes:
    """An error as the OpenAI and the Cerebras SDKs both read it: wrapped, and flat."""
    return orjson.dumps(_error(error))


def error_event(error: ProxyError) -> bytes:
    """The same inside a stream. ``status_code`` is what the Cerebras SDK tells; without it, it
    would tell the status of the stream's head: 200."""
    return b"data: %s\n\n" % orjson.dumps({"status_code": error.status, **_error(error)})


async def _look_into(chunk: bytes, meter: Meter, arrived_at: float, sent_at: float | None) -> None:
    """Meter a chunk. Also if the client is gone: what has been used is used."""
    for part in parts(chunk):
        meter.feed(part, arrived_at, sent_at)
        if len(part) < len(chunk):
            await yield_shielded()


async def _take_in(chunk: bytes, assembly: Assembly) -> None:
    for part in parts(chunk):
        assembly.feed(part)
        if len(part) < len(chunk):
            await yield_shielded()


class Relay:
    """The handler of chat completions."""

    def __init__(
        self,
        config: Config,
        upstream: UpstreamClient | RetryingClient,
        admission: Admission,
        catalogue: Catalogue,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._upstream = upstream
        self._compression = Compression(config)
        self._admission = admission

    async def handle(self, exchange: Exchange, downstream: Downstream) -> None:
        """Relay one exchange. Raises ProxyError of every kind."""
        assert exchange.request is not None  # noqa: S101 - the routes matched it
        chat = self._read(exchange.request, exchange.body)
        exchange.model, exchange.requested_model = chat.model, chat.requested_model
        exchange.stream = chat.stream
        if chat.model is not None:
            exchange.completion_limit = chat.limit
            exchange.reserved_tokens = estimate_reservation(len(chat.body), chat.limit)
        try:
            async with downstream.watch_disconnect():
                if self._admission.is_limited:
                    async with self._admission.admitted(exchange):
                        await self._relay(exchange, downstream, chat)
                else:
                    await self._relay(exchange, downstream, chat)
        except ClientGone:
            # SDKs close a stream's connection as soon as they have read the end marker.
            if downstream.completed_at is None:
                raise

    def _read(self, request: Request, body: bytes) -> ChatRequest:
        return read_chat_request(
            body,
            request.header(b"content-type") or b"",
            request.header(b"content-encoding") or b"",
            self._config.default_model,
            self._config.model_aliases,
            convert=self._config.ttft_mode == "exact",
            bounds=self._config.completion_bounds,
        )

    async def _relay(self, exchange: Exchange, downstream: Downstream, chat: ChatRequest) -> None:
        assert exchange.request is not None  # noqa: S101
        trace = (
            (b"traceparent", exchange.traceparent),
            (b"x-trace-id", exchange.trace_id.encode()),
        )
        headers, body = (*headers_up(exchange.request), *trace), chat.body
        if chat.model is not None:  # else it is opaque, and maybe packed already
            headers, body = await self._compression.pack(headers, body)
        awaits_token = chat.converted or chat.stream is not False
        try:
            with await self._upstream.send(
                exchange, "POST", _PATH, headers, body, awaits_token=awaits_token
            ) as response:
                if self._admission.paces_quota:
                    await self._admission.update_quota(exchange)
                await self._pass_down(response, downstream, exchange, converted=chat.converted)
        finally:
            self._account(exchange)

    async def _pass_down(
        self,
        response: UpstreamResponse,
        downstream: Downstream,
        exchange: Exchange,
        *,
        converted: bool,
    ) -> None:
        gaps = self._config.buckets["gap"]
        content_type = response.header(b"content-type")
        meter = meter_for(exchange, response.status, content_type, gaps)
        if converted and isinstance(meter, StreamMeter):
            await self._put_together(response, downstream, meter, exchange)
        else:
            await self._pass_on(response, downstream, meter, exchange)

    async def _pass_on(
        self,
        response: UpstreamResponse,
        downstream: Downstream,
        meter: Meter,
        exchange: Exchange,
    ) -> None:
        streams = isinstance(meter, StreamMeter)
        if exchange.stream is None:
            exchange.stream = streams
        response.before_wait(downstream.flush)
        headers = headers_down(response.headers, stream=streams)
        downstream.send_head(exchange, response.status, headers, meter)
        await self._pass_body(response, downstream, meter, exchange)

    async def _pass_body(
        self,
        response: UpstreamResponse,
        downstream: Downstream,
        meter: Meter,
        exchange: Exchange,
    ) -> None:
        try:
            while (chunk := await response.next_chunk()) is not None:
                if exchange.done_seen and downstream.response.ended:
                    break  # more came after the end than was worth waiting for
                await self._pass_chunk(chunk, response.arrived_at, downstream, meter)
                if exchange.done_seen:
                    # What is here already still goes through. As soon as there is nothing more to
                    # read the client gets its end, and upstream a moment to end its body.
                    response.before_wait(downstream.send_end)
                    response.wind_down(_END_TIMEOUT)
            await self._end(downstream, meter)
        except (IdleTimeout, Truncated):
            if not exchange.done_seen:
                raise
            await downstream.send_end()

    async def _pass_chunk(
        self, chunk: bytes, arrived_at: float, downstream: Downstream, meter: Meter
    ) -> None:
        sent_at = None
        try:
            await downstream.send_chunk(chunk, hold=meter.may_hold(chunk))
            sent_at = downstream.stream.written_at
        finally:
            await _look_into(chunk, meter, arrived_at, sent_at)

    async def _end(self, downstream: Downstream, meter: Meter) -> None:
        if not meter.complete:
            raise Truncated
        try:
            await downstream.send_end()
        finally:
            meter.end()

    async def _put_together(
        self,
        response: UpstreamResponse,
        downstream: Downstream,
        meter: StreamMeter,
        exchange: Exchange,
    ) -> None:
        """Answer plainly what comes as a stream. A failure before the end is raised, and answered
        with its status: no byte has gone out."""
        assembly = Assembly()

        async def answer() -> None:
            if not downstream.response.ended:
                status, body = assembly.reply()
                await downstream.respond(exchange, status, plain_headers(response.headers), body)

        try:
            while (chunk := await response.next_chunk()) is not None:
                if downstream.response.ended:
                    break
                await _look_into(chunk, meter, response.arrived_at, None)
                await _take_in(chunk, assembly)
                if meter.complete:  # as for streams: nobody waits for the end of the framing
                    response.before_wait(answer)
                    response.wind_down(_END_TIMEOUT)
        except (IdleTimeout, Truncated):
            if not meter.complete:
                raise
        if not meter.complete:
            raise Truncated
        await answer()

    def _account(self, exchange: Exchange) -> None:
        exchange.model = exchange.model or exchange.response_model
        if exchange.usage is not None and exchange.model is not None:
            prompt, completion, _, cached, _ = exchange.usage
            prices = self._catalogue.prices
            exchange.cost = prices.cost(exchange.model, prompt, completion, cached)
        if exchange.upstream_code == "model_not_found":
            self._catalogue.note_missing(exchange.model, exchange.trace_id)
