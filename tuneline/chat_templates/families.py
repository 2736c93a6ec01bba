"""The families of chat templates, and to which of them a tokenizer's own template belongs.

A family is one of the `.jinja` files here and its settings. Each file renders in two ways: as the models' own template
does, and for training, where what was written stays as it is when more is said (`keeps_thoughts`, `keeps_prefix`);
both mark what the assistant says. A tokenizer's template is recognised by what it renders, not by its source: where
one of a family gives the same text on a set of dialogues, it is that. So an edit that changes no text does no harm, and
one that changes text is not overlooked. A default system message that differs is taken over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.chat_templates.checks import is_chat_template_prefix_preserving, supports_tool_calling
from tuneline.data.formats import Messages, render_dialogue
from tuneline.data.rendering import REFUSALS, has_generation_markers
from tuneline.errors import ModelError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """A chat template in its own form and in that for training.

    Attributes:
        name: of the models that use it.
        file: of the `.jinja` here.
        settings: variables of the file.
        for_training: settings that differ in training.
        calls_tools: whether dialogues with calls of tools are compared too.
    """

    name: str
    file: str
    settings: Mapping[str, Any]
    for_training: Mapping[str, Any] = field(default_factory=dict)
    calls_tools: bool = True

    def template(self, **settings: Any) -> str:
        """The template as the models' own renders."""
        chosen = {**self.settings, **settings}
        lines = [f"{{%- set {name} = {_literal(value)} %}}\n" for name, value in chosen.items()]
        return "".join(lines) + _source(self.file)

    def training_template(self, **settings: Any) -> str:
        """The template for training."""
        return self.template(**{**settings, **self.for_training})


_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def _chatml(name: str, *, default_system: str = "", has_tools: bool = False, thinks: bool = False) -> Family:
    settings = {"default_system": default_system, "has_tools": has_tools, "thinks": thinks, "keeps_thoughts": False}
    return Family(name, "chatml", settings, {"keeps_thoughts": True} if thinks else {})


def _mistral(
    name: str, asks: str, asked: str, answers: str, place: str, *, trims: bool = False, tools: bool = False
) -> Family:
    settings = {"asks": asks, "asked": asked, "answers": answers, "trims": trims, "gap": " " if answers else ""}
    settings |= {"system_place": place, "default_system": "", "has_tools": tools, "keeps_prefix": False}
    return Family(name, "mistral", settings, {"keeps_prefix": True})


def _phi(name: str, opening: str, closing: str, end: str, gap: str, **flags: bool) -> Family:
    settings: dict[str, Any] = {"opening": opening, "closing": closing, "end": end, "gap": gap}
    settings |= {"has_empty_system": True, "has_tools": False, "has_eos": True, "keeps_prefix": False, **flags}
    return Family(name, "phi", settings, {"keeps_prefix": True})


def _deepseek(name: str, *, opens_thought: bool, has_tools: bool) -> Family:
    settings = {"opens_thought": opens_thought, "has_tools": has_tools, "keeps_thoughts": False}
    return Family(name, "deepseek", settings, {"keeps_thoughts": True}, calls_tools=has_tools)


FAMILIES = (
    _chatml("Qwen 2.5", default_system=_QWEN, has_tools=True),
    _chatml("Qwen 3", has_tools=True, thinks=True),
    _chatml("Qwen 3 Instruct 2507", has_tools=True),
    _chatml("ChatML, SmolLM and SmolLM2", default_system=_SMOLLM),
    Family("SmolLM3", "smollm3", {"reads_tools": True}),
    Family("SmolLM3, first release", "smollm3", {"reads_tools": False}),
    Family("Llama 3", "llama3", {"has_header": False}),
    Family("Llama 3.1 and 3.3", "llama3", {"has_header": True, "date": "26 Jul 2024"}),
    Family("Llama 3.2", "llama3", {"has_header": True, "date": ""}),
    Family("Gemma and Gemma 2", "gemma", {"has_system": False}),
    Family("Gemma 3", "gemma", {"has_system": True}),
    _mistral("Mistral V1", " [INST] ", " [/INST]", " ", "first"),
    _mistral("Mistral V1, first release", "[INST] ", " [/INST]", "", "first"),
    _mistral("Mistral V3", "[INST] ", "[/INST]", " ", "last", trims=True, tools=True),
    _mistral("Mistral V3-Tekken", "[INST]", "[/INST]", "", "last", tools=True),
    _mistral("Mistral V7", "[INST]", "[/INST]", "", "own"),
    _phi("Phi-3", "<|", "|>\n", "<|end|>", "\n"),
    _phi("Phi-3.5", "<|", "|>\n", "<|end|>", "\n", has_empty_system=False),
    _phi("Phi-4", "<|im_start|>", "<|im_sep|>", "<|im_end|>", "", has_eos=False),
    _phi("Phi-4-mini", "<|", "|>", "<|end|>", "", has_tools=True),
    _deepseek("DeepSeek V3", opens_thought=False, has_tools=True),
    _deepseek("DeepSeek R1", opens_thought=True, has_tools=True),
    _deepseek("DeepSeek R1, distilled", opens_thought=True, has_tools=False),
    Family("GPT-OSS", "gpt_oss", {"keeps_thoughts": False}, {"keeps_thoughts": True}),
)


def get_training_chat_template(
    processing_class: PreTrainedTokenizerBase | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> str | None:
    """A chat template for training in place of the tokenizer's own; None where its own will do.

    It marks what the assistant says, its end of turn included, and renders what was said alike whatever follows. Name
    and arguments are TRL's; `tokenizer` is the older name of the first.

    Raises:
        ModelError: no tokenizer, or two; no chat template; or one that is none of a known family.
    """
    given = [one for one in (processing_class, tokenizer) if one is not None]
    if len(given) != 1:
        raise ModelError(f"get_training_chat_template takes one tokenizer, as processing_class; it got {len(given)}.")
    tokenizer = given[0]
    if tokenizer.chat_template is None:
        raise ModelError("The tokenizer has no chat template; give it one, for instance with clone_chat_template.")
    if has_generation_markers(tokenizer.get_chat_template()) and (
        not supports_tool_calling(tokenizer) or is_chat_template_prefix_preserving(tokenizer)
    ):
        return None
    found = recognise(tokenizer)
    if found is None:
        raise ModelError(
            "The tokenizer's chat template renders dialogues like none of the families that have a training template "
            f"({', '.join(family.name for family in FAMILIES)}). Put {{% generation %}} and {{% endgeneration %}} "
            "around what its assistant says, and give it as a .jinja file with chat_template_path."
        )
    family, settings = found
    return family.training_template(**settings)


def recognise(tokenizer: PreTrainedTokenizerBase) -> tuple[Family, dict[str, Any]] | None:
    """The family whose text a tokenizer's template renders, and the settings that it has of its own."""
    default_system = _default_system(tokenizer)
    own = {} if default_system is None else {"default_system": default_system}
    for settings in ({}, own) if own else ({},):
        for family in FAMILIES:
            if settings.keys() <= family.settings.keys() and _is_family(tokenizer, family, settings):
                return family, settings
    return None


def _is_family(tokenizer: PreTrainedTokenizerBase, family: Family, settings: dict[str, Any]) -> bool:
    probes = [probe for probe in _PROBES if family.calls_tools or not probe.calls_tools]
    forms = {family.template(**settings), family.training_template(**settings)}
    return any(all(_agrees(tokenizer, form, probe) for probe in probes) for form in forms)


@dataclass(frozen=True)
class _Probe:
    """A dialogue to tell templates apart by, and what its template is given besides."""

    messages: Messages
    options: Mapping[str, Any] = field(default_factory=dict)
    calls_tools: bool = False


_ASKS = {"role": "user", "content": "What is it?"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_SAYS = {"role": "assistant", "content": "It is\nthis."}
_THINKS = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nThat."}
_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": "it", "n": 2}}}
    ],
}
_ANSWERS = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "seen"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at something.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What."}, "n": {"type": "integer"}},
            "required": ["at"],
        },
    },
}
_PROMPT = {"add_generation_prompt": True}
_PROBES = (
    _Probe([_ASKS], _PROMPT),
    _Probe([_SYSTEM, _ASKS], _PROMPT),
    _Probe([_ASKS, _SAYS]),
    _Probe([_SYSTEM, _ASKS, _SAYS, _ASKS, _SAYS]),
    _Probe([{"role": "user", "content": " Well? "}, {"role": "assistant", "content": " Well.\n"}]),
    _Probe([{"role": "system", "content": ""}, _ASKS, _SAYS]),
    _Probe([_ASKS, _THINKS, _ASKS, _THINKS]),
    _Probe([_ASKS], {"enable_thinking": False, **_PROMPT}),
    _Probe([_ASKS], {"tools": [_TOOL], **_PROMPT}),
    _Probe([_SYSTEM, _ASKS], {"tools": [_TOOL], **_PROMPT}),
    _Probe([_ASKS, _CALLS], {"tools": [_TOOL]}, calls_tools=True),
    _Probe([_ASKS, _CALLS, _ANSWERS], {"tools": [_TOOL], **_PROMPT}, calls_tools=True),
    _Probe([_ASKS, _CALLS, _ANSWERS, _SAYS], calls_tools=True),
)


def _agrees(tokenizer: PreTrainedTokenizerBase, template: str, probe: _Probe) -> bool:
    """Whether two templates give the same text; what the tokenizer's own refuses does not count."""
    own = _rendered(tokenizer, probe)
    return own is None or own == _rendered(tokenizer, probe, template)


def _rendered(tokenizer: PreTrainedTokenizerBase, probe: _Probe, template: str | None = None) -> str | None:
    try:
        return render_dialogue(tokenizer, probe.messages, chat_template=template, **probe.options)
    except REFUSALS:
        return None


def _default_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What stands where a system message would, when there is none; None where the two cannot be compared."""
    given, default = _rendered(tokenizer, _Probe([_SYSTEM, _ASKS])), _rendered(tokenizer, _Probe([_ASKS]))
    if given is None or default is None or _SYSTEM["content"] not in given:
        return None
    before, after = given.split(_SYSTEM["content"], 1)
    if default.startswith(before) and default.endswith(after) and len(default) >= len(before) + len(after):
        return default[len(before) : len(default) - len(after)]
    return ""


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return json.dumps(value, ensure_ascii=False)


@cache
def _source(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
