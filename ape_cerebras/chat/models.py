"""The list of models: upstream's, kept for a minute; its last one while upstream fails; that of
the price table when there has never been one."""

from collections.abc import Iterable
from contextlib import suppress

import anyio
import orjson

from ..config.config import Config
from ..errors import InvalidResponse, ModelNotFound, ProxyError
from ..net.timestamps import loop_clock
from ..telemetry.exchange import Exchange
from ..upstream.client import UpstreamClient, WaitingForUpstream

__all__ = ("ModelList",)

_PATH = "/v1/models"
_FRESH_FOR = 60.0  # seconds
_RETRY_AFTER = 5.0  # seconds, so that an upstream that is down does not delay every caller
_ASK_AT_MOST = 10.0  # seconds; everybody who asks waits for the same answer
_MAX_BYTES = 64 * 1024  # many times what there is; to read more would hold the event loop


class ModelList:
    """Asks upstream when somebody asks here, one question at a time, never by itself."""

    def __init__(self, config: Config, upstream: UpstreamClient) -> None:
        self._upstream = upstream
        self._clock = loop_clock()
        self._asking = anyio.Lock()
        self._good_until = float("-inf")
        entries = [
            {"id": name, "object": "model", "created": 0, "owned_by": "Cerebras"}
            for name in config.model_prices.prices
        ]
        self._text = orjson.dumps({"object": "list", "data": entries})
        self._by_id = _read_list(self._text)

    @property
    def names(self) -> Iterable[str]:
        """As far as they are known without asking."""
        return self._by_id.keys()

    async def text(self, exchange: Exchange) -> bytes:
        """The list as JSON: upstream's own bytes where there are any."""
        if self._is_stale:
            with WaitingForUpstream(
                exchange, self._clock
            ):  # through another's question, which serves all
                await self._asking.acquire()
            try:
                if self._is_stale:
                    await self._refresh(exchange)
            finally:
                self._asking.release()
        return self._text

    @property
    def _is_stale(self) -> bool:
        return self._clock() >= self._good_until

    async def entry(self, exchange: Exchange, model: str) -> bytes:
        """One model as JSON. Raises ModelNotFound."""
        await self.text(exchange)
        if model not in self._by_id:
            raise ModelNotFound
        return self._by_id[model]

    async def _refresh(self, exchange: Exchange) -> None:
        fresh_for = _RETRY_AFTER
        with suppress(ProxyError), anyio.move_on_after(_ASK_AT_MOST):
            self._text, self._by_id = await self._ask(exchange)
            fresh_for = _FRESH_FOR
        self._good_until = self._clock() + fresh_for

    async def _ask(self, exchange: Exchange) -> tuple[bytes, dict[str, bytes]]:
        with await self._upstream.send(exchange, "GET", _PATH, ()) as response:
            body = await response.whole(_MAX_BYTES)
        if response.status != 200:
            raise InvalidResponse
        return body, _read_list(body)


def _read_list(text: bytes) -> dict[str, bytes]:
    """The entries of a list of models, each as JSON by its id. Raises InvalidResponse where it is
    none."""
    try:
        entries = orjson.loads(text)["data"]
        if not isinstance(entries, list) or not all(isinstance(e["id"], str) for e in entries):
            raise InvalidResponse
        return {entry["id"]: orjson.dumps(entry) for entry in entries}
    except (orjson.JSONDecodeError, KeyError, TypeError):  # the last also where it nests too deep
        raise InvalidResponse from None
