"""The model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from parallm_openai.text.call_ids import CallIds, Message
from parallm_openai.text.chat_parser import ChatFormat
from parallm_openai.text.detokenizer import ByteDetokenizer, Detokenizer, LibraryDetokenizer
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.reasoning.splitter import Marks, answer_marks, thinking_marks
from parallm_openai.text.templates import ChatTemplate, TemplateError, Tools, template_text
from parallm_openai.text.token_bytes import Lexicon, TokenBytes
from parallm_openai.text.tools.families import FORMATS, detect

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

# The marks before the text above a gap, before the text below it, and before the text that fills it.
INFILL_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


class TokenizerError(ValueError):
    """The tokenizer cannot read this text."""


class Tokenizer:
    """Encodes, renders and names tokens. Thread-safe for reading, as the tokenizers library is.

    If the chat template has no form of tool calls that can be read, one is used that needs no template, unless it is
    not to be `generic_tools`.
    """

    def __init__(
        self, wrapper: TokenizerWrapper, vocab_size: int, tool_format: str = "auto", *, generic_tools: bool = True
    ) -> None:
        self.wrapper = wrapper
        self.vocab_size = vocab_size
        self._hf = wrapper._tokenizer
        self._tool_format = tool_format
        self._generic_tools = generic_tools
        try:
            self._bytes: TokenBytes | None = TokenBytes(self._hf)
        except ValueError:
            self._bytes = None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`. With `special`, the tokens that must begin a text are added unless it has them.

        Raises TokenizerError.
        """
        try:
            tokens = list(self._hf.encode(text, add_special_tokens=special))
        except BaseException as error:
            # A panic of native code is no Exception; some texts make its regular expressions panic.
            raise TokenizerError(f"it cannot be tokenised: {str(error)[:200]}") from error
        doubled = special and len(tokens) > 1 and tokens[0] == tokens[1] == self.bos_token
        return tokens[1:] if doubled else tokens

    def infill(self, prefix: str, suffix: str) -> list[int] | None:
        """A prompt that asks for the text between two others; None if the model has no tokens for that."""
        for marks in INFILL_MARKS:
            ids = [self.token_id(mark) for mark in marks]
            if None not in ids:
                before, after, middle = (token for token in ids if token is not None)
                inner = [self.encode(text, special=False) for text in (prefix, suffix)]
                return [before, *inner[0], after, *inner[1], middle]
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        detokenizer = self.detokenizer()
        return "".join(map(detokenizer.add, tokens)) + detokenizer.flush()

    def detokenizer(self, shown: Iterable[str] = ()) -> Detokenizer:
        """A detokenizer for one sequence. It leaves out special tokens except those `shown`."""
        if self._bytes is not None:
            return ByteDetokenizer(self._bytes, self._single_tokens(shown))
        return LibraryDetokenizer(self.wrapper.detokenizer)

    def token_id(self, text: str) -> int | None:
        """The id of the token that is exactly this text, special or not."""
        return self._vocabulary.get(text)

    def _single_tokens(self, marks: Iterable[str]) -> frozenset[int]:
        vocabulary = self._vocabulary
        return frozenset(vocabulary[mark] for mark in marks if mark in vocabulary)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self._hf.get_vocab())

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How this model writes thoughts and tool calls, by its chat template."""
        text = template_text(self._hf)
        harmony = "<|channel|>" in text and "<|message|>" in text
        if self._tool_format == "auto" and harmony:
            return ChatFormat(harmony=True)
        auto = self._tool_format == "auto"
        tools = detect(text, self._vocabulary) if auto else FORMATS[self._tool_format]
        generic = tools is None and bool(text) and self._generic_tools
        return ChatFormat(
            self._thinking_marks(text),
            FORMATS["hermes"] if generic else tools,
            frame=answer_marks(text, self._past_answer),
            generic_tools=generic,
            why_no_tools=self._why_no_tools(text) if tools is None and not generic else "",
        )

    def _why_no_tools(self, template: str) -> str:
        if not self.wrapper.has_chat_template:
            return "this model has no chat template"
        if not template:
            # A renderer of mlx-lm, whose source says nothing.
            return "the server cannot tell how this model calls tools; --tool-call-parser names a format"
        return "this model's chat template has no way to call tools, and with --strict the server adds none"

    def _past_answer(self) -> str:
        """What the chat template makes of an answer in the middle of a conversation."""
        said = [("user", "Hello"), ("assistant", "Hello"), ("user", "Hello")]
        try:
            # `template` cannot render it: that needs the format which is being found here.
            return ChatTemplate(self.wrapper).render([{"role": role, "content": text} for role, text in said])
        except TemplateError:
            return ""

    @cached_property
    def thinks_by_default(self) -> bool:
        """Whether the chat template asks for thoughts if no variable says otherwise."""
        hello = [{"role": "user", "content": "Hello"}]
        try:
            return self.render(hello) == self.render(hello, variables={"enable_thinking": True})
        except TemplateError:
            return False

    def _thinking_marks(self, template: str) -> Marks | None:
        wrapper = self.wrapper
        known = thinking_marks(template, self._vocabulary)
        if known is not None or not wrapper.has_thinking:
            return known
        return Marks(wrapper.think_start, wrapper.think_end)

    @cached_property
    def lexicon(self) -> Lexicon:
        """The tokens by their bytes; takes a moment for a large vocabulary."""
        of = self._bytes.of if self._bytes is not None else [*map(self.token_bytes, range(self.vocab_size))]
        return Lexicon(of, set(self._hf.added_tokens_decoder))

    def grammars(self, eos_ids: Iterable[int]) -> Grammars:
        """A compiler of grammars over these tokens."""
        return Grammars(self._hf, self.vocab_size, eos_ids)

    def token_bytes(self, token: int) -> bytes:
        """The token's bytes, perhaps a part of a character; for a special token, its name."""
        if self._bytes is not None:
            return self._bytes.of[token] if token < len(self._bytes.of) else b""
        return str(self._hf.decode([token])).encode()

    def unknown_ids(self, tokens: Sequence[int]) -> list[int]:
        """The ids for which the model has no logit: they must never reach an array."""
        return [token for token in tokens if not 0 <= token < self.vocab_size]

    def most_characters(self, tokens: int) -> int:
        """The most characters that so many tokens can stand for."""
        # Normalisers may join up to four characters into one.
        return 4 * tokens * self._longest_token

    @property
    def bos_token(self) -> int | None:
        """The token that begins every text, if there is one."""
        return None if self._hf.bos_token_id is None else int(self._hf.bos_token_id)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""
        return frozenset(id for id, token in self._hf.added_tokens_decoder.items() if token.special)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of all special tokens."""
        return tuple(token.content for token in self._hf.added_tokens_decoder.values() if token.special)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a client must know to read and write prompts, under the names of `tokenizer_config.json`."""
        marks = {name: getattr(self._hf, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        template = self._hf.chat_template
        default = template.get("default") if isinstance(template, dict) else template
        return {"tokenizer_class": type(self._hf).__name__, **marks, "chat_template": default}

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._bytes.of if self._bytes is not None else self._vocabulary), default=1)

    @property
    def start_token(self) -> int | None:
        """The token that an empty prompt becomes, if the tokenizer has one."""
        start = self._hf.bos_token_id if self._hf.bos_token_id is not None else self._hf.eos_token_id
        return None if start is None else int(start)

    @cached_property
    def template(self) -> ChatTemplate:
        format = self.chat_format
        family = format.tools.name if format.tools is not None else None
        return ChatTemplate(self.wrapper, family, generic=format.generic_tools)

    def call_ids(self, conversation: Iterable[Mapping[str, Any]]) -> CallIds:
        """Makes ids for the calls of an answer to this conversation."""
        return CallIds(self.template.traits(True).ids, conversation)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the chat template makes of OpenAI-style messages.

        `continue_final` leaves the last message open, so that the model continues it. `variables`
        are template variables. Raises TemplateError with the template's own words.
        """
        return self.template.render(messages, tools=tools, continue_final=continue_final, variables=variables)
