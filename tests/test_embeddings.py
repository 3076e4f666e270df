"""Embeddings: from a checkpoint of sentence-transformers to the vectors that clients get."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import ollama
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from support import embedding_models, families
from support.errors import assert_error
from support.servers import RunningServer, running_server

from parallm_openai.engine.embedder import Embedder
from parallm_openai.models.embedding import Pooling
from parallm_openai.models.loading import LoadedModel, ModelLoadError, load
from parallm_openai.settings import ServerSettings

LENGTH = 64
TEXTS = ["Hello there", "a", "The quick brown fox jumps over the lazy dog", "Hello there!"]
# What rounding leaves open between a row alone and one among others.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(embedding_models.write(tmp_path_factory.mktemp("models") / "tiny-embedding", length=LENGTH))


@pytest.fixture(scope="module")
def served(model: LoadedModel) -> Iterator[RunningServer]:
    settings = ServerSettings(graceful_timeout=2, served_model_names=("text-embedding-3-small",))
    with running_server(settings=settings, model=model) as running:
        yield running


def post(server: RunningServer, path: str = "/v1/embeddings", **body: Any) -> Any:
    with server.client as client:
        return client.post(path, json=body)


def vectors(server: RunningServer, inputs: Any, **more: Any) -> np.ndarray:
    answer = post(server, input=inputs, **more)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return np.array([each["embedding"] for each in data])


def reference(model: LoadedModel, tokens: Sequence[int], pooling: Pooling = Pooling.LAST) -> np.ndarray:
    """By the book: one row without padding, in mlx-lm's own decoder, pooled by numpy."""
    states = np.array(model.model.model(mx.array([tokens]))[0].astype(mx.float32))
    pooled = {Pooling.LAST: states[-1], Pooling.FIRST: states[0], Pooling.MEAN: states.mean(axis=0)}[pooling]
    return np.asarray(pooled / np.linalg.norm(pooled))


def tokens_of(model: LoadedModel, text: str) -> list[int]:
    tokens = list(model.tokenizer.encode(text))
    assert tokens[-1] == embedding_models.END
    return tokens


def normal(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# The checkpoint


def test_a_checkpoint_without_a_projection_and_prefixes_loads(model: LoadedModel) -> None:
    assert model.embedding is not None
    assert model.embedding.pooling is Pooling.LAST
    assert model.context_length == LENGTH
    assert model.vocab_size == families.VOCAB


@pytest.mark.parametrize(
    ("written", "pooling"), [("lasttoken", Pooling.LAST), ("cls_token", Pooling.FIRST), ("mean_tokens", Pooling.MEAN)]
)
def test_each_pooling_is_that_of_the_reference(tmp_path: Path, written: str, pooling: Pooling) -> None:
    loaded = load(embedding_models.write(tmp_path / "model", written))
    assert loaded.embedding is not None
    assert loaded.embedding.pooling is pooling
    rows = [tokens_of(loaded, text) for text in TEXTS]
    # A chunk that is shorter than the longest row has it read in several forwards.
    for chunk in (512, 8):
        found = normal(Embedder(loaded.model, pooling, chunk).embed(rows))
        expected = np.stack([reference(loaded, row, pooling) for row in rows])
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_other_decoders_embed_too(tmp_path: Path, family: str) -> None:
    folder = embedding_models.write(tmp_path / "model", family="qwen2" if family == "qwen2" else "llama")
    if family == "mistral":
        embedding_models.change_config(folder, model_type="mistral", architectures=["MistralModel"])
    loaded = load(folder)
    rows = [tokens_of(loaded, text) for text in TEXTS]
    found = normal(Embedder(loaded.model, Pooling.LAST).embed(rows))
    np.testing.assert_allclose(found, np.stack([reference(loaded, row) for row in rows]), atol=TOLERANCE)


def test_the_newer_way_to_name_a_pooling_is_read(tmp_path: Path) -> None:
    folder = embedding_models.write(tmp_path / "model")
    embedding_models.put(folder / "1_Pooling" / "config.json", {"embedding_dimension": 8, "pooling_mode": "mean"})
    loaded = load(folder)
    assert loaded.embedding is not None
    assert loaded.embedding.pooling is Pooling.MEAN


DENSE = [
    {"path": "", "type": "x.Transformer"},
    {"path": "1_Pooling", "type": "x.Pooling"},
    {"path": "2", "type": "x.Dense"},
]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", DENSE, "not supported: Dense"),
        ("modules.json", {}, "not a list"),
        ("modules.json", DENSE[:1], "does not say how to pool"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True},
            "cls_token, pooling_",
        ),
        ("1_Pooling/config.json", {}, "none"),
        ("1_Pooling/config.json", [], "not an object"),
    ],
)
def test_what_would_give_other_embeddings_is_refused(tmp_path: Path, file: str, content: Any, said: str) -> None:
    folder = embedding_models.write(tmp_path / "model")
    embedding_models.put(folder / file, content)
    with pytest.raises(ModelLoadError, match=said):
        load(folder)


@pytest.mark.parametrize("change", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_attention_in_both_directions_is_refused(tmp_path: Path, change: dict[str, bool]) -> None:
    folder = embedding_models.write(tmp_path / "model")
    embedding_models.change_config(folder, **change)
    with pytest.raises(ModelLoadError, match="both directions"):
        load(folder)


def test_a_family_without_a_decoder_is_refused_by_name(tmp_path: Path) -> None:
    folder = embedding_models.write(tmp_path / "model")
    embedding_models.change_config(folder, model_type="bert")
    with pytest.raises(ModelLoadError, match="family bert"):
        load(folder)


# What clients get


def test_inputs_of_a_list_are_what_they_are_alone(served: RunningServer, model: LoadedModel) -> None:
    together = vectors(served, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(vector, vectors(served, text)[0], atol=TOLERANCE)
        np.testing.assert_allclose(vector, reference(model, tokens_of(model, text)), atol=TOLERANCE)


def test_token_ids_are_taken_as_they_are(served: RunningServer, model: LoadedModel) -> None:
    rows = [tokens_of(model, text) for text in TEXTS]
    np.testing.assert_allclose(vectors(served, rows), vectors(served, TEXTS), atol=TOLERANCE)
    np.testing.assert_allclose(vectors(served, rows[0]), vectors(served, TEXTS[0]), atol=TOLERANCE)


def test_usage_counts_what_the_model_reads(served: RunningServer, model: LoadedModel) -> None:
    answer = post(served, input=TEXTS, model="text-embedding-3-small").json()
    tokens = sum(len(tokens_of(model, text)) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (answer["object"], answer["model"]) == ("list", "text-embedding-3-small")


def test_base64_holds_the_same_numbers(served: RunningServer) -> None:
    (item,) = post(served, input=TEXTS[0], encoding_format="base64").json()["data"]
    decoded = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    np.testing.assert_allclose(decoded, vectors(served, TEXTS[0])[0], atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_made_length_1(served: RunningServer) -> None:
    whole = vectors(served, TEXTS)
    np.testing.assert_allclose(vectors(served, TEXTS, dimensions=5), normal(whole[:, :5]), atol=TOLERANCE)


def test_the_log_counts_inputs_and_tokens(served: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="parallm_openai.api.request_log")
    tokens = post(served, input=TEXTS).json()["usage"]["prompt_tokens"]
    until = time.monotonic() + 30
    while not caplog.records:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert f"inputs={len(TEXTS)} prompt={tokens}" in caplog.text
    assert TEXTS[0] not in caplog.text


def test_openais_own_client_reads_them(served: RunningServer) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        # It asks for base64 by itself.
        found = client.embeddings.create(model="text-embedding-3-small", input=TEXTS)
        np.testing.assert_allclose([each.embedding for each in found.data], vectors(served, TEXTS), atol=TOLERANCE)
        with pytest.raises(BadRequestError) as refused:
            client.embeddings.create(model="text-embedding-3-small", input="")
        assert refused.value.param == "input"
        with pytest.raises(NotFoundError, match="embedding model"):
            client.completions.create(model="text-embedding-3-small", prompt="Hello")


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["Hello", ""]}, "input[1]", "invalid_value"),
        ({"input": [[5], []]}, "input[1]", "invalid_value"),
        ({}, "input", "missing_required_parameter"),
        ({"input": "x" * LENGTH}, "input", "context_length_exceeded"),
        ({"input": ["Hello", "x" * 10**6]}, "input[1]", "context_length_exceeded"),
        ({"input": [5] * (LENGTH + 1)}, "input", "context_length_exceeded"),
        ({"input": [families.VOCAB]}, "input", "invalid_value"),
        ({"input": [-1]}, "input", "invalid_value"),
        ({"input": "Hello", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "Hello", "dimensions": 10**9}, "dimensions", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
    ],
)
def test_what_cannot_be_embedded_is_named(served: RunningServer, body: dict[str, Any], param: str, code: str) -> None:
    answer = post(served, **body)
    assert_error(answer, 400, code)
    assert answer.json()["error"]["param"] == param


def test_an_input_as_long_as_the_context_is_embedded(served: RunningServer) -> None:
    assert len(vectors(served, [[5] * LENGTH, [5]])) == 2


def test_many_requests_at_a_time_get_each_their_own(served: RunningServer) -> None:
    dice = random.Random(3)
    texts = ["".join(dice.choices("abcdefgh ", k=dice.randrange(1, LENGTH - 1))) for _ in range(120)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda start: vectors(served, texts[start : start + 10]), range(0, 120, 10)))
    alone = np.concatenate([vectors(served, text) for text in texts])
    np.testing.assert_allclose(np.concatenate(found), alone, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/responses", {"input": "Hello"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}),
        ("/v1/generate", {"prompt": "Hello"}),
        ("/v1/generate_batch", {"prompts": ["Hello"]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/api/generate", {"prompt": "Hello"}),
    ],
)
def test_an_embedding_model_writes_nothing(served: RunningServer, path: str, body: dict[str, Any]) -> None:
    answer = post(served, path, **body)
    assert answer.status_code == 404
    assert "is an embedding model" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "Hello"}),
        ("/embeddings", {"input": "Hello"}),
        ("/api/embed", {"input": "Hello"}),
        ("/api/embed", {"input": ""}),
        ("/api/embeddings", {"prompt": "Hello"}),
    ],
)
def test_a_generating_model_says_that_it_makes_none(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    answer = post(server, path, **body)
    assert answer.status_code == 404
    assert f"'{server.model.name}' is a generating model" in answer.text


# Ollama's routes


def test_ollamas_route_gives_the_same(served: RunningServer) -> None:
    answer = post(served, "/api/embed", model="tiny-embedding:latest", input=TEXTS).json()
    np.testing.assert_allclose(answer["embeddings"], vectors(served, TEXTS), atol=TOLERANCE)
    assert answer["model"] == "tiny-embedding:latest"
    assert answer["prompt_eval_count"] == post(served, input=TEXTS).json()["usage"]["prompt_tokens"]
    assert answer["total_duration"] > 0
    older = post(served, "/api/embeddings", prompt=TEXTS[0]).json()
    np.testing.assert_allclose(older["embedding"], answer["embeddings"][0], atol=TOLERANCE)


def test_ollamas_route_cuts_what_is_too_long_unless_told_not_to(served: RunningServer) -> None:
    cut = post(served, "/api/embed", input="ab" * 10**5, dimensions=4).json()
    assert cut["prompt_eval_count"] == LENGTH
    kept = vectors(served, ("ab" * LENGTH)[: LENGTH - 1], dimensions=4)
    np.testing.assert_allclose(cut["embeddings"], kept, atol=TOLERANCE)
    refused = post(served, "/api/embed", input="ab" * LENGTH, truncate=False)
    assert refused.status_code == 400
    assert "maximum context length is 64 tokens" in refused.json()["error"]


def test_ollamas_own_client_reads_them(served: RunningServer) -> None:
    client = ollama.Client(served.url)
    found = client.embed("tiny-embedding", TEXTS)
    np.testing.assert_allclose(np.array(found.embeddings), vectors(served, TEXTS), atol=TOLERANCE)


def test_ollamas_clients_learn_what_the_model_can_do(served: RunningServer) -> None:
    assert post(served, "/api/show", model="tiny-embedding").json()["capabilities"] == ["embedding"]
    assert post(served, "/api/embed", input="").json()["embeddings"] == []
    assert post(served, "/api/embeddings", prompt="").json() == {"embedding": []}
