"""Where traces go, by OpenTelemetry's own variables. Without them nothing of OpenTelemetry is imported."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from parallm_openai import __version__

if TYPE_CHECKING:
    from parallm_openai.api.tracing.spans import Traces

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER = "OTEL_TRACES_EXPORTER"
# Whether prompts and answers are part of the spans, and what says so.
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
WITH_CONTENT = frozenset({"true", "span_only", "span_and_event"})


def traces_of_environment(environment: Mapping[str, str] = os.environ) -> Traces | None:
    """What makes spans and sends them as the variables say; None if they ask for none.

    If they ask for what cannot be done, the log says so, and the server runs without traces.
    """
    names = exporter_names(environment)
    if not names:
        return None
    try:
        from parallm_openai.api.tracing.spans import Traces

        return Traces(_provider(names), content=environment.get(CONTENT, "").lower() in WITH_CONTENT)
    except ModuleNotFoundError as error:
        log.warning("no traces are sent: %s; pip install 'parallm-openai[otel]' brings what they need", error)
    except Exception as error:
        log.warning("no traces are sent: %s", error)
    return None


def exporter_names(environment: Mapping[str, str]) -> list[str]:
    """The exporters to use, by the names under which packages offer them.

    An endpoint alone asks for OTLP, too: other programs on a machine that has one set send there by default.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    has_endpoint = any(environment.get(name) for name in ENDPOINTS)
    wanted = environment.get(EXPORTER) or ("otlp" if has_endpoint else "none")
    names = [name.strip() for name in wanted.split(",")]
    return [_otlp(environment) if name == "otlp" else name for name in names if name not in ("", "none")]


def _otlp(environment: Mapping[str, str]) -> str:
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"


def _provider(names: list[str]) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the environment says of the service goes before what we say.
    own = Resource.create({"service.name": "parallm-openai", "service.version": __version__})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    return provider


def _exporter(name: str) -> Any:
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise LookupError(f"no package is installed that has the exporter {name}")
    return next(iter(found)).load()()
