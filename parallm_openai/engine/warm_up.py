"""Short requests before the first real one, which then need not wait while kernels are compiled."""

from __future__ import annotations

from parallm_openai.engine.prefill_speed import PrefillSpeed
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.speculation.draft_length import DraftLength
from parallm_openai.engine.stats import EngineStats
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.timeline import Timeline

REQUESTS = (
    SamplingParams(max_tokens=3, temperature=1.0, ignore_eos=True),
    SamplingParams(max_tokens=3, temperature=1.0, top_p=0.9, logprobs=1, ignore_eos=True),
)


def warm_up(core: EngineCore) -> None:
    """Run requests that sample in different ways, and forget them.

    So is what they would teach about speed: compiling is most of what they take.
    """
    for params in REQUESTS:
        core.add(Request((0,), params))
    while not core.idle:
        core.step()
    core.release()
    core.stats, core.timeline = EngineStats(), Timeline()
    core.scheduler.decode_seconds = 0.0
    core.scheduler.prefill_speed = PrefillSpeed(core.scheduler.traits.forward_tokens)
    for bucket in core.scheduler.buckets:
        bucket.draft_length = DraftLength(deferred=bucket.draft_length.deferred)
