"""Which GGUF files are found and how they are named, and that none that is damaged or hostile does harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import gguf_files

from parallm_openai.doctor import describe_model
from parallm_openai.llm import LLM, SamplingParams
from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.reading import read
from parallm_openai.models.loading import LoadedModel, ModelLoadError, load

Change = Callable[[gguf.GGUFWriter], None]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-model.Q8_0.gguf"
    gguf_files.write("llama", path, Kind.Q8_0)
    return path


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    """A tiny Llama of its own for each test."""
    return Path(shutil.copy(written, tmp_path))


def refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Which file


def test_a_file_is_a_model_by_its_name_without_the_suffix(file: Path) -> None:
    model = load(file)
    assert (model.name, model.path) == ("tiny-model.Q8_0", file)
    assert model.context_length == 512
    assert model.eos_token_ids == {2}
    assert load(file, name="another").name == "another"


@pytest.mark.slow
def test_the_doctor_describes_a_file_as_any_model(file: Path) -> None:
    facts = dict(describe_model(load(file)))
    assert facts["model"] == f"tiny-model.Q8_0 ({file})"
    assert facts["family"] == "llama"
    assert facts["speculation"] == "yes"


@pytest.mark.slow
def test_files_generate_as_targets_and_as_drafts(file: Path) -> None:
    params = SamplingParams(max_tokens=8, temperature=0)
    with LLM(file) as plain, LLM(file, draft_model=file) as drafted:
        outputs = [llm.generate(["Hello", "GGUF"], params, use_tqdm=False) for llm in (plain, drafted)]
    first, second = ([output.token_ids for output in each] for each in outputs)
    assert first == second
    assert all(first)


def test_a_file_needs_no_suffix(file: Path) -> None:
    # Ollama names files by their hashes.
    for name in ("sha256-0123456789abcdef", "llama-3.2"):
        file = file.rename(file.with_name(name))
        assert load(file).name == name


def test_a_folder_with_one_file_is_that_model(file: Path) -> None:
    (file.parent / "mmproj-tiny-model-f16.gguf").write_bytes(b"GGUF")
    (file.parent / "README.md").write_text("Tiny.")
    model = load(file.parent)
    assert (model.name, model.path) == ("tiny-model.Q8_0", file)


def test_a_folder_with_several_files_names_them(file: Path) -> None:
    shutil.copy(file, file.with_name("tiny-model.Q4_0.gguf"))
    said = refusal(file.parent)
    assert "several GGUF files" in said
    assert "tiny-model.Q4_0.gguf, tiny-model.Q8_0.gguf" in said


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no model folder or file nosuch.gguf" in refusal(Path("nosuch.gguf"))


def test_safetensors_win_over_a_file_beside_them(file: Path) -> None:
    (file.parent / "model.safetensors").write_bytes(b"")
    assert "config.json" in refusal(file.parent)


# What is no model


def key(name: str, value: str | int | float | bool | list[int]) -> Change:
    """Write a key, in place of what is there."""

    def change(writer: gguf.GGUFWriter) -> None:
        kind = gguf.GGUFValueType.get_type(value)
        writer.kv_data[0][name] = gguf.gguf_writer.GGUFValue(
            value=value, type=kind, sub_type=gguf.GGUFValueType.INT32 if isinstance(value, list) else None
        )

    return change


def without(name: str) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        assert name in writer.kv_data[0] or name in writer.tensors[0]
        writer.kv_data[0].pop(name, None)
        writer.tensors[0].pop(name, None)

    return change


def tensor(name: str, *shape: int) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.tensors[0].pop(name, None)
        writer.add_tensor(name, np.zeros(shape, np.float32))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (key("general.architecture", "mamba"), "its architecture is 'mamba'; supported as GGUF are llama, mistral,"),
        (without("general.architecture"), "its architecture is None"),
        (key("general.architecture", "clip"), "a projector for images (mmproj)"),
        (key("general.type", "mmproj"), "a projector for images (mmproj)"),
        (key("general.type", "adapter"), "its general.type is 'adapter'"),
        (key("split.count", 3), "one of 3 pieces"),
        (key("llama.expert_count", 8), "llama.expert_count is 8"),
        (key("llama.attention.causal", False), "not causal"),
        (key("llama.rope.scaling.type", "su"), "'su' is not supported"),
        (key("llama.rope.dimension_count", 4), "rotates 4 dimensions of a head"),
        (key("llama.attention.value_length", 4), "differ in length"),
        (key("llama.block_count", 3), "block_count is 3, but it has tensors of 2 layers"),
        (key("llama.block_count", 2**31 - 1), "but it has tensors of 2 layers"),
        (key("llama.block_count", "two"), "block_count is 'two', and must be a whole number above 0"),
        (key("llama.context_length", 0), "context_length is 0"),
        (without("llama.embedding_length"), "embedding_length is missing"),
        (key("llama.attention.head_count_kv", [2, 4]), "head_count_kv differs between layers"),
        (key("llama.attention.layer_norm_rms_epsilon", float("nan")), "layer_norm_rms_epsilon is nan"),
        (key("llama.embedding_length", 64), "has the shape"),
        (key("llama.feed_forward_length", 2**31 - 1), "has the shape"),
        (without("blk.1.ffn_up.weight"), "it lacks model.layers.1.mlp.up_proj.weight"),
        (without("token_embd.weight"), "no tensor token_embd.weight"),
        (tensor("blk.0.attn_q_norm.weight", 8), "a tensor 'blk.0.attn_q_norm.weight'"),
        (tensor("blk.0.ffn_gate_inp.weight", 8, 256), "a tensor 'blk.0.ffn_gate_inp.weight'"),
        (tensor("rope_freqs.weight", 3), "rope_freqs.weight must be 32 numbers in F32"),
        (tensor("rope_freqs.weight", 32), "numbers that are not above 0"),
        (without("tokenizer.ggml.model"), "its tokenizer is of the kind None"),
        (without("tokenizer.ggml.tokens"), "no tokenizer.ggml.tokens"),
        (without("tokenizer.ggml.scores"), "no tokenizer.ggml.scores"),
    ],
)
def test_what_is_no_whole_model_is_refused_before_a_weight_is_read(
    change: Change, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_files.write("llama", tmp_path / "tiny.gguf", Kind.Q8_0, change)
    monkeypatch.setattr(
        "parallm_openai.models.gguf.checkpoint.Checkpoint.model", lambda *_, **__: pytest.fail("read the weights")
    )
    assert said in refusal(tmp_path / "tiny.gguf")


def test_equal_values_for_all_layers_are_one(tmp_path: Path) -> None:
    original = gguf_files.write("llama", tmp_path / "a.gguf", change=key("llama.attention.head_count_kv", [2, 2]))
    assert load(tmp_path / "a.gguf").model.args.num_key_value_heads == original.args.num_key_value_heads == 2


def test_windows_may_be_stated_layer_by_layer(tmp_path: Path) -> None:
    pattern = "gemma3.attention.sliding_window_pattern"
    original = gguf_files.write("gemma3", tmp_path / "a.gguf", change=key(pattern, [1, 0, 1, 0]))
    assert load(tmp_path / "a.gguf").model.args.sliding_window_pattern == original.args.sliding_window_pattern == 2
    gguf_files.write("gemma3", tmp_path / "b.gguf", change=key(pattern, [1, 0, 0, 1]))
    assert "is not periodic" in refusal(tmp_path / "b.gguf")


def test_the_vision_part_of_a_model_is_left_out(tmp_path: Path) -> None:
    gguf_files.write("gemma3", tmp_path / "a.gguf", change=tensor("v.blk.0.attn_q.weight", 8, 8))
    assert isinstance(load(tmp_path / "a.gguf"), LoadedModel)


# Damaged and hostile files


def test_a_file_cut_off_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    begin = min(tensor.start for tensor in read(file).tensors.values())
    for size in [4, 5, 8, 16, 24, *range(32, begin, 97), begin, len(whole) - 64]:
        file.write_bytes(whole[:size])
        assert "cut off" in refusal(file), size


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    assert "a file, but not in GGUF" in refusal(pipe)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*parts: bytes, version: int = 3, tensors: int = 0, fields: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


HUGE = struct.pack("<Q", 2**62)
STRING, ARRAY, UINT8, UINT32 = (struct.pack("<I", code) for code in (8, 9, 0, 4))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(version=1), "its version is 1; versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(fields=2**63), "cut off or damaged"),
        (header(tensors=2**63), "cut off or damaged"),
        (header(HUGE, fields=1), "cut off or damaged"),
        (header(text("a"), STRING, HUGE, fields=1), "cut off or damaged"),
        (header(text("a"), ARRAY, UINT8, HUGE, fields=1), "cut off or damaged"),
        (header(text("a"), ARRAY, STRING, HUGE, bytes(64), fields=1), "cut off or damaged"),
        (header(text("a"), ARRAY, ARRAY, HUGE, fields=1), "an array of arrays"),
        (header(text("a"), struct.pack("<I", 99), fields=1), "the unknown type 99"),
        (header(text("a"), UINT32, bytes(4), text("a"), UINT32, bytes(4), fields=2), "'a' twice"),
        (header(text("general.alignment"), UINT32, struct.pack("<I", 12), fields=1), "must be a power of two"),
        (header(text("t"), struct.pack("<I", 2**31), tensors=1), "has 2147483648 dimensions"),
        (header(text("t"), struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0), tensors=1), "the tensor 't' ends at byte"),
        (header(text("t"), struct.pack("<IQIQ", 1, 8, 0, 2**63), tensors=1), "the tensor 't' ends at byte"),
        (header(text("t"), struct.pack("<IQIQ", 1, 8, 0, 5), tensors=1), "begins at 5, no multiple of 32"),
        (header(text("t"), struct.pack("<IQIQ", 1, 0, 0, 0), tensors=1), "the impossible shape [0]"),
        (header(text("t"), struct.pack("<IQIQ", 1, 8, 2, 0), tensors=1), "of type Q4_0 has the impossible shape [8]"),
        (header(text("t"), struct.pack("<IQIQ", 1, 8, 999, 0), tensors=1), "of type 999, which is not supported"),
        (header(*[text("t"), struct.pack("<IQIQ", 1, 8, 0, 0)] * 2, bytes(64), tensors=2), "the tensor 't' twice"),
        (
            header(
                *[text(name) + struct.pack("<IQIQ", 1, 16, 0, at) for name, at in (("t", 32), ("u", 0))],
                bytes(200),
                tensors=2,
            ),
            "'u' and 't' overlap",
        ),
    ],
)
def test_no_claim_of_a_file_is_believed(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError) as refused:
            read(file)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said in str(refused.value)
    assert most < 1 << 20
    assert said in refusal(file)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_means_another_model(data: st.DataObject, file: Path, written: Path) -> None:
    content = bytearray(written.read_bytes())
    begin = min(tensor.start for tensor in read(written).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, begin - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, content[at] ^ 1, content[at] ^ 0x10]))
    file.write_bytes(content)
    with contextlib.suppress(ModelLoadError):
        assert isinstance(load(file), LoadedModel)


def test_an_unknown_quantisation_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(blocks: np.ndarray, kind: Kind) -> np.ndarray:
        if kind == Kind.Q8_0:
            raise NotImplementedError
        return gguf.quants.dequantize(blocks, kind)

    monkeypatch.setattr("parallm_openai.models.gguf.quantisation.dequantize", newer)
    assert "its quantisation Q8_0 is not supported" in refusal(file)
