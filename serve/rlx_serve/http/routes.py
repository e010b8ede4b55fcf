"""The HTTP routes: what is read from a request, who answers it, and how errors look."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlx_serve.gateway.request_error import RequestError
from rlx_serve.gateway.service import Service
from rlx_serve.http import completions, embeddings, oip, text_answers
from rlx_serve.http.page import page
from rlx_serve.http.problems import Problem, problem

_log = logging.getLogger("ray.serve")
_Body = TypeVar("_Body", bound=BaseModel)

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a surrogate pair; JSON may have one alone, Unicode text may not."""


_LONG = re.compile(rb"[0-9]{19}")
"""A whole number that 64 bits may not hold: orjson would make it a float."""

Handler = Callable[[Request], Awaitable[ASGIApp]]
"""Answers a request: by an ASGI application, such as a response."""


def make_app(service: Service) -> Starlette:
    """The whole HTTP application over a service."""

    async def variants(request: Request) -> Response:
        return _json(await service.variants())

    async def home(request: Request) -> Response:
        return HTMLResponse(page(**await service.variants()))

    routes = [
        *_openai(service, int(time.time())),
        *_open_inference(service),
        _get("/variants", variants),
        _get("/", home),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _on_http_error})


def _get(path: str, handler: Handler) -> Route:
    return Route(path, _answered(handler), methods=["GET"])


def _post(service: Service, path: str, handler: Handler) -> Route:
    """A route of requests that count towards what the gateway takes at once."""

    async def admitted(request: Request) -> ASGIApp:
        with ExitStack() as stack:
            stack.enter_context(service.admitted())
            return _Written(await handler(request), stack.pop_all())

    return Route(path, _answered(admitted), methods=["POST"])


class _Written:
    """A response, and what is held until it is written: streams run while they are."""

    def __init__(self, response: ASGIApp, held: ExitStack) -> None:
        self._response = response
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await self._response(scope, receive, send)


def _answered(handler: Handler) -> Handler:
    """A handler whose errors are answers."""

    async def answered(request: Request) -> ASGIApp:
        try:
            return await handler(request)
        except Exception as error:
            found = problem(error)
            if found.status == 500:
                _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
            return _problem(request, found)

    return answered


def _openai(service: Service, created: int) -> list[Route]:
    limits = service.limits

    async def embed(request: Request) -> Response:
        body = await _read(request, embeddings.EmbeddingsBody, limits.max_body_bytes)
        found, answer = await embeddings.embeddings(service, body)
        return _json(found, answer.headers())

    async def completion(request: Request) -> Response:
        body = await _read(request, completions.CompletionBody, limits.max_body_bytes)
        job = completions.completion(service.text_model(body.model), body)
        return await _text(job, bool(body.stream), service.limits.request_timeout_s)

    async def chat(request: Request) -> Response:
        body = await _read(request, completions.ChatBody, limits.max_body_bytes)
        job = completions.chat(service.text_model(body.model), body)
        return await _text(job, bool(body.stream), service.limits.request_timeout_s)

    async def models(request: Request) -> Response:
        rows = [embeddings.model_row(name, created) for name in service.names]
        return _json({"object": "list", "data": rows})

    async def model(request: Request) -> Response:
        return _json(embeddings.model_row(service.known(_name(request)), created))

    return [
        _post(service, "/v1/embeddings", embed),
        _post(service, "/v1/completions", completion),
        _post(service, "/v1/chat/completions", chat),
        _get("/v1/models", models),
        _get("/v1/models/{name}", model),
    ]


async def _text(job: completions.Job, stream: bool, seconds: float) -> Response:
    if not stream:
        answer, headers = await text_answers.whole(job, seconds)
        return _json(answer, headers)
    events, headers = await text_answers.begin(job, seconds)
    headers["cache-control"] = "no-cache"
    return StreamingResponse(events, 200, headers, "text/event-stream")


def _open_inference(service: Service) -> list[Route]:
    async def server(request: Request) -> Response:
        return _json({"name": "rlx-ray", "version": _version(), "extensions": []})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        good = await service.all_ready()
        return _json({"ready": good}, status=200 if good else 503)

    async def model(request: Request) -> Response:
        return _json(oip.metadata(service.model(_name(request))))

    async def model_ready(request: Request) -> Response:
        name = _name(request)
        good = await service.model_ready(name)
        return _json({"name": name, "ready": good}, status=200 if good else 503)

    async def infer(request: Request) -> Response:
        model = service.model(_name(request))
        body = await _read(request, oip.InferBody, service.limits.max_body_bytes)
        found, answer = await oip.infer(service, model, body)
        return _json(found, answer.headers())

    return [
        _get("/v2", server),
        _get("/v2/health/live", live),
        _get("/v2/health/ready", ready),
        _get("/v2/models/{name}", model),
        _get("/v2/models/{name}/ready", model_ready),
        _post(service, "/v2/models/{name}/infer", infer),
    ]


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    return name


async def _read(request: Request, kind: type[_Body], limit: int) -> _Body:
    """The request's body as a model of pydantic's.

    Raises:
        RequestError: it is too large (413), or not UTF-8, not JSON, no Unicode text or of wrong
            types (400).
    """
    body = await _bytes(request, limit)
    try:
        value = _loads(body) if _LONG.search(body) else orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _loads(body)
    if not isinstance(value, dict):
        raise RequestError("the body is not a JSON object.", "Send one JSON object.")
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


def _loads(body: bytes) -> object:
    """What Python's reader makes of a body that orjson does not take; its errors name the place.

    Raises:
        RequestError: see `_read`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error}.", "Send JSON in UTF-8.") from None
    try:
        value: object = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}.", "Send one JSON object.") from None
    if _HALF.search(text):
        _check_halves(value)
    return value


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
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, dict(headers), "application/json")


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
