"""The flags of `parallm-openai bench` that simulate instead of measuring, or measure for a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from parallm_openai.setting_types import Flag, Repeatable, Settings, by_commas, flag_of
from parallm_openai.settings import EngineConfig

SIMULATION_NEEDS = "needs simpy: pip install 'parallm-openai[simulate]'"
MOST_REPLICAS = 100_000
RouterName = Literal["round-robin", "two-choices", "session", "prefix", "prefix-session", "prefix-bounded"]
ByCommas = BeforeValidator(by_commas)
# The settings of a trace that is made up, and which contents some of them need.
MADE_UP = {
    "arrivals",
    "content",
    "replica_rate",
    "trace_seconds",
    "prompt_tokens",
    "output_tokens",
    "system_prompts",
    "system_tokens",
    "turns",
    "think_seconds",
}
NEEDED_CONTENTS = {
    "system_prompts": ("shared", "agents"),
    "system_tokens": ("shared", "agents"),
    "turns": ("agents",),
    "think_seconds": ("agents",),
}


class SimulationSettings(Settings):
    """What to simulate."""

    has_variables: ClassVar[bool] = False

    measure_costs: Annotated[Path | None, Flag("Simulation", kind="a file")] = Field(
        None, description="Measure what steps of the model take, write it there, and stop."
    )
    simulate: Annotated[bool, Flag("Simulation")] = Field(
        False, description="Simulate replicas behind a router, with the scheduler's own code, instead of measuring."
    )
    costs_file: Annotated[Path | None, Flag("Simulation", name="costs", kind="a file")] = Field(
        None, description="What --measure-costs has written; --simulate needs it."
    )
    trace_file: Annotated[Path | None, Flag("Simulation", name="trace", kind="a .jsonl file")] = Field(
        None, description="The requests to simulate; made up by the flags below if not given."
    )
    record_trace: Annotated[Path | None, Flag("Simulation", kind="a .jsonl file")] = Field(
        None,
        description="Write there what the last round sent, or with --simulate the trace that was made up for the last "
        "of --replicas.",
    )
    compare_server: Annotated[bool, Flag("Simulation")] = Field(
        False, description="Also send the trace to the server of --model or --url, and show both."
    )
    compare_engine: Annotated[bool, Flag("Simulation")] = Field(
        False, description="Also run the trace on an engine in this process, without HTTP, and show both."
    )
    clock: Annotated[Literal["wall", "processor"], Flag("Simulation")] = Field(
        "wall",
        description="What --measure-costs and --compare-engine measure time by. The processor time of this process "
        "depends little on what else runs; it needs OPENBLAS_NUM_THREADS=1, and leaves out what serving adds.",
    )
    replicas: Annotated[tuple[int, ...], ByCommas, Flag("Simulation", kind="whole numbers, by commas")] = Field(
        (1,), min_length=1, description="How many replicas to simulate."
    )
    routers: Annotated[
        tuple[RouterName, ...],
        ByCommas,
        Flag("Simulation", kind=f"{', '.join(get_args(RouterName))}, by commas"),
    ] = Field(("two-choices",), min_length=1, description="Who chooses the replica of a request.")
    exact_replicas: Annotated[int, Flag("Simulation")] = Field(
        16,
        ge=2,
        le=1024,
        description="Simulate fleets of up to so many step by step, and so many replicas of larger ones.",
    )
    arrivals: Annotated[Literal["poisson", "bursty", "diurnal"], Flag("Simulation")] = Field(
        "poisson", description="How requests come."
    )
    content: Annotated[Literal["single", "shared", "agents"], Flag("Simulation")] = Field(
        "single",
        description="What they ask: prompts of their own; after a shared system prompt; or turns of a session.",
    )
    replica_rate: Annotated[float, Flag("Simulation")] = Field(
        1.0, ge=0.0001, le=1000, description="Requests a second for each replica."
    )
    trace_seconds: Annotated[float, Flag("Simulation")] = Field(
        60.0, ge=0.001, le=86_400, description="For how long they come."
    )
    prompt_tokens: Annotated[int, Flag("Simulation")] = Field(
        128, ge=1, description="Mean tokens of a prompt, without what it shares with others."
    )
    output_tokens: Annotated[int, Flag("Simulation")] = Field(64, ge=1, description="Mean tokens of an answer.")
    system_prompts: Annotated[int, Flag("Simulation")] = Field(
        64, ge=1, le=100_000, description="So many different system prompts; the first are asked for most."
    )
    system_tokens: Annotated[int, Flag("Simulation")] = Field(256, ge=1, description="Tokens of a system prompt.")
    turns: Annotated[float, Flag("Simulation")] = Field(6.0, ge=1, le=10_000, description="Mean turns of a session.")
    think_seconds: Annotated[float, Flag("Simulation")] = Field(
        5.0, ge=0.001, le=86_400, description="Mean seconds from one turn of a session to the next."
    )
    engine: Annotated[Repeatable, Flag("Simulation", kind="NAME=VALUE", repeatable=True)] = Field(
        (), description="A setting of the simulated engine, as in max_batch_size=32; repeatable."
    )

    @field_validator("replicas")
    @classmethod
    def _some(cls, replicas: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= min(replicas) <= max(replicas) <= MOST_REPLICAS:
            raise ValueError(f"must be from 1 to {MOST_REPLICAS}")
        return replicas

    @field_validator("engine")
    @classmethod
    def _are_settings(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        _engine_config(pairs)
        return pairs

    @model_validator(mode="after")
    def _fits(self) -> SimulationSettings:
        if self.measure_costs is not None and self.simulate:
            raise ValueError("--measure-costs: measures first; then simulate with --simulate and --costs")
        only_simulated = self.model_fields_set - {"measure_costs", "simulate", "record_trace", "clock"}
        if not self.simulate and only_simulated:
            raise ValueError(f"{_flag(sorted(only_simulated)[0])}: needs --simulate")
        if self.simulate and self.costs_file is None:
            raise ValueError("--simulate: needs --costs, a file that --measure-costs has written")
        self._check_trace()
        self._check_comparison()
        return self

    def _check_trace(self) -> None:
        made_up = sorted(self.model_fields_set & MADE_UP)
        if self.trace_file is not None and (made_up or self.record_trace is not None):
            flag = _flag(made_up[0]) if made_up else "--record-trace"
            raise ValueError(f"{flag}: is for a trace that is made up; leave out either it or --trace")
        if self.measure_costs is not None and self.record_trace is not None:
            raise ValueError("--record-trace: --measure-costs sends no trace")
        for name in made_up:
            needed = NEEDED_CONTENTS.get(name)
            if needed is not None and self.content not in needed:
                raise ValueError(f"{_flag(name)}: needs --content {' or '.join(needed)}")

    def _check_comparison(self) -> None:
        for flag, given in (("--compare-server", self.compare_server), ("--compare-engine", self.compare_engine)):
            if given and self.replicas != (1,):
                raise ValueError(f"{flag}: compares with --replicas 1")
        if self.compare_server and self.compare_engine:
            raise ValueError("--compare-engine: give either this or --compare-server")
        if "clock" in self.model_fields_set and self.measure_costs is None and not self.compare_engine:
            raise ValueError("--clock: needs --measure-costs or --compare-engine")

    @property
    def config(self) -> EngineConfig:
        return _engine_config(self.engine)

    @property
    def engine_settings(self) -> dict[str, str]:
        """Those that were given, as a server's /v1/configure takes them."""
        return dict(pair.split("=", 1) for pair in self.engine)


def _flag(field: str) -> str:
    return flag_of(field.removesuffix("_file"))


def _engine_config(pairs: tuple[str, ...]) -> EngineConfig:
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"must be NAME=VALUE, not {pair!r:.80}")
        if name in given:
            raise ValueError(f"{name}: is given twice")
        given[name] = int(value) if value.isdecimal() else value
    try:
        return EngineConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        message = "is no setting of the engine" if first["type"] == "extra_forbidden" else first["msg"]
        raise ValueError(f"{first['loc'][0] or repr('')}: {message}") from error
