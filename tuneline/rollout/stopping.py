"""Which tokens end a completion."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tuneline.data.images import tokenizer_of
from tuneline.data.multimodal import prepare_multimodal_messages
from tuneline.data.rendering import render_dialogue


def stop_token_ids(model: Any, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> list[int]:
    """Those of model and tokenizer, and the one that ends a turn of the dialogue.

    A base model trained on dialogues ends with the latter, which neither of the former need name.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    tokenizer = tokenizer_of(processing_class)
    ids = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id, _end_of_turn(processing_class)}
    return sorted(i for i in ids if i is not None)


def _end_of_turn(processing_class: Any) -> int | None:
    """The special token that the chat template puts behind what the assistant says, if it does."""
    if processing_class.chat_template is None:
        return None
    answer, tokenizer = "answer", tokenizer_of(processing_class)
    dialogue = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    if tokenizer is not processing_class:  # templates of processors may take nothing but parts
        dialogue = prepare_multimodal_messages(dialogue)
    behind = render_dialogue(processing_class, dialogue).rpartition(answer)[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
