"""Trainers of two completions a prompt on a tiny model, and their likes of TRL."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

import tuneline
from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET, weights
from tests.trainers.online import EOS, MAX_LENGTH, questions, written
from tests.trainers.rows import character_tokenizer
from tuneline.rollout.scripted import ScriptedEngine

ARGUMENTS = {"reward_funcs", "judge", "ref_model", "rollout_engine", "peft_config", "eval_dataset", "train_dataset"}


def num_letters(completions, **columns):
    """By text: TRL counts padding among its `completion_ids`."""
    return [float(sum(letter in "abcd" for letter in text)) for text in completions]


def by_prompt(num_prompts: int = 4) -> ScriptedEngine:
    """Two completions a prompt, in turn, whichever seeds they are drawn with."""
    tokenizer = character_tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in questions(num_prompts)]
    return ScriptedEngine({tuple(ids): [written(ids, 17 * i + 5) for i in range(2)] for ids in prompts})


def model_in(folder: Path) -> PreTrainedModel:
    """From a file, since TRL loads its reference from where the policy came."""
    path = folder / "model"
    if not path.exists():
        torch.manual_seed(0)
        tiny_causal_lm().save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


def build_paired(method: str, folder: Path, *, library: ModuleType = tuneline, model: Any = None, **given: Any) -> Any:
    """A trainer; of `given`, what the constructor does not take goes to the configuration."""
    arguments = {name: value for name, value in given.items() if name in ARGUMENTS}
    options = {name: value for name, value in given.items() if name not in ARGUMENTS}
    settings = {
        **QUIET,
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 4,
        "max_new_tokens": MAX_LENGTH,
        "max_steps": 1,
        "max_grad_norm": 0,
        "gradient_checkpointing": False,
        "bf16": False,
        **options,
    }
    defaults = {"train_dataset": questions(4), "processing_class": character_tokenizer()}
    if "judge" not in given:
        defaults["reward_funcs"] = num_letters
    return getattr(library, f"{method}Trainer")(
        model=model_in(folder) if model is None else model,
        args=getattr(library, f"{method}Config")(**settings),
        **{**defaults, **arguments},
    )


def scripted_like(engine: ScriptedEngine) -> Any:
    """What stands in for `_generate` of TRL's OnlineDPOTrainer: the same completions, all first ones first."""
    tokenizer = character_tokenizer()

    def generate(model, prompts, images=None):
        ids = [tokenizer(text)["input_ids"] for text in prompts]
        both = [[[*one][:MAX_LENGTH] for one in engine.script[tuple(prompt)]] for prompt in ids]
        width = max(map(len, ids))
        completions = [pair[i] for i in range(2) for pair in both]
        longest = max(map(len, completions))
        prompt_ids = torch.tensor([[0] * (width - len(p)) + p for p in ids] * 2)
        completion_ids = torch.tensor([c + [0] * (longest - len(c)) for c in completions])
        mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in completions])
        return prompt_ids, (prompt_ids != 0).long(), completion_ids, mask, None

    assert EOS == 1
    return generate


def assert_resumes_to_the_bit(method: str, folder: Path, **options: Any) -> Any:
    """A run that goes on from its middle ends with the weights of one that was not stopped, which is returned."""
    schedule = {
        "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2,
        "learning_rate": 1e-3, "train_dataset": questions(5),
    }  # fmt: skip
    whole = build_paired(method, folder, **schedule, **options)
    whole.train()
    resumed = build_paired(method, folder, **schedule, **options)
    resumed.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))
    ends = weights(whole)
    assert all(torch.equal(end, ends[name]) for name, end in weights(resumed).items())
    return whole


def train_adapter(method: str, folder: Path, **options: Any) -> Any:
    """A trainer of an adapter after two steps; the reference of its policy is its base."""
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    given = {"peft_config": adapter, "max_steps": 2, "learning_rate": 1e-2, **options}
    trainer = build_paired(method, folder, model=tiny_causal_lm(), **given)
    trainer.train()
    assert trainer.reference.model is None
    return trainer
