"""Tokenizers from GGUF metadata, compared with those from which the metadata were written."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.reading import read
from parallm_openai.models.gguf.splits import SPLITS
from parallm_openai.models.gguf.tokenizer import read_tokenizer
from parallm_openai.text.tokenizer import Tokenizer as ServedTokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, and we're late!",
    "def answer(x):\n    return x['key'] + 42  # two spaces\n\n\tTabs too.",
    "Ça va? Die Straße führt nach Süden. Привет, мир! 你好，世界。 こんにちは 안녕하세요",
    "   leading and trailing   \r\n\r\n http://example.com/a/b?c=d&e=1.5e-3 HTTPServer iPhone",
    "emoji 🙂👩‍👩‍👧 and ½ Ⅷ ٣٤ e\u0301",
]
TEXTS = [*CORPUS, "", " ", "\n", "a", "  a", "1000000", "don't DON'T", "x" * 50, "zażółć gęślą jaźń ✓ \x00\x7f"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFINED = "<think>"
Change = Callable[[gguf.GGUFWriter], None]


def load(path: Path, *changes: Change, embeddings: int = 10**6) -> Any:
    """The tokenizer of a file that has these metadata and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for change in changes:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_tokenizer(read(path), embeddings)


# Byte-level vocabularies


def trained(*before: pre_tokenizers.PreTokenizer, use_regex: bool = False) -> Tokenizer:
    """A tokenizer trained on the corpus, which splits texts so."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([DEFINED])
    return tokenizer


def original(way: str) -> Tokenizer:
    """Made of the tokenizers library's parts, as the models' own tokenizer.json are."""
    if way == "gpt-2":
        return trained(use_regex=True)
    if way == "smollm":
        return trained(pre_tokenizers.Digits(individual_digits=True), use_regex=True)
    digits = {"qwen2": r"\p{N}", "llama-bpe": r"\p{N}{1,3}"}[way]
    expression = PRETOKENIZE_REGEX.replace(r"|\p{N}|", f"|{digits}|")
    tokenizer = trained(pre_tokenizers.Split(Regex(expression), "isolated"))
    if way == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def metadata_of(tokenizer: Tokenizer, way: str | None) -> Change:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = {**dict.fromkeys(CONTROL, TokenType.CONTROL), DEFINED: TokenType.USER_DEFINED}

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if way is not None:
            writer.add_tokenizer_pre(way)
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    return write


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "qwen2", "llama-bpe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A tokenizer, and the one that its metadata become."""
    before = original(request.param)
    path = tmp_path_factory.mktemp("gguf") / "vocabulary.gguf"
    return before, load(path, metadata_of(before, request.param), lambda writer: writer.add_add_bos_token(False))


def test_a_byte_level_vocabulary_encodes_as_before(pair: tuple[Tokenizer, Any]) -> None:
    before, loaded = pair
    texts = [*TEXTS, f"{CONTROL[1]}user\nHi{DEFINED}{CONTROL[2]}"]
    assert [loaded.encode(text) for text in texts] == [before.encode(text).ids for text in texts]
    assert sum(len(loaded.encode(text)) for text in CORPUS) < sum(len(text) for text in CORPUS) * 2 / 3


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_any_text_is_encoded_as_before_and_decoded_to_itself(pair: tuple[Tokenizer, Any], text: str) -> None:
    before, loaded = pair
    tokens = loaded.encode(text)
    assert tokens == before.encode(text).ids
    expected = unicodedata.normalize("NFC", text) if before.normalizer else text
    assert ServedTokenizer(loaded, 10**6).decode(tokens) == expected


@pytest.mark.parametrize(
    ("way", "pieces"),
    [
        ("gpt-2", ["I", "'ll", " pay", " 12345", "€!!", "\n ", " Now"]),
        ("smollm", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "€!!", "\n ", " Now"]),
        ("llama-bpe", ["I", "'ll", " pay", " ", "123", "45", "€!!\n", " ", " Now"]),
        ("qwen2", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "€!!\n", " ", " Now"]),
        ("tekken", ["I", "'ll", " pay", " ", "1", "2", "3", "4", "5", "€!!\n", " ", " Now"]),
        ("gpt-4o", ["I'll", " pay", " ", "123", "45", "€!!\n", " ", " Now"]),
        ("deepseek-llm", ["I", "'", "ll", " pay", " ", "12345", "€", "!!", "\n", " ", " Now"]),
        ("deepseek-coder", ["I", "'", "ll", " pay", " ", "1", "2", "3", "4", "5", "€", "!!", "\n", " ", " Now"]),
        ("deepseek-v3", ["I", "'ll", " pay", " ", "123", "45", "€!!\n", " ", " Now"]),
        ("default", ["I", "'", "ll", " pay", " ", "123", "45", "€", "!!", "\n ", " Now"]),
    ],
)
def test_each_way_splits_texts_as_its_models_do(way: str, pieces: list[str]) -> None:
    before = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(expression), "isolated") for expression in SPLITS[way].expressions]
    )
    assert [piece for piece, _ in before.pre_tokenize_str("".join(pieces))] == pieces


@pytest.mark.parametrize("way", SPLITS)
def test_no_way_loses_anything_of_a_text(way: str) -> None:
    for expression in SPLITS[way].expressions:
        part = pre_tokenizers.Split(Regex(expression), "isolated")
        assert ["".join(piece for piece, _ in part.pre_tokenize_str(text)) for text in CORPUS] == CORPUS


def test_capitals_begin_words_for_tekken() -> None:
    part = pre_tokenizers.Split(Regex(SPLITS["tekken"].expressions[0]), "isolated")
    assert [piece for piece, _ in part.pre_tokenize_str("myHTTPServer iPhone")] == ["my", "HTTPServer", " i", "Phone"]


def test_a_word_that_is_a_token_needs_no_merges_in_llama_3(tmp_path: Path) -> None:
    before = original("llama-bpe")
    before.add_tokens(["zzzz"])
    ways = {
        way: load(tmp_path / way, metadata_of(before, way), lambda writer: writer.add_add_bos_token(False))
        for way in ("llama-bpe", "qwen2")
    }
    assert ways["llama-bpe"].encode("zzzz") == [before.token_to_id("zzzz")]
    assert len(ways["qwen2"].encode("zzzz")) == 4


# Vocabularies of SentencePiece


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pieces(request: pytest.FixtureRequest) -> tuple[sentencepiece.SentencePieceProcessor, bool]:
    """A model as Llama 2 (with a space before texts) or Gemma has it."""
    trained_model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS * 3 for line in text.split("\n")),
        model_writer=trained_model,
        model_type="bpe",
        vocab_size=460,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=request.param,
        user_defined_symbols=[DEFINED],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=trained_model.getvalue()), request.param


def metadata_of_pieces(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> Change:
    """As llama.cpp's converter writes them."""

    def kind(index: int) -> TokenType:
        if model.is_unknown(index):
            return TokenType.UNKNOWN
        if model.is_control(index):
            return TokenType.CONTROL
        if model.id_to_piece(index) == DEFINED:
            return TokenType.USER_DEFINED
        return TokenType.BYTE if model.is_byte(index) else TokenType.NORMAL

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([model.id_to_piece(index) for index in range(len(model))])
        writer.add_token_scores([model.get_score(index) for index in range(len(model))])
        writer.add_token_types([kind(index) for index in range(len(model))])
        writer.add_add_space_prefix(prefix)

    return write


def test_a_sentencepiece_vocabulary_encodes_as_before(
    pieces: tuple[sentencepiece.SentencePieceProcessor, bool], tmp_path: Path
) -> None:
    model, prefix = pieces
    loaded = load(tmp_path / "pieces.gguf", metadata_of_pieces(model, prefix))
    bos = model.bos_id()
    assert [loaded.encode(text) for text in TEXTS] == [[bos, *model.encode(text)] for text in TEXTS]
    served = ServedTokenizer(loaded, 10**6)
    assert [served.decode(loaded.encode(text)).removeprefix(" " if prefix else "") for text in TEXTS] == TEXTS
    assert loaded.encode(f"so {DEFINED}", add_special_tokens=False)[-1] == model.piece_to_id(DEFINED)


def test_files_of_sentencepiece_need_not_state_their_special_tokens(
    pieces: tuple[sentencepiece.SentencePieceProcessor, bool], tmp_path: Path
) -> None:
    loaded = load(tmp_path / "pieces.gguf", metadata_of_pieces(*pieces))
    assert (loaded.unk_token, loaded.bos_token, loaded.eos_token) == ("<unk>", "<s>", "</s>")
    assert loaded.eos_token_ids == {2}


# Special tokens


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return original("gpt-2")


def test_control_tokens_are_found_whole_and_left_out_of_decoded_texts(small: Tokenizer, tmp_path: Path) -> None:
    loaded = load(tmp_path / "a.gguf", metadata_of(small, "gpt-2"))
    tokens = loaded.encode(f"{CONTROL[1]}a{DEFINED}b{CONTROL[2]}")
    assert tokens == [1, *small.encode("a").ids, small.token_to_id(DEFINED), *small.encode("b").ids, 2]
    assert ServedTokenizer(loaded, 10**6).decode(tokens) == f"a{DEFINED}b"


def test_every_token_that_ends_an_answer_is_known(small: Tokenizer, tmp_path: Path) -> None:
    end = small.get_vocab()["a"]
    loaded = load(tmp_path / "a.gguf", metadata_of(small, "gpt-2"), lambda writer: writer.add_eot_token_id(end))
    # The stated ones, and those that llama.cpp knows by their texts.
    assert loaded.eos_token_ids == {2, end, small.get_vocab()["<|endoftext|>"]}


@pytest.mark.parametrize(
    ("way", "stated", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("gpt-2", None, False), ("gpt-2", True, True)],
)
def test_texts_begin_with_bos_if_the_file_or_its_kind_says_so(
    way: str, stated: bool | None, begins: bool, small: Tokenizer, tmp_path: Path
) -> None:
    def state(writer: gguf.GGUFWriter) -> None:
        if stated is not None:
            writer.add_add_bos_token(stated)

    loaded = load(tmp_path / "a.gguf", metadata_of(small, way), state)
    assert (loaded.encode("a")[0] == 1) == begins
    assert loaded.encode("a", add_special_tokens=False)[0] != 1


@pytest.mark.parametrize(("name", "stripped"), [("Phi 3 Mini", False), ("Phi-3-mini", True)])
def test_phi_3_drops_spaces_after_special_tokens(
    name: str, stripped: bool, pieces: tuple[sentencepiece.SentencePieceProcessor, bool], tmp_path: Path
) -> None:
    loaded = load(tmp_path / "a.gguf", metadata_of_pieces(*pieces), lambda writer: writer.add_name(name))
    assert (loaded.encode("</s>\n a") == loaded.encode("</s>a")) == stripped


def test_chat_templates_come_with_the_file(small: Tokenizer, tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ bos_token }}{{ message['content'] }}{% endfor %}"
    one = load(tmp_path / "a.gguf", metadata_of(small, "gpt-2"), lambda writer: writer.add_chat_template(template))
    assert one.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == f"{CONTROL[1]}Hi"
    several: list[Any] = [{"name": "default", "template": template}, {"name": "tool_use", "template": "tools"}]
    both = load(tmp_path / "b.gguf", metadata_of(small, "gpt-2"), lambda writer: writer.add_chat_template(several))
    assert both.chat_template == {"default": template, "tool_use": "tools"}
    assert not load(tmp_path / "c.gguf", metadata_of(small, "gpt-2")).has_chat_template


# What is refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda writer: writer.add_tokenizer_model("bert"), "'bert'; 'gpt2' and 'llama' are supported"),
        (lambda writer: writer.add_tokenizer_pre("nosuch"), "tokenizer.ggml.pre is 'nosuch'"),
        (lambda writer: writer.add_eos_token_id(10**6), "eos_token_id is 1000000"),
        (lambda writer: writer.add_token_types([1, 2]), "token types for 2"),
        (lambda writer: writer.add_token_merges(["ab"]), "'ab', which is no pair"),
        (lambda writer: writer.add_token_merges(["nosuch token"]), "makes no tokenizer"),
        (lambda writer: writer.add_token_list([""]), "tokens, and token types"),
        (lambda writer: writer.add_uint32("tokenizer.chat_template", 7), "chat_template is no text"),
    ],
)
def test_metadata_that_make_no_tokenizer_are_refused(
    changed: Change, said: str, small: Tokenizer, tmp_path: Path
) -> None:
    def write(writer: gguf.GGUFWriter) -> None:
        other = gguf.GGUFWriter(tmp_path / "other", "llama")
        changed(other)
        writer.kv_data[0].update({key: value for key, value in other.kv_data[0].items() if "tokenizer" in key})

    with pytest.raises(GgufError, match=said):
        load(tmp_path / "a.gguf", metadata_of(small, "gpt-2"), write)


def test_a_vocabulary_larger_than_the_embedding_is_refused(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"its vocabulary has .* tokens, and its embedding 100"):
        load(tmp_path / "a.gguf", metadata_of(small, "gpt-2"), embeddings=100)


def test_a_file_that_names_no_way_to_split_texts_is_split_as_llama_cpp_does(
    small: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tmp_path / "a.gguf", metadata_of(small, None))
    named = load(tmp_path / "b.gguf", metadata_of(small, "default"))
    assert "does not say how" in caplog.text
    assert [loaded.encode(text) for text in TEXTS] == [named.encode(text) for text in TEXTS]
