"""The routes that watch and change the engine: `/v1/stats`, `/metrics`, `/v1/engine/steps` and `/v1/configure`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import ValidationError

from parallm_openai.api import errors
from parallm_openai.api.route import body_router
from parallm_openai.api.setting_parameters import query_parameters
from parallm_openai.api.state import state_of
from parallm_openai.engine.timeline import RowStep
from parallm_openai.settings import EngineConfig

router = body_router(tags=["native"])


@router.get("/v1/stats")
async def stats(request: HttpRequest) -> Response:
    """What the engine has done since it started, times in seconds, and the defaults of requests that do not say.

    If there are several keys, it changes every 10 seconds only, but for admins.
    """
    state = state_of(request)
    numbers = state.engine.stats() if state.may_watch(request) else state.stats_now_and_then.get()
    defaults = {"sampling_defaults": state.defaults.in_force(), "chat_template_args": state.defaults.template_variables}
    return JSONResponse({"model": state.model.name, **numbers, **defaults})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: HttpRequest) -> Response:
    """The same and more as metrics for Prometheus."""
    state = state_of(request)
    text = state.metrics.text() if state.may_watch(request) else state.metrics_now_and_then.get()
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/engine/steps")
async def steps(request: HttpRequest, after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0) -> Response:
    """The last steps that brought tokens, but those up to number `after`; times in seconds since the engine started.

    Each row is `[request, drafted, accepted, emitted]`, in tokens. Of requests of other API keys there is only
    `[request]`: the course of their counts would tell what they say.
    """
    state = state_of(request)
    own = None if state.is_admin(request) else state.owner(request)
    timeline = state.engine.timeline

    def shown(row: RowStep) -> Sequence[int]:
        return row if own is None or state.owners.of(row.request) == own else row[:1]

    return JSONResponse(
        {
            "now": timeline.now,
            "steps": [
                {
                    "number": step.number,
                    "at": step.at,
                    "draft_seconds": step.draft_seconds,
                    "verify_seconds": step.verify_seconds,
                    "rows": [shown(row) for row in step.rows],
                }
                for step in timeline.after(after)
            ],
        }
    )


@router.post("/v1/configure", openapi_extra={"parameters": query_parameters(EngineConfig)})
async def configure(request: HttpRequest) -> Response:
    """Change the running engine's settings by query parameters; answers with all of them."""
    changes = dict(request.query_params)
    if (await request.body()).strip() not in (b"", b"{}"):
        said = "The settings are query parameters, as in /v1/configure?max_batch_size=8. Leave the body empty."
        raise errors.ApiError(400, said, param="body", code="unexpected_body")
    for name in changes:
        if name not in EngineConfig.model_fields:
            known = ", ".join(EngineConfig.model_fields)
            raise errors.ApiError(
                400, f"Unknown setting '{name}'. Settings: {known}.", param=name, code="unknown_parameter"
            )
    try:
        config = state_of(request).engine.configure(**changes)
    except ValidationError as error:
        raise errors.from_validation(error.errors()) from error
    return JSONResponse(config.model_dump())
