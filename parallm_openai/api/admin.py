"""The native routes that watch and change the engine: `/v1/stats` and `/v1/configure`."""

from __future__ import annotations

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from parallm_openai.api import errors
from parallm_openai.api.route import body_router
from parallm_openai.api.setting_parameters import query_parameters
from parallm_openai.api.state import state_of
from parallm_openai.settings import EngineConfig

router = body_router(tags=["native"])


@router.get("/v1/stats")
async def stats(request: HttpRequest) -> Response:
    """What the engine has done since it started; times in seconds."""
    state = state_of(request)
    return JSONResponse({"model": state.model.name, **state.engine.stats()})


@router.post("/v1/configure", openapi_extra={"parameters": query_parameters(EngineConfig)})
async def configure(request: HttpRequest) -> Response:
    """Change the running engine's settings by query parameters; answers with all of them."""
    changes = dict(request.query_params)
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
