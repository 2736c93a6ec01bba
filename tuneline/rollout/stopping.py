"""Which tokens end a completion."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.data.rendering import render_dialogue


def stop_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Those of model and tokenizer, and the one that ends a turn of the dialogue.

    A base model trained on dialogues ends with the latter, which neither of the former need name.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id, _end_of_turn(tokenizer)}
    return sorted(i for i in ids if i is not None)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts behind what the assistant says, if it does."""
    if tokenizer.chat_template is None:
        return None
    answer = "answer"
    dialogue = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    behind = render_dialogue(tokenizer, dialogue).rpartition(answer)[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
