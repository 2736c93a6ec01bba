"""How the families write reasoning and calls of tools, so that a turn of theirs can be read back into a message.

In the notation of transformers' `response_template`: what opens and closes a field of the message, and what is made of
the text between. Tool environments read calls with it.
"""

from __future__ import annotations

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.chat_templates.families import FAMILIES, Family, recognise
from tuneline.errors import ModelError

_CALL = {"type": "function", "function": "{content}"}  # of JSON with name and arguments
_NAMED_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}


def add_response_schema(processing_class: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Set the `response_template` of a tokenizer by the family of its chat template; gives the tokenizer back.

    The name is TRL's.

    Raises:
        ModelError: no chat template, one of no known family, or one that calls no tools.
    """
    found = None if processing_class.chat_template is None else recognise(processing_class)
    template = None if found is None else response_template(found[0], processing_class.eos_token)
    if template is None:
        known = ", ".join(family.name for family in FAMILIES if response_template(family, "") is not None)
        kind = "is of no known family" if found is None else f"is that of {found[0].name}, which calls no tools"
        raise ModelError(
            f"The tokenizer's chat template {kind}. How calls are written is known of {known}; "
            "set the tokenizer's response_template to teach another."
        )
    processing_class.response_template = template
    return processing_class


def response_template(family: Family, eos_token: str | None) -> dict[str, Any] | None:
    """How a family's turns are read; None for one that calls no tools."""
    ends = re.escape(eos_token or "")
    calls: dict[str, Any]
    fields: dict[str, Any]
    match family.file:
        case "chatml" if family.settings["has_tools"]:
            anchor = {"start_anchor": "<|im_start|>assistant\n"}
            calls = {"open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "transform": _CALL}
            fields = {"reasoning_content": _THOUGHT, "content": _text(r"\s*<\|im_end\|>\s*")}
        case "llama3" if family.settings["has_header"]:
            anchor = {"start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n"}
            calls = {
                "open_pattern": r'\{"name":\s*"(?P<name>[^"]+)",\s*"parameters":\s*',
                "close_pattern": r"\}\s*<\|eot_id\|>",
                "transform": _NAMED_CALL,
            }
            fields = {"content": _text(r"\s*<\|eot_id\|>")}
        case "phi" if family.settings["has_tools"]:
            anchor = {"start_anchor": "<|assistant|>"}
            calls = {"open": "<|tool_call|>", "close": "<|/tool_call|>", "transform": _CALL}
            fields = {"content": _text(rf"<\|end\|>(?:{ends})?")}
        case "mistral" if family.settings["has_tools"]:
            anchor = {"start_anchor_pattern": r"\[/(?:INST|TOOL_RESULTS)\]"}
            one = {"type": "function", "id": "{id}", "function": {"name": "{name}", "arguments": "{arguments}"}}
            calls = {"open": "[TOOL_CALLS]", "close_pattern": ends, "transform": one, "transform_each": True}
            fields = {"content": _text(ends)}
        case "deepseek" if family.settings["has_tools"]:
            anchor = {"start_anchor_pattern": "<｜Assistant｜>|<｜tool▁outputs▁end｜>"}
            calls = {
                "open_pattern": r"\s*(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
                r"(?P<name>[^\n]+)\n```json\n",
                "close_pattern": r"\n```<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
                "transform": _NAMED_CALL,
            }
            fields = {"reasoning_content": _THOUGHT, "content": _text("<｜end▁of▁sentence｜>")}
        case "gpt_oss":
            anchor = {"start_anchor": "<|start|>assistant"}
            calls = {
                "open_pattern": r"\s*to=functions\.(?P<name>[^\s<]+)<\|channel\|>commentary\s*(?:<\|constrain\|>)?"
                r"json<\|message\|>",
                "close": "<|call|>",
                "transform": _NAMED_CALL,
            }
            thought = {"open": "<|channel|>analysis<|message|>", "content": "text"}
            thought["close_pattern"] = r"<\|end\|>(?:<\|start\|>assistant)?"
            fields = {
                "thinking": thought,
                "content": {"open": "<|channel|>final<|message|>", **_text(r"<\|(?:return|end)\|>")},
            }
        case _:
            return None
    calls = {"content": "json", **({} if "transform_each" in calls else {"repeats": True}), **calls}
    return {"defaults": {"role": "assistant"}, **anchor, "fields": {"tool_calls": calls, **fields}}


_THOUGHT = {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"}


def _text(close_pattern: str) -> dict[str, str]:
    return {"close_pattern": close_pattern, "content": "text"}
