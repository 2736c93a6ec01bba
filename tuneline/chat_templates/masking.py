"""The template by which a trainer tells the assistant's tokens from the rest."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tuneline.chat_templates.checks import masking_problems
from tuneline.chat_templates.families import recognise
from tuneline.data.rendering import has_generation_markers
from tuneline.logging import get_logger

logger = get_logger(__name__)


def masking_template(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> str | None:
    """What `assistant_only_loss` renders dialogues with; None for the tokenizer's own template.

    A template without marks is replaced by the training template of its family. What marks leave out is warned of. A
    template of no known family, or of a processor, stays: rows that need marks are refused when they are tokenised.
    """
    if isinstance(tokenizer, ProcessorMixin) or tokenizer.chat_template is None:
        return None
    template = None
    if not has_generation_markers(tokenizer.get_chat_template()):
        found = recognise(tokenizer)
        if found is None:
            return None
        family, settings = found
        template = family.training_template(**settings)
        logger.info("assistant_only_loss: the tokenizer's chat template has no marks; that of %s is used", family.name)
    for problem in masking_problems(tokenizer, template):
        logger.warning("assistant_only_loss: %s; mend the {%% generation %%} marks of the chat template", problem)
    return template
