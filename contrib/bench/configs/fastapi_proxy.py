"""A proxy as it is usually written in Python: FastAPI, httpx, prometheus_client, logging."""

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
log = logging.getLogger("proxy")

REQUESTS = Counter("proxy_requests_total", "Requests", ["model", "status"])
TOKENS = Counter("proxy_tokens_total", "Tokens", ["model", "type"])
TTFT = Histogram("proxy_ttft_seconds", "Time to the first chunk", ["model"])
TOTAL = Histogram("proxy_request_seconds", "Time in all", ["model"])


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(
        base_url=os.environ["UPSTREAM_URL"],
        headers={"Authorization": "Bearer upstream-key"},
        timeout=httpx.Timeout(60, connect=5),
        limits=httpx.Limits(max_connections=2000, max_keepalive_connections=1100),
    ) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)
bearer = HTTPBearer()


async def authorized(credentials: HTTPAuthorizationCredentials = Depends(bearer)) -> None:  # noqa: B008
    if credentials.credentials != os.environ["CLIENT_KEY"]:
        raise HTTPException(401, "wrong key")


def finish(model: str, status: int, began_at: float) -> None:
    seconds = time.perf_counter() - began_at
    REQUESTS.labels(model, status).inc()
    TOTAL.labels(model).observe(seconds)
    log.info("model=%s status=%d seconds=%.6f", model, status, seconds)


async def stream(upstream: httpx.Response, model: str, began_at: float) -> AsyncIterator[bytes]:
    first = True
    try:
        async for chunk in upstream.aiter_bytes():
            if first:
                TTFT.labels(model).observe(time.perf_counter() - began_at)
                first = False
            yield chunk
    finally:
        await upstream.aclose()
        finish(model, upstream.status_code, began_at)


@app.post("/v1/chat/completions", dependencies=[Depends(authorized)])
async def chat(request: Request) -> Response:
    began_at = time.perf_counter()
    body = await request.json()
    model = body.get("model", "")
    client: httpx.AsyncClient = request.app.state.client
    if body.get("stream"):
        outgoing = client.build_request("POST", "/v1/chat/completions", json=body)
        upstream = await client.send(outgoing, stream=True)
        kind = upstream.headers.get("content-type")
        chunks = stream(upstream, model, began_at)
        return StreamingResponse(chunks, upstream.status_code, media_type=kind)
    reply = await client.post("/v1/chat/completions", json=body)
    content = reply.json()
    for name, count in content.get("usage", {}).items():
        TOKENS.labels(model, name).inc(count)
    finish(model, reply.status_code, began_at)
    return JSONResponse(content, reply.status_code)


@app.get("/metrics")
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
