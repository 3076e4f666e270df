"""Sampling that requests leave open: the model's recommendation, what the server sets, and the request's own word."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import families, gguf_files
from support.servers import RunningServer, demo_target, running_server
from typer.testing import CliRunner

from parallm_openai import cli
from parallm_openai.api.schemas.sampling import SamplingFields
from parallm_openai.engine.request import DEFAULTABLE, SamplingParams
from parallm_openai.llm import LLM
from parallm_openai.models.generation_config import read_generation_config
from parallm_openai.models.loading import LoadedModel, ModelLoadError, load
from parallm_openai.settings import NO_DEFAULTS, RequestDefaults, SamplingDefaults
from parallm_openai.text.defaults import Defaults, asked

OURS = SamplingParams()

fields = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.none() | st.floats(0, 2),
        "top_p": st.none() | st.floats(0, 1),
        "top_k": st.none() | st.integers(-1, 100),
        "min_p": st.none() | st.floats(0, 1),
        "repetition_penalty": st.none() | st.floats(0.01, 10),
    },
)


def first_given(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def recommending(**sampling: Any) -> LoadedModel:
    return replace(demo_target(), sampling=SamplingDefaults(**sampling))


# Who goes before whom


@given(request=fields, server=fields, model=fields)
def test_a_request_goes_before_the_server_the_server_before_the_model_and_the_model_before_no_change(
    request: dict[str, Any], server: dict[str, Any], model: dict[str, Any]
) -> None:
    defaults = Defaults.of(recommending(**model), RequestDefaults(**server))
    filled = defaults.filled(SamplingFields(**request).sampling(max_tokens=5))
    for name in DEFAULTABLE:
        wanted = first_given(request.get(name), server.get(name), model.get(name), getattr(OURS, name))
        # A negative top_k is off.
        assert getattr(filled, name) == (max(wanted, 0) if name == "top_k" else wanted)
    assert (filled.max_tokens, filled.unsaid) == (5, frozenset())


def test_every_field_with_a_default_is_a_field_of_requests_and_of_the_settings() -> None:
    assert SamplingDefaults.model_fields.keys() - {"max_tokens"} == DEFAULTABLE
    assert SamplingFields.model_fields.keys() >= DEFAULTABLE


def test_parameters_that_a_program_gives_are_meant_as_they_are() -> None:
    assert Defaults(SamplingDefaults(temperature=0.3)).filled(SamplingParams()) == SamplingParams()
    assert Defaults(SamplingDefaults(temperature=0.3)).filled(asked(top_p=0.5)).temperature == 0.3


# What a model recommends


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return families.write("llama", tmp_path / "tiny-llama")


def recommend(folder: Path, **content: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content))


def test_a_folders_generation_config_is_the_models_recommendation_apart_from_lengths(folder: Path) -> None:
    assert load(folder).sampling == NO_DEFAULTS
    recommend(
        folder, temperature=0.6, top_p=0.95, top_k=20, min_p=None, max_length=20, max_new_tokens=3, do_sample=True
    )
    assert load(folder).sampling == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)


def test_a_gguf_files_metadata_are_its_recommendation_unless_a_config_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"

    def sampling(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 7)

    gguf_files.write("llama", file, change=sampling)
    assert load(file).sampling == SamplingDefaults(temperature=0.5, top_k=7)
    recommend(tmp_path, temperature=0.9)
    assert load(file).sampling == SamplingDefaults(temperature=0.5, top_k=7)
    assert load(tmp_path).sampling == SamplingDefaults(temperature=0.9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"temperature": "hot", "top_p": 0.5}', "temperature is 'hot'"),
        ('{"temperature": -1, "top_p": 0.5}', "temperature is '-1'"),
        ('{"temperature": NaN, "top_p": 0.5}', "temperature is 'nan'"),
        ("[1]", "it is no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_what_a_config_cannot_mean_is_left_out_with_a_warning_and_refused_if_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, said: str
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        found = read_generation_config(tmp_path)
    assert found == (SamplingDefaults(top_p=0.5) if "top_p" in content else NO_DEFAULTS)
    assert said in caplog.text
    with pytest.raises(ModelLoadError, match="--generation-config: ") as refused:
        Defaults.of(demo_target(), RequestDefaults(generation_config=str(tmp_path)))
    assert said in str(refused.value)


def test_the_user_says_where_the_recommendation_comes_from(tmp_path: Path) -> None:
    recommend(tmp_path, temperature=0.9)
    model = recommending(temperature=0.2, top_p=0.5)

    def held(source: str) -> SamplingDefaults:
        return Defaults.of(model, RequestDefaults(generation_config=source)).sampling

    assert held("auto") == model.sampling
    assert held("none") == NO_DEFAULTS
    assert held(str(tmp_path)) == SamplingDefaults(temperature=0.9)
    with pytest.raises(ModelLoadError, match=r"has no generation_config\.json"):
        held(str(tmp_path / "nowhere"))


# Every surface

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "parallm-demo", "messages": [{"role": "user", "content": "Tell me a story."}]},
    "/v1/completions": {"model": "parallm-demo", "prompt": "Once upon a time"},
    "/v1/responses": {"model": "parallm-demo", "input": "Tell me a story."},
    "/v1/generate": {"prompt": "Once upon a time"},
    "/v1/generate_batch": {"prompts": ["Once upon a time"]},
}


@pytest.fixture(scope="module")
def recommended() -> Any:
    """A server whose model recommends what leaves only one token to choose, and whose answers have 6 tokens."""
    with running_server(model=recommending(top_k=1), defaults=RequestDefaults(max_tokens=6)) as running:
        yield running


def text_of(server: RunningServer, path: str, **fields: Any) -> tuple[str, int]:
    with server.client as client:
        answer = client.post(path, json=ROUTES[path] | fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    first = (body.get("choices") or body.get("output") or body.get("results") or [body])[0]
    text = first.get("text") or first.get("message", {}).get("content") or first["content"][0]["text"]
    return text, body["usage"].get("output_tokens") or body["usage"]["completion_tokens"]


@pytest.mark.server
@pytest.mark.parametrize("path", ROUTES)
def test_on_every_surface_the_defaults_hold_for_what_a_request_does_not_say(
    recommended: RunningServer, path: str
) -> None:
    greedy, length = text_of(recommended, path, temperature=0)
    assert length == 6
    assert {text_of(recommended, path, seed=seed)[0] for seed in range(4)} == {greedy}
    free = {text_of(recommended, path, seed=seed, top_k=0, temperature=2)[0] for seed in range(4)}
    assert len(free) == 4


@pytest.mark.server
@pytest.mark.parametrize("path", ROUTES)
def test_on_every_surface_a_requests_own_length_wins(recommended: RunningServer, path: str) -> None:
    field = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    assert text_of(recommended, path, **{field: 9})[1] == 9


@pytest.mark.server
def test_the_defaults_in_force_are_shown() -> None:
    chosen = RequestDefaults(top_p=0.4, chat_template_args={"enable_thinking": False})
    with running_server(model=recommending(temperature=0.3), defaults=chosen) as running, running.client as client:
        stats = client.get("/v1/stats").json()
        response = client.post("/v1/responses", json=ROUTES["/v1/responses"] | {"max_output_tokens": 1}).json()
    assert stats["sampling_defaults"] == {
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": None,
    }
    assert stats["chat_template_args"] == {"enable_thinking": False}
    assert (response["temperature"], response["top_p"]) == (0.3, 0.4)


def test_programs_without_parameters_get_what_the_model_recommends() -> None:
    with LLM(recommending(top_k=1)) as llm:
        greedy = llm.generate("Once upon a time", SamplingParams(temperature=0))[0].text
        assert {result.text for result in llm.generate(["Once upon a time"] * 4, use_tqdm=False)} == {greedy}
        free = llm.generate(["Once upon a time"] * 4, SamplingParams(temperature=2), use_tqdm=False)
        assert len({result.text for result in free}) == 4


# The chat template

SHOWS = "{{ messages[-1].content }} {{ style }} {{ enable_thinking }}"


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a template from a file, which shows its variables, and with defaults for these."""
    file = tmp_path_factory.mktemp("template") / "own.jinja"
    file.write_text("{% if enable_thinking is defined %}<think>{% endif %}" + SHOWS)
    model = load("demo", chat_template=file)
    args = {"style": "server", "enable_thinking": False}
    with running_server(model=model, defaults=RequestDefaults(chat_template_args=args)) as running:
        yield running


def prompt_tokens(server: RunningServer, **fields: Any) -> int:
    with server.client as client:
        body = {"model": "parallm-demo", "input": "Hi"} | fields
        counted = client.post("/v1/responses/input_tokens", json=body)
        assert counted.status_code == 200, counted.text
        return int(counted.json()["input_tokens"])


@pytest.mark.server
def test_template_variables_of_the_server_give_way_to_those_of_a_request(styled: RunningServer) -> None:
    def length(text: str) -> int:
        with styled.client as client:
            return int(client.post("/tokenize", json={"prompt": text}).json()["count"])

    assert prompt_tokens(styled) == length("<think>Hi server False")
    own = {"style": "the request's own", "more": 1}
    assert prompt_tokens(styled, chat_template_kwargs=own) == length("<think>Hi the request's own False")


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "add_generation_prompt"])
def test_variables_that_the_server_sets_itself_cannot_be_given(name: str) -> None:
    with pytest.raises(ModelLoadError, match=f"--chat-template-args: {name} cannot be set"):
        Defaults.of(demo_target(), RequestDefaults(chat_template_args={name: "x"}))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_template_from_a_file_takes_the_place_of_the_models_own(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    if kind == "file":
        gguf_files.write("llama", model)
    else:
        model = families.write("llama", tmp_path / "tiny")
    template = tmp_path / "own.jinja"
    template.write_text("OWN {{ messages[0].content }}")
    tokenizer = load(model, chat_template=template).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "OWN Hi"


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_beside_a_gguf_file_counts_if_the_folder_was_named(name: str, tmp_path: Path) -> None:
    gguf_files.write("llama", tmp_path / "tiny.gguf")
    template = "BESIDE {{ messages[0].content }}"
    (tmp_path / name).write_text(template if name.endswith("jinja") else json.dumps({"chat_template": template}))
    tokenizer = load(tmp_path).tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "BESIDE Hi"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--chat-template", "/no/such/file"], 1, "the chat template /no/such/file cannot be read"),
        (["--chat-template", "BROKEN"], 1, "is no Jinja: line 1"),
        (["--chat-template-args", "{"], 2, "--chat-template-args: this is no JSON"),
        (["--chat-template-args", "[1]"], 2, "--chat-template-args: must be a JSON object"),
        (["--chat-template-args", '{"tools": []}'], 1, "--chat-template-args: tools cannot be set"),
        (["--generation-config", "/no/such/folder"], 1, "--generation-config: /no/such/folder has no generation_c"),
        (["--temperature", "3"], 2, "--temperature: must be a number from 0 to 2"),
        (["--max-tokens", "0"], 2, "--max-tokens: "),
    ],
)
def test_defaults_that_cannot_be_are_refused_before_anything_starts(
    arguments: list[str], status: int, said: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    given = [str(broken) if argument == "BROKEN" else argument for argument in arguments]
    answer = CliRunner().invoke(cli.app, ["serve", "--port", "0", "--log-level", "error", *given])
    assert answer.exit_code == status
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1, answer.stderr
