"""The HTTP routes: what is read from a request, who answers it, and how errors look."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from rlx_ray.errors import RlxError
from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.service import Service
from rlx_serve.http import completions, oip
from rlx_serve.http import embeddings as openai
from rlx_serve.http import text_answers as answers
from rlx_serve.http.page import page
from rlx_serve.http.problems import Problem, problem

_log = logging.getLogger("ray.serve")
_Body = TypeVar("_Body", bound=BaseModel)

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a surrogate pair; JSON may have one alone, Unicode text may not."""


def make_app(service: Service) -> FastAPI:
    """The whole HTTP application over a service."""
    app = FastAPI(title="rlx-ray", docs_url=None, redoc_url=None, openapi_url=None)
    created = int(time.time())
    _add_openai(app, service, created)
    _add_oip(app, service)

    @app.get("/variants")
    async def variants() -> Response:
        return _json(await service.variants())

    @app.get("/")
    async def home() -> HTMLResponse:
        return HTMLResponse(page(**await service.variants()))

    for kind in (RlxError, TimeoutError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    return app


def _add_openai(app: FastAPI, service: Service, created: int) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await _read(request, openai.EmbeddingsBody, service.limits.max_body_bytes)
        found, answer = await openai.embeddings(service, body)
        return _json(found, answer.headers())

    @app.post("/v1/completions")
    async def completion(request: Request) -> Response:
        body = await _read(request, completions.CompletionBody, service.limits.max_body_bytes)
        job = completions.completion(service.text_model(body.model), body)
        return await _speak(job, bool(body.stream), service.limits.request_timeout_s)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await _read(request, completions.ChatBody, service.limits.max_body_bytes)
        job = completions.chat(service.text_model(body.model), body)
        return await _speak(job, bool(body.stream), service.limits.request_timeout_s)

    @app.get("/v1/models")
    async def models() -> Response:
        rows = [openai.model_row(name, created) for name in service.names]
        return _json({"object": "list", "data": rows})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        return _json(openai.model_row(service.known(name), created))


async def _speak(job: completions.Job, stream: bool, seconds: float) -> Response:
    if not stream:
        answer, headers = await answers.whole(job, seconds)
        return _json(answer, headers)
    events, headers = await answers.begin(job, seconds)
    headers["cache-control"] = "no-cache"
    return StreamingResponse(events, 200, headers, "text/event-stream")


def _add_oip(app: FastAPI, service: Service) -> None:
    @app.get("/v2")
    async def server() -> Response:
        return _json({"name": "rlx-ray", "version": _version(), "extensions": []})

    @app.get("/v2/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        good = await service.all_ready()
        return _json({"ready": good}, status=200 if good else 503)

    @app.get("/v2/models/{name}")
    async def model(name: str) -> Response:
        return _json(oip.metadata(service.model(name)))

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> Response:
        good = await service.model_ready(name)
        return _json({"name": name, "ready": good}, status=200 if good else 503)

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: Request) -> Response:
        model = service.model(name)
        body = await _read(request, oip.InferBody, service.limits.max_body_bytes)
        found, answer = await oip.infer(service, model, body)
        return _json(found, answer.headers())


async def _read(request: Request, kind: type[_Body], limit: int) -> _Body:
    """The request's body as a model of pydantic's.

    Raises:
        RequestError: it is too large (413), or not UTF-8, not JSON, no Unicode text or of wrong
            types (400).
    """
    try:
        text = (await _bytes(request, limit)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}.", "Send JSON in UTF-8.") from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}.", "Send one JSON object.") from None
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object.", "Send one JSON object.")
    if _HALF.search(text):
        _check_halves(value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


async def _bytes(request: Request, limit: int) -> bytes:
    chunks, total = [], 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise RequestError(
                f"the body is larger than {limit} bytes.",
                "Send fewer texts at a time, or raise serve.max_body_bytes.",
                status=413,
                code="body_too_large",
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _check_halves(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise RequestError(
            f"the body has {half} without its other half, which is no character.",
            "Do not cut texts within a surrogate pair.",
        ) from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _invalid(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return RequestError(f"{place} is missing.", "It is required.", param=place)
    return RequestError(f"{place}: {first['msg']}.", "Correct its type or value.", param=place)


def _json(value: object, headers: Mapping[str, str] = {}, status: int = 200) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, status, dict(headers), "application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    found = problem(error)
    if found.status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _problem(request, found)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}."
    return _problem(request, Problem(error.status_code, text, "not_found"), error.headers)


def _problem(
    request: Request, found: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    path = request.url.path.removeprefix(str(request.scope.get("root_path", "")))
    in_oip = path == "/v2" or path.startswith("/v2/")
    body = found.oip() if in_oip else found.openai()
    return _json(body, {**found.headers, **(headers or {})}, found.status)


def _version() -> str:
    try:
        return version("rlx_ray")
    except PackageNotFoundError:
        return "0"
