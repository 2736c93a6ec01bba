"""Data sets: TRL's formats and conversions by their names, mixtures, packing, and rows as token ids.

Names are imported on first use; what only the library itself needs is in the modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.data.conversions import (
        convert_dataset,
        dataset_type,
        to_language_modeling,
        to_preference,
        to_prompt_completion,
        to_prompt_only,
        to_unpaired_preference,
    )
    from tuneline.data.formats import (
        apply_chat_template,
        extract_prompt,
        is_conversational,
        is_conversational_from_value,
        maybe_apply_chat_template,
        maybe_convert_to_chatml,
        maybe_extract_prompt,
        maybe_unpair_preference_dataset,
        unpair_preference_dataset,
    )
    from tuneline.data.mixtures import DatasetConfig, DatasetMixtureConfig, ScriptArguments, get_dataset
    from tuneline.data.multimodal import prepare_multimodal_messages
    from tuneline.data.packing import pack_dataset, truncate_dataset

_HOME_OF = {
    "DatasetConfig": "mixtures",
    "DatasetMixtureConfig": "mixtures",
    "ScriptArguments": "mixtures",
    "apply_chat_template": "formats",
    "convert_dataset": "conversions",
    "dataset_type": "conversions",
    "extract_prompt": "formats",
    "get_dataset": "mixtures",
    "is_conversational": "formats",
    "is_conversational_from_value": "formats",
    "maybe_apply_chat_template": "formats",
    "maybe_convert_to_chatml": "formats",
    "maybe_extract_prompt": "formats",
    "maybe_unpair_preference_dataset": "formats",
    "pack_dataset": "packing",
    "prepare_multimodal_messages": "multimodal",
    "to_language_modeling": "conversions",
    "to_preference": "conversions",
    "to_prompt_completion": "conversions",
    "to_prompt_only": "conversions",
    "to_unpaired_preference": "conversions",
    "truncate_dataset": "packing",
    "unpair_preference_dataset": "formats",
}

__all__ = [
    "DatasetConfig",
    "DatasetMixtureConfig",
    "ScriptArguments",
    "apply_chat_template",
    "convert_dataset",
    "dataset_type",
    "extract_prompt",
    "get_dataset",
    "is_conversational",
    "is_conversational_from_value",
    "maybe_apply_chat_template",
    "maybe_convert_to_chatml",
    "maybe_extract_prompt",
    "maybe_unpair_preference_dataset",
    "pack_dataset",
    "prepare_multimodal_messages",
    "to_language_modeling",
    "to_preference",
    "to_prompt_completion",
    "to_prompt_only",
    "to_unpaired_preference",
    "truncate_dataset",
    "unpair_preference_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tuneline.data' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"tuneline.data.{_HOME_OF[name]}"), name)
