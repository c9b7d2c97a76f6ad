"""The routes. The only importer of fastapi (extra ``treadle[serve]``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar, final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from treadle.serving.refusals import Refusal
from treadle.serving.service import Service
from treadle.version import __version__

_QUICK = 50_000
"""Bytes, or numbers, of JSON that are read or written between two looks at the network. More goes to a thread, so that
/health is answered meanwhile."""

_READING = 30.0
"""Seconds that a body may take, as it occupies a place in the queue."""

T = TypeVar("T")


@final
class _App(FastAPI):
    """Described by its model."""

    def __init__(self, service: Service, **settings: Any) -> None:
        super().__init__(title=service.schema.manifest.model, version=__version__, **settings)
        self.service = service

    def openapi(self) -> dict[str, Any]:
        described = super().openapi()
        if "components" not in described:  # it remembers them
            request, response = self.service.schema.openapi()
            described["components"] = {"schemas": {"Request": request, "Response": response, "Refusal": _REFUSAL}}
        return described


_REFUSAL = {
    "type": "object",
    "title": "Refusal",
    "required": ["detail"],
    "properties": {
        "detail": {"type": "string", "description": "What is wrong, as a sentence."},
        **{name: {"type": "string"} for name in ("input", "given", "expected")},
    },
}


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


_REASONS = {
    400: "The body is no JSON.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The inputs are not what the model takes.",
    500: "The model failed on these inputs.",
    503: "Not ready, shutting down, or the queue is full: try again.",
}


def app_of(service: Service, *, lifespan: bool) -> FastAPI:
    """The app of a service; with ``lifespan``, it starts and closes it."""
    app = _App(service, lifespan=_lifespan if lifespan else None)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse({"detail": refusal.detail, **refusal.about}, refusal.status, refusal.headers)

    @app.get("/health", summary="The process lives.")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="The model is loaded and warm, and the server takes requests; else 503.")
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    @app.get("/model", summary="What the exported file says of itself.")
    async def model() -> dict[str, Any]:
        return asdict(service.schema.manifest)

    @app.get("/stats", summary="Counts since the start.")
    async def stats() -> dict[str, int | float]:
        return service.stats()

    @app.post(
        "/predict",
        summary="Outputs for the samples in the request.",
        response_class=Response,
        openapi_extra={"requestBody": {"required": True, "content": _content("Request")}},
        responses={
            200: {"description": "One row of each output per sample.", "content": _content("Response")},
            **{status: {"description": why, "content": _content("Refusal")} for status, why in _REASONS.items()},
        },
    )
    async def predict(request: Request) -> Response:
        try:
            with service.admitted():
                try:
                    body = await asyncio.wait_for(_body(request, service.limits.max_body), _READING)
                except asyncio.TimeoutError:
                    raise Refusal(408, f"the body did not come within {_READING:g} seconds.") from None
                inputs = await _aside(len(body), service.schema.read, body)
                outputs = await _unless_gone(request, service.compute(inputs))
                answer = await _aside(sum(output.numel() for output in outputs), service.schema.write, outputs)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        return Response(answer, media_type="application/json")

    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, _App)
    await app.service.start()
    yield
    await app.service.close()


async def _body(request: Request, most: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page in a browser may send anything else to any server, this one too, without asking first.
        raise Refusal(
            415, f"the body is {kind or 'of no declared type'}; send the header Content-Type: application/json."
        )
    declared = request.headers.get("content-length", "")
    too_large = Refusal(413, f"the body is larger than {most} bytes; send fewer samples at once.")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large
    return bytes(body)


async def _aside(amount: int, work: Callable[..., T], *args: Any) -> T:
    """Work of that many bytes or numbers; in a thread if that takes long."""
    return work(*args) if amount <= _QUICK else await asyncio.to_thread(work, *args)


async def _unless_gone(request: Request, computing: Coroutine[Any, Any, T]) -> T:
    """
    Raises:
        ClientDisconnect: The client went away; the work is cancelled.
    """
    answer = asyncio.ensure_future(computing)
    gone = asyncio.ensure_future(request.receive())  # the body is read: what comes next is the end of the connection
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
