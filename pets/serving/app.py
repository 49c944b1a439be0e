"""Web application of the model server."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile

from pets.model import ModelReference
from pets.serving.limits import (
    BodyLimit,
    ByteBudget,
    check_token,
    content_length,
    until_disconnect,
)
from pets.serving.metrics import MeasureRequests, ServerMetrics
from pets.serving.models import (
    ModelSlot,
    PhotoModel,
    Predicted,
    RatingModel,
    open_served,
)
from pets.serving.settings import ServeSettings
from pets_core.errors import PetsError
from pets_core.inference.predict import Photo

__all__ = ["create_app"]

_PAGE = Path(__file__).with_name("page.html")
_MAX_DECODERS = 8
_BODY_BYTES = 512_000_000
"""Bytes of all bodies in memory; further requests wait."""
_IMAGE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "additionalProperties": _IMAGE}
_REQUEST_BODY = {
    "required": True,
    "content": {"image/*": {"schema": _IMAGE}, "multipart/form-data": {"schema": _FORM}},
}
"""Body of /predict in OpenAPI."""
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data: blob:; frame-ancestors 'none'"
    )
}


class _Server:
    """State of the application: model, threads and metrics."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, ServerMetrics()
        self.slot = ModelSlot(settings.model, settings.store, self._open)
        # A container may use fewer cores than its machine has.
        num_decoders = min(len(os.sched_getaffinity(0)), _MAX_DECODERS)
        self.decoders = ThreadPoolExecutor(num_decoders, thread_name_prefix="decode")
        self.max_bytes = round(settings.max_mb * 1e6)
        self.budget = ByteBudget(_BODY_BYTES)
        self.metrics.set_model(self.slot.current.reference)

    def _open(self, reference: ModelReference) -> PhotoModel | RatingModel:
        return open_served(reference, self.settings.device, self.metrics.batch.observe)

    def on_update(self, succeeded: bool) -> None:
        self.metrics.updates.labels("updated" if succeeded else "failed").inc()
        self.metrics.set_model(self.slot.current.reference)

    @asynccontextmanager
    async def run(self, _: FastAPI) -> AsyncIterator[None]:
        follower = asyncio.create_task(self.slot.follow(self.settings.poll_seconds, self.on_update))
        yield
        follower.cancel()
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.slot.current.close()

    async def predict(self, photos: list[Photo], top: int, *, maps: bool) -> dict[str, Any]:
        with self.slot.use() as model:
            if not isinstance(model, PhotoModel):
                raise HTTPException(404, "this model predicts ratings: use GET /recommend")
            loop = asyncio.get_running_loop()
            decoding = [loop.run_in_executor(self.decoders, model.decode, each) for each in photos]
            decoded = await asyncio.gather(*decoding)
            found = await model.predict(decoded, top, wants_maps=maps)
        unreadable = sum(each.prediction.error is not None for each in found)
        self.metrics.photos.labels("predicted").inc(len(found) - unreadable)
        self.metrics.photos.labels("unreadable").inc(unreadable)
        return {
            "model": _describe(model.reference),
            "predictions": [_to_json(each) for each in found],
        }


def create_app(settings: ServeSettings) -> FastAPI:
    """Open the model and return the application.

    Raises:
        PetsError: There is no such model, or it is damaged.
    """
    server = _Server(settings)
    app = FastAPI(title="pets serve", docs_url=None, redoc_url=None, lifespan=server.run)
    app.add_middleware(BodyLimit, max_bytes=server.max_bytes)
    app.add_middleware(MeasureRequests, metrics=server.metrics)
    app.exception_handler(PetsError)(_handle_error)
    _add_status(app, server)
    _add_model(app, server)
    return app


def _add_status(app: FastAPI, server: _Server) -> None:
    """Add the page, health, readiness and metrics, which need no token."""

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """Return a page to drop photos on."""
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        """Whether requests are accepted; the server answers only when its model is open."""
        return {"ready": True}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_model(app: FastAPI, server: _Server) -> None:
    """Add the routes of the model, which need the token."""
    settings = server.settings

    @app.get("/model")
    async def model(request: Request) -> dict[str, Any]:
        """The served model and its card."""
        check_token(settings.token, request.headers.get("authorization"))
        current = server.slot.current
        return {"model": _describe(current.reference), **current.info}

    @app.post("/predict", openapi_extra={"requestBody": _REQUEST_BODY})
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=1000)] = 3,
        maps: bool = False,
    ) -> JSONResponse:
        """Predict the image in the body, or the files of a form.

        A request whose images are all unreadable has status 422.
        """
        check_token(settings.token, request.headers.get("authorization"))
        size = content_length(request.scope, default=server.max_bytes)
        async with server.budget.hold(size):
            photos = await _read_photos(request, settings.max_images)
            work = server.predict(photos, top, maps=maps)
            found = await until_disconnect(request, work)
        is_readable = any("error" not in each for each in found["predictions"])
        return JSONResponse(found, 200 if is_readable else 422)

    @app.get("/recommend")
    async def recommend(
        request: Request,
        user: str | None = None,
        top: Annotated[int, Query(ge=1, le=1000)] = 10,
        min_ratings: Annotated[int, Query(ge=0)] = 5,
    ) -> dict[str, Any]:
        """Recommend items for a user; without a user, for an unknown one."""
        check_token(settings.token, request.headers.get("authorization"))
        with server.slot.use() as model:
            if not isinstance(model, RatingModel):
                raise HTTPException(404, "this model predicts photos: use POST /predict")
            items = await model.recommend(user, top, min_ratings)
        return {
            "model": _describe(model.reference),
            "recommendations": [item._asdict() for item in items],
        }


async def _read_photos(request: Request, max_images: int) -> list[Photo]:
    """Return the image of the body, or the files of a form.

    Raises:
        HTTPException: The body is empty, is no form, or has too many files.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        data = await request.body()
        if not data:
            raise HTTPException(400, "the body is empty: send an image, or a form with files")
        return [Photo("body", partial(bytes, data))]
    async with request.form(max_files=max_images, max_fields=0) as form:
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no files")
        contents = [(file.filename or "file", await file.read()) for file in files]
    # The charset of a form can give names with characters that JSON cannot hold.
    return [
        Photo(name.encode(errors="replace").decode(), partial(bytes, data))
        for name, data in contents
    ]


def _describe(model: ModelReference) -> dict[str, str]:
    return {name: value for name, value in model.printable()._asdict().items() if value}


def _to_json(predicted: Predicted) -> dict[str, Any]:
    found = predicted.prediction.model_dump(mode="json", exclude_none=True)
    if not found.get("top"):
        found.pop("top", None)
    if predicted.activation:
        encoded = base64.b64encode(predicted.activation).decode()
        found["map"] = f"data:image/jpeg;base64,{encoded}"
    return found


async def _handle_error(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)
