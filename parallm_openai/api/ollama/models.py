"""The model served as Ollama's clients look for it, and what cannot be done to it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.error_shapes import DOCUMENTED_OLLAMA
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.ollama.schemas import ShowRequest
from parallm_openai.api.route import body_router
from parallm_openai.api.state import AppState, state_of

router = body_router(tags=["Ollama"], responses=DOCUMENTED_OLLAMA, any_content_type=True)

# The version of Ollama's API that these routes follow: clients ask for one that can do what they need.
API_VERSION = "0.12.6"
TAG = ":latest"


def model_named(state: AppState, name: str | None, ignored: Ignored) -> str:
    """The model's name as the request has it, with a tag or without. Raises ApiError for another model's."""
    if name is not None and name not in state.model_names and name.endswith(TAG):
        state.check_model(name.removesuffix(TAG))
        return name
    return state.model_named(name, ignored)


@router.get("/api/version")
async def version() -> dict[str, str]:
    """The version of Ollama whose API this is."""
    return {"version": API_VERSION}


@router.get("/api/tags")
async def tags(request: HttpRequest) -> dict[str, Any]:
    """The model served, under each of its names."""
    state = state_of(request)
    return {"models": [_listed(state, name) for name in state.model_names]}


@router.get("/api/ps")
async def running_models(request: HttpRequest) -> dict[str, Any]:
    """The same: it is always loaded."""
    state = state_of(request)
    loaded = {"size_vram": state.model.weight_bytes, "context_length": state.engine.context_length}
    # A year that clients can write: the model is never unloaded.
    forever = {"expires_at": "2318-01-01T00:00:00Z"}
    return {"models": [{**_listed(state, name), **loaded, **forever} for name in state.model_names]}


@router.post("/api/show")
async def show(body: ShowRequest, request: HttpRequest) -> JSONResponse:
    """Describe the model served, and list its capabilities."""
    state = state_of(request)
    name = model_named(state, body.model or body.name, request.state.ignored)
    format, family = state.tokenizer.chat_format, _family(state)
    generates = state.embeddings is None
    capable = {
        "completion": generates,
        "tools": generates and format.calls_tools,
        "thinking": generates and format.reasons,
        "embedding": not generates,
    }
    return JSONResponse(
        {
            "license": "",
            "modelfile": f"FROM {name}",
            "parameters": "",
            "template": "",
            "details": _details(state),
            "model_info": {
                "general.architecture": family,
                "general.basename": state.model.name,
                f"{family}.context_length": state.engine.context_length,
            },
            "capabilities": [capability for capability, able in capable.items() if able],
            "modified_at": _modified(state),
        }
    )


MANAGING = ("pull", "push", "create", "copy", "delete", "blobs/{digest}")


async def _fixed() -> None:
    """Always a 400: the server has the model that it was started with."""
    message = "This server serves the model that it was started with: it cannot pull, make, copy or delete models."
    raise errors.invalid(message, code="unsupported")


for each in MANAGING:
    methods = ["POST", "DELETE"] if each == "delete" else ["POST"]
    router.add_api_route(f"/api/{each}", _fixed, methods=methods, include_in_schema=False)


def _listed(state: AppState, name: str) -> dict[str, Any]:
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}{TAG}"
    return {
        "name": tagged,
        "model": tagged,
        "modified_at": _modified(state),
        "size": state.model.weight_bytes,
        "digest": hashlib.sha256(state.model.name.encode()).hexdigest(),
        "details": _details(state),
    }


def _details(state: AppState) -> dict[str, Any]:
    family = _family(state)
    quantization = state.model.config.get("quantization") or {}
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    return {
        "parent_model": "",
        "format": "mlx",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": f"{bits}-bit" if bits else str(state.model.dtype).rpartition(".")[2],
    }


def _family(state: AppState) -> str:
    return str(state.model.config.get("model_type", "unknown"))


def _modified(state: AppState) -> str:
    return datetime.fromtimestamp(state.model.created, UTC).isoformat().replace("+00:00", "Z")
