"""The model's chat template: the form in which it takes a conversation, and the prompt that it makes of one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.defaults import DEFAULT_NAMESPACE

from parallm_openai.text.call_ids import KIMI, OPENAI, SHORT, CallIdForm, Message
from parallm_openai.text.history import TemplateTraits, adapted, described
from parallm_openai.text.tools.plain import plainer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

Tools = Sequence[Mapping[str, Any]]

LONGEST_REASON = 500
# Names that the library and Jinja define for a template besides the template's own variables.
_GIVEN = {"messages", "conversations", "raise_exception", "strftime_now", "self", *DEFAULT_NAMESPACE}


class TemplateError(ValueError):
    """The chat template refuses these messages, or there is none."""


class ChatTemplate:
    """Renders OpenAI-style conversations. May be used from any thread.

    `family` is the name of the format in which the model writes tool calls. If it is `generic`, the template has no
    part in that: tools, calls and results are text (`tools/generic.py`).
    """

    def __init__(self, wrapper: TokenizerWrapper, family: str | None = None, *, generic: bool = False) -> None:
        self._wrapper = wrapper
        self._hf = wrapper._tokenizer
        self._family = family
        self._generic = generic
        self._traits: dict[bool, TemplateTraits] = {}

    @property
    def exists(self) -> bool:
        return bool(self._wrapper.has_chat_template)

    @cached_property
    def reserved(self) -> frozenset[str]:
        """Names that a client may not set: the server sets them, or the library has them as parameters of its own."""
        # Not at the top: mlx-lm silences this library's advice about PyTorch only if it comes first.
        from transformers import PreTrainedTokenizerBase
        from transformers.utils.chat_template_utils import render_jinja_template

        taken = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
        jinja = inspect.signature(render_jinja_template).parameters
        special = {*PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES, *self._hf.special_tokens_map}
        return frozenset({*taken, *jinja, *special, *_GIVEN})

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools | None = None,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages; with `continue_final` the last one is left open.

        `variables` are template variables. Raises TemplateError with the template's own words.
        """
        if not self.exists:
            raise TemplateError("this model has no chat template; use /v1/completions")
        try:
            return self._in_some_form(messages, tools, continue_final, variables)
        except TemplateError:
            if self._generic or not tools or (simple := plainer(tools)) == list(tools):
                raise
            try:
                return self._in_some_form(messages, simple, continue_final, variables)
            except TemplateError:
                pass
            raise

    def _in_some_form(
        self,
        messages: Sequence[Message],
        tools: Tools | None,
        continue_final: bool,
        variables: Mapping[str, Any] | None,
    ) -> str:
        traits = self.traits(bool(tools))
        try:
            return self._render(messages, traits, tools, continue_final, variables)
        except TemplateError:
            called = any(message.get("tool_calls") or message.get("function_call") for message in messages)
            if self._generic or not called:
                raise
            # The form of arguments was found with a short conversation, for which this template may behave otherwise.
            other = replace(traits, objects=not traits.objects)
            try:
                return self._render(messages, other, tools, continue_final, variables)
            except TemplateError:
                pass
            raise

    def _render(
        self,
        messages: Sequence[Message],
        traits: TemplateTraits,
        tools: Tools | None = None,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        # mlx-lm's wrapper switches thinking on even if the template by itself would not.
        template = self._hf if self._hf.chat_template is not None else self._wrapper
        try:
            text = template.apply_chat_template(
                adapted(messages, traits, tools or ()),
                tools=described(tools, traits) if tools and traits.tools else None,
                tokenize=False,
                add_generation_prompt=not continue_final,
                continue_final_message=continue_final,
                **(variables or {}),
            )
        except Exception as error:
            # A template is a program: it can raise any exception that Python can.
            raise TemplateError(f"the chat template refuses these messages: {_reason(error)}") from error
        return _encodable(str(text))

    def traits(self, with_tools: bool) -> TemplateTraits:
        """The form in which the template wants conversations, found by rendering a few when it is first needed."""
        # A model with several templates has one of its own for tools.
        several = isinstance(self._hf.chat_template, dict)
        key = with_tools and several and not self._generic
        if key not in self._traits:
            tried: tuple[Tools | None, ...] = ([_TOOL],) if key else (None,) if several else ([_TOOL], None)
            if self._generic:
                tried = ()
            found = (self._found_out(tools) for tools in tried)
            self._traits[key] = next((traits for traits in found if traits is not None), self._unknown())
        return self._traits[key]

    def _unknown(self) -> TemplateTraits:
        """The traits assumed for a template that shows no calls."""
        traits = TemplateTraits(
            ids=self._id_forms()[0], developer=self._knows_developers(), late_system=self._shows_late
        )
        # Text keeps arguments as they were written.
        return replace(traits, tools=False, objects=False, system=self._shows_first) if self._generic else traits

    def _shown(self, messages: Sequence[Message], traits: TemplateTraits, tools: Tools | None) -> str:
        try:
            return self._render(messages, traits, tools)
        except TemplateError:
            return ""

    def _found_out(self, tools: Tools | None) -> TemplateTraits | None:
        """The forms in which the template takes calls; None if it takes none."""
        for properties, ids, objects in product((False, True), self._id_forms(), (True, False)):
            traits = replace(self._unknown(), ids=ids, objects=objects, properties=properties)
            # No model was trained on a dictionary in Python's notation.
            if (text := self._shown(_CALLED, traits, tools)) and str(_ARGUMENTS) not in text:
                break
        else:
            return None
        texts = replace(traits, any_text=True)
        traits = texts if _CUT in self._shown(_CUT_SHORT, texts, tools) else traits
        split = replace(traits, parallel=False)
        if _both_in(self._shown(_PARALLEL, split, tools)) and not _both_in(self._shown(_PARALLEL, traits, tools)):
            traits = split
        joined = replace(traits, apart=False)
        if self._shown(_THOUGHTFUL, joined, tools) and not self._shown(_THOUGHTFUL, traits, tools):
            traits = joined
        return traits

    def _id_forms(self) -> tuple[CallIdForm, ...]:
        """The forms of call ids that the template may want, the likeliest first."""
        known = {"kimi_k2": KIMI, "mistral": SHORT}.get(self._family or "")
        return (known,) if known is not None else (OPENAI, SHORT)

    def _knows_developers(self) -> bool:
        """Whether the template knows developers. Many write any role, even one that the model has never seen."""
        if "developer" not in template_text(self._hf):
            return False
        return _SECRET in self._shown(_DEVELOPED, TemplateTraits(developer=True), None)

    @cached_property
    def _shows_first(self) -> bool:
        """Whether the template shows instructions at the beginning."""
        return _SECRET in self._shown([_LATER, _QUESTION], TemplateTraits(), None)

    @cached_property
    def _shows_late(self) -> bool:
        """Whether the template shows instructions between other messages; many refuse them or leave them out."""
        shown = [self._shown(each, TemplateTraits(), None).count(_SECRET) for each in _LATE]
        return shown == [each.count(_LATER) for each in _LATE]


_TOOL = {
    "type": "function",
    "function": {"name": "probe", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
_ARGUMENTS = {"city": "Rome"}
_CUT = '{"city": "Ro'
_SECRET = "Say that it rains."
_QUESTION: Message = {"role": "user", "content": "Hello"}


def _calling(arguments: str, *names: str, **more: str) -> list[Message]:
    """A conversation in which each of these functions is called and answers."""
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}} for name in names
    ]
    answers = [{"role": "tool", "tool_call_id": f"call_{name}", "content": "It rains."} for name in names]
    return [_QUESTION, {"role": "assistant", "content": "", "tool_calls": calls, **more}, *answers]


_CALLED = _calling('{"city": "Rome"}', "probe")
_CUT_SHORT = _calling(_CUT, "probe")
_PARALLEL = _calling('{"city": "Rome"}', "first_probe", "second_probe")
_THOUGHTFUL = _calling('{"city": "Rome"}', "probe", content="I look.", reasoning_content="I think.")
_LATER: Message = {"role": "system", "content": _SECRET}
_LATE: list[list[Message]] = [
    [_QUESTION, _LATER],
    [_QUESTION, {"role": "assistant", "content": "Hi"}, _LATER, _QUESTION],
    # Some keep only the last instructions.
    [_LATER, _QUESTION, _LATER],
]
_DEVELOPED: list[Message] = [{"role": "developer", "content": _SECRET}, _QUESTION]


def _both_in(prompt: str) -> bool:
    return "first_probe" in prompt and "second_probe" in prompt


def template_text(tokenizer: Any) -> str:
    """The source of the chat template, or of all templates if there are several."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def _reason(error: Exception) -> str:
    """The error in its own words, shortened: some quote the whole conversation."""
    words = str(error)
    if not isinstance(error, (jinja2.TemplateError, ValueError)) or not words:
        words = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}…"


def _encodable(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced: JSON can hold them, UTF-8 cannot."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
