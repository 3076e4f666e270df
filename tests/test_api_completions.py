"""What `/v1/completions` tells of tokens: every one that was generated, each where it stands in the text."""

from __future__ import annotations

from typing import Any

import pytest
from support.servers import RunningServer, demo_target
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from parallm_openai.api.logprobs import Echo
from parallm_openai.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(demo_target().tokenizer, demo_target().vocab_size)
EOS = min(demo_target().eos_token_ids)
ENDS = {TOKENIZER.token_bytes(token).decode() for token in demo_target().eos_token_ids}
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def complete(server: RunningServer, **fields: Any) -> dict[str, Any]:
    with server.client as client:
        response = client.post("/v1/completions", json={"model": "parallm-demo", "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_the_end_token_is_counted_and_has_a_log_probability(server: RunningServer) -> None:
    body = complete(server, prompt=CHAT, logprobs=2, max_tokens=50)
    [choice] = body["choices"]
    found = choice["logprobs"]
    assert choice["finish_reason"] == "stop"
    assert found["tokens"][-1] in ENDS
    assert len(found["tokens"]) == len(found["token_logprobs"]) == body["usage"]["completion_tokens"]
    assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
    assert found["text_offset"][-1] == len(choice["text"])


def test_a_limit_cuts_before_the_end_token(server: RunningServer) -> None:
    whole = complete(server, prompt=CHAT, logprobs=0, max_tokens=50)
    count = whole["usage"]["completion_tokens"]
    cut = complete(server, prompt=CHAT, logprobs=0, max_tokens=count - 1)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["choices"][0]["logprobs"]["tokens"] == whole["choices"][0]["logprobs"]["tokens"][:-1]


@pytest.mark.parametrize("ends", [True, False])
def test_a_harness_that_drops_the_generated_token_keeps_the_prompts(server: RunningServer, ends: bool) -> None:
    """lm-eval asks for the prompt and one token more, and sums the log-probabilities of all but the last."""
    prompt = TOKENIZER.encode("The capital of France is Paris.")
    scored = complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
    bias = {str(EOS): 100 if ends else -100}
    more = complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=1, logit_bias=bias)["choices"][0]
    assert more["finish_reason"] == ("stop" if ends else "length")
    assert more["logprobs"]["token_logprobs"][:-1] == pytest.approx(scored["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    "prompt", [CHAT, "naïve café \U0001f600 day", "plain words", TOKENIZER.encode(CHAT), "<|im_end|>"]
)
def test_an_echoed_prompt_is_what_was_sent_and_offsets_fit_it(server: RunningServer, prompt: str | list[int]) -> None:
    choice = complete(server, prompt=prompt, echo=True, logprobs=0, max_tokens=6)["choices"][0]
    sent = prompt if isinstance(prompt, str) else CHAT
    assert choice["text"].startswith(sent)
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    for token, start, end in zip(choice["logprobs"]["tokens"], offsets, [*offsets[1:], None], strict=True):
        if not token.startswith("bytes:"):
            shown = start < len(sent) or token not in TOKENIZER.special_tokens
            assert choice["text"][start:end] == (token if shown else "")


def with_bos() -> Tokenizer:
    """The demo's tokenizer, framed as Llama's are: a token that begins every text."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=type(TOKENIZER._hf.backend_tokenizer).from_str(TOKENIZER._hf.backend_tokenizer.to_str()),
        bos_token="<|im_start|>",
    )
    start = ("<|im_start|>", made.bos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[start])
    return Tokenizer(type(demo_target().tokenizer)(made), demo_target().vocab_size)


def test_a_prompt_that_begins_as_texts_do_gets_no_second_beginning() -> None:
    tokenizer = with_bos()
    bos = tokenizer.bos_token
    plain = tokenizer.encode("Hello")
    assert plain[0] == bos
    assert tokenizer.encode("<|im_start|>Hello") == plain
    assert tokenizer.encode("<|im_start|>") == [bos]
    assert tokenizer.encode("<|im_start|><|im_start|>Hello") == [bos, *plain]
    assert Echo.of(tuple(plain), tokenizer).text == "Hello"
    assert Echo.of(tuple(plain), tokenizer).offsets[:2] == (0, 0)
