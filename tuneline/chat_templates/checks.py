"""What a chat template can do, found out by rendering small dialogues with it. Names are those of TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.formats import Messages, render_dialogue
from tuneline.data.rendering import REFUSALS, has_generation_markers

_ASKS = {"role": "user", "content": "question"}
_SAYS = {"role": "assistant", "content": "answer"}
_ARGUMENTS = ({"key1": "value1"}, '{"key1": "value1"}')  # of a call; some templates take only the one or the other


def supports_tool_calling(processing_class: PreTrainedTokenizerBase) -> bool:
    """Whether a call of a tool, its arguments and its result all show in what the tokenizer's template renders."""
    if processing_class.chat_template is None:
        return False
    for arguments in _ARGUMENTS:
        text = _rendered(processing_class, _exchange(arguments))
        if text is not None:
            return all(word in text for word in ("callme", "key1", "value1", "result1"))
    return False


def is_chat_template_prefix_preserving(
    processing_class: PreTrainedTokenizerBase, chat_template: str | None = None
) -> bool:
    """Whether a call of a tool is rendered alike before and after its result, so that tokens stay as they are.

    Args:
        chat_template: in place of the tokenizer's own.
    """
    for arguments in _ARGUMENTS:
        messages = _exchange(arguments)
        before = _rendered(processing_class, messages[:-1], chat_template)
        after = _rendered(processing_class, messages, chat_template, add_generation_prompt=True)
        if before is not None and after is not None:
            return after.startswith(before)
    return False


def is_chat_template_stop_token_trained(
    processing_class: PreTrainedTokenizerBase, chat_template: str | None = None
) -> bool:
    """Whether the marks of a template take in the token that ends the assistant's turn.

    An answer with a question after it is rendered; the last token that is marked, white space aside, has to be one that
    was added to the vocabulary, as the marks of turns are. Without marks nothing is trained, and so not this token.

    Args:
        chat_template: in place of the tokenizer's own.
    """
    marked = marked_spans(processing_class, [_ASKS, _SAYS, _ASKS], chat_template)
    words = [token for span in marked for token in span if processing_class.decode([token]).strip()]
    return bool(words) and words[-1] in set(processing_class.get_added_vocab().values())


def masking_problems(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> list[str]:
    """What the marks of a template leave out of the loss that the assistant does say, one phrase each."""
    problems = []
    if not is_chat_template_stop_token_trained(tokenizer, chat_template):
        problems.append("the token that ends the assistant's turn is not marked, so the model will not learn to stop")
    num_marked = len(marked_spans(tokenizer, [_ASKS, _SAYS, _ASKS, _SAYS], chat_template))
    if num_marked < 2:
        problems.append(f"of two answers in a dialogue {num_marked} is marked")
    if chat_template is None and supports_tool_calling(tokenizer):
        calls = [_exchange(arguments)[:-1] for arguments in _ARGUMENTS]
        if not any(marked_spans(tokenizer, messages, chat_template) for messages in calls):
            problems.append("calls of tools are not marked")
    return problems


def marked_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, chat_template: str | None = None
) -> list[list[int]]:
    """Each run of token ids that a template marks as the assistant's; none where it refuses the dialogue."""
    template = chat_template if chat_template is not None else tokenizer.chat_template
    if template is None or not has_generation_markers(template):
        return []
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, chat_template=chat_template, return_dict=True, return_assistant_tokens_mask=True
        )
    except REFUSALS:
        return []
    tokens = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [[token for token, _ in run] for marked, run in groupby(tokens, key=lambda pair: pair[1]) if marked]


def _exchange(arguments: Mapping[str, str] | str) -> Messages:
    call = {"type": "function", "id": "call00001", "function": {"name": "callme", "arguments": arguments}}
    return [
        _ASKS,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "callme", "tool_call_id": "call00001", "content": "result1"},
    ]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, chat_template: str | None = None, **options: Any
) -> str | None:
    try:
        return render_dialogue(tokenizer, messages, chat_template=chat_template, **options)
    except REFUSALS:
        return None
