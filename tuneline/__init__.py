"""tuneline: trainers that align language models, on one prompt-tree batch format.

Names are imported on first use, so that `import tuneline` and the command line stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneline.chat_templates.checks import supports_tool_calling
    from tuneline.chat_templates.families import get_training_chat_template
    from tuneline.chat_templates.responses import add_response_schema
    from tuneline.cli.model_config import ModelConfig, get_peft_config, get_quantization_config
    from tuneline.cli.trl_parser import TrlParser
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
    from tuneline.models.loading import clone_chat_template
    from tuneline.models.reference_model import create_reference_model
    from tuneline.models.value_head import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
    from tuneline.trainers.bco import BCOTrainer
    from tuneline.trainers.bco_config import BCOConfig
    from tuneline.trainers.bema import BEMACallback
    from tuneline.trainers.completions_log import LogCompletionsCallback
    from tuneline.trainers.cpo import CPOTrainer
    from tuneline.trainers.cpo_config import CPOConfig
    from tuneline.trainers.distillation import DistillationTrainer
    from tuneline.trainers.distillation_config import DistillationConfig
    from tuneline.trainers.dpo import DPOTrainer
    from tuneline.trainers.dpo_config import DPOConfig
    from tuneline.trainers.gkd import GKDTrainer
    from tuneline.trainers.gkd_config import GKDConfig
    from tuneline.trainers.grpo import GRPOTrainer
    from tuneline.trainers.grpo_config import GRPOConfig
    from tuneline.trainers.iterative_sft import IterativeSFTTrainer
    from tuneline.trainers.iterative_sft_config import IterativeSFTConfig
    from tuneline.trainers.kto import KTOTrainer
    from tuneline.trainers.kto_config import KTOConfig
    from tuneline.trainers.nash_md import NashMDTrainer
    from tuneline.trainers.nash_md_config import NashMDConfig
    from tuneline.trainers.online_dpo import OnlineDPOTrainer
    from tuneline.trainers.online_dpo_config import OnlineDPOConfig
    from tuneline.trainers.orpo import ORPOTrainer
    from tuneline.trainers.orpo_config import ORPOConfig
    from tuneline.trainers.ppo import PPOTrainer
    from tuneline.trainers.ppo_config import PPOConfig
    from tuneline.trainers.prm import PRMTrainer
    from tuneline.trainers.prm_config import PRMConfig
    from tuneline.trainers.reference import SyncRefModelCallback
    from tuneline.trainers.reward import RewardTrainer
    from tuneline.trainers.reward_config import RewardConfig
    from tuneline.trainers.rich_progress import RichProgressCallback
    from tuneline.trainers.rloo import RLOOTrainer
    from tuneline.trainers.rloo_config import RLOOConfig
    from tuneline.trainers.server_distillation import ServerDistillationTrainer
    from tuneline.trainers.server_distillation_config import ServerDistillationConfig
    from tuneline.trainers.sft import SFTTrainer
    from tuneline.trainers.sft_config import SFTConfig
    from tuneline.trainers.tpo import TPOTrainer
    from tuneline.trainers.tpo_config import TPOConfig
    from tuneline.trainers.win_rate import WinRateCallback
    from tuneline.trainers.xpo import XPOTrainer
    from tuneline.trainers.xpo_config import XPOConfig

__version__ = "0.1.0"

_HOME_OF = {
    "AutoModelForCausalLMWithValueHead": "tuneline.models.value_head",
    "AutoModelForSeq2SeqLMWithValueHead": "tuneline.models.value_head",
    "BCOConfig": "tuneline.trainers.bco_config",
    "BCOTrainer": "tuneline.trainers.bco",
    "BEMACallback": "tuneline.trainers.bema",
    "CPOConfig": "tuneline.trainers.cpo_config",
    "CPOTrainer": "tuneline.trainers.cpo",
    "DPOConfig": "tuneline.trainers.dpo_config",
    "DPOTrainer": "tuneline.trainers.dpo",
    "DatasetConfig": "tuneline.data.mixtures",
    "DatasetMixtureConfig": "tuneline.data.mixtures",
    "DistillationConfig": "tuneline.trainers.distillation_config",
    "DistillationTrainer": "tuneline.trainers.distillation",
    "GKDConfig": "tuneline.trainers.gkd_config",
    "GKDTrainer": "tuneline.trainers.gkd",
    "GRPOConfig": "tuneline.trainers.grpo_config",
    "GRPOTrainer": "tuneline.trainers.grpo",
    "IterativeSFTConfig": "tuneline.trainers.iterative_sft_config",
    "IterativeSFTTrainer": "tuneline.trainers.iterative_sft",
    "KTOConfig": "tuneline.trainers.kto_config",
    "KTOTrainer": "tuneline.trainers.kto",
    "LogCompletionsCallback": "tuneline.trainers.completions_log",
    "ModelConfig": "tuneline.cli.model_config",
    "NashMDConfig": "tuneline.trainers.nash_md_config",
    "NashMDTrainer": "tuneline.trainers.nash_md",
    "ORPOConfig": "tuneline.trainers.orpo_config",
    "ORPOTrainer": "tuneline.trainers.orpo",
    "OnlineDPOConfig": "tuneline.trainers.online_dpo_config",
    "OnlineDPOTrainer": "tuneline.trainers.online_dpo",
    "PPOConfig": "tuneline.trainers.ppo_config",
    "PPOTrainer": "tuneline.trainers.ppo",
    "PRMConfig": "tuneline.trainers.prm_config",
    "PRMTrainer": "tuneline.trainers.prm",
    "RLOOConfig": "tuneline.trainers.rloo_config",
    "RLOOTrainer": "tuneline.trainers.rloo",
    "RewardConfig": "tuneline.trainers.reward_config",
    "RewardTrainer": "tuneline.trainers.reward",
    "RichProgressCallback": "tuneline.trainers.rich_progress",
    "SFTConfig": "tuneline.trainers.sft_config",
    "SFTTrainer": "tuneline.trainers.sft",
    "ScriptArguments": "tuneline.data.mixtures",
    "ServerDistillationConfig": "tuneline.trainers.server_distillation_config",
    "ServerDistillationTrainer": "tuneline.trainers.server_distillation",
    "SyncRefModelCallback": "tuneline.trainers.reference",
    "TPOConfig": "tuneline.trainers.tpo_config",
    "TPOTrainer": "tuneline.trainers.tpo",
    "TrlParser": "tuneline.cli.trl_parser",
    "WinRateCallback": "tuneline.trainers.win_rate",
    "XPOConfig": "tuneline.trainers.xpo_config",
    "XPOTrainer": "tuneline.trainers.xpo",
    "add_response_schema": "tuneline.chat_templates.responses",
    "apply_chat_template": "tuneline.data.formats",
    "clone_chat_template": "tuneline.models.loading",
    "create_reference_model": "tuneline.models.reference_model",
    "extract_prompt": "tuneline.data.formats",
    "get_dataset": "tuneline.data.mixtures",
    "get_peft_config": "tuneline.cli.model_config",
    "get_quantization_config": "tuneline.cli.model_config",
    "get_training_chat_template": "tuneline.chat_templates.families",
    "is_conversational": "tuneline.data.formats",
    "is_conversational_from_value": "tuneline.data.formats",
    "maybe_apply_chat_template": "tuneline.data.formats",
    "maybe_convert_to_chatml": "tuneline.data.formats",
    "maybe_extract_prompt": "tuneline.data.formats",
    "maybe_unpair_preference_dataset": "tuneline.data.formats",
    "pack_dataset": "tuneline.data.packing",
    "prepare_multimodal_messages": "tuneline.data.multimodal",
    "supports_tool_calling": "tuneline.chat_templates.checks",
    "truncate_dataset": "tuneline.data.packing",
    "unpair_preference_dataset": "tuneline.data.formats",
}

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BCOConfig",
    "BCOTrainer",
    "BEMACallback",
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "DatasetConfig",
    "DatasetMixtureConfig",
    "DistillationConfig",
    "DistillationTrainer",
    "GKDConfig",
    "GKDTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "IterativeSFTConfig",
    "IterativeSFTTrainer",
    "KTOConfig",
    "KTOTrainer",
    "LogCompletionsCallback",
    "ModelConfig",
    "NashMDConfig",
    "NashMDTrainer",
    "ORPOConfig",
    "ORPOTrainer",
    "OnlineDPOConfig",
    "OnlineDPOTrainer",
    "PPOConfig",
    "PPOTrainer",
    "PRMConfig",
    "PRMTrainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "RichProgressCallback",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "ServerDistillationConfig",
    "ServerDistillationTrainer",
    "SyncRefModelCallback",
    "TPOConfig",
    "TPOTrainer",
    "TrlParser",
    "WinRateCallback",
    "XPOConfig",
    "XPOTrainer",
    "__version__",
    "add_response_schema",
    "apply_chat_template",
    "clone_chat_template",
    "create_reference_model",
    "extract_prompt",
    "get_dataset",
    "get_peft_config",
    "get_quantization_config",
    "get_training_chat_template",
    "is_conversational",
    "is_conversational_from_value",
    "maybe_apply_chat_template",
    "maybe_convert_to_chatml",
    "maybe_extract_prompt",
    "maybe_unpair_preference_dataset",
    "pack_dataset",
    "prepare_multimodal_messages",
    "supports_tool_calling",
    "truncate_dataset",
    "unpair_preference_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tuneline' has no attribute {name!r}; it offers {', '.join(sorted(_HOME_OF))}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
