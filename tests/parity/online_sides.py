"""TRL's online trainers and ours on the same tiny model and the same completions."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback, TrainerCallback

import tuneline
from tests.models import tiny_causal_lm
from tests.parity.sides import Outcome, assert_same
from tests.trainers.rows import character_tokenizer
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.scripted import ScriptedEngine

EOS, MAX_LENGTH = 1, 12
PROMPTS = ["what is 1?", "why?", "a longer question, who is it?", "of equal length?"]
GRPO_METRICS = {
    "loss",
    "grad_norm",
    "num_tokens",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
    "completions/clipped_ratio",
    "rewards/num_letters/mean",
    "rewards/num_letters/std",
    "rewards/ends/mean",
    "rewards/ends/std",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "entropy",
}
CLIP_METRICS = {f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")}


def script() -> dict[tuple[int, ...], list[list[int]]]:
    """For each prompt eight completions, of which some are cut off."""
    generator = torch.Generator().manual_seed(3)
    tokenizer = character_tokenizer()
    written = {}
    for text in PROMPTS:
        lengths = torch.randint(1, MAX_LENGTH + 4, (8,), generator=generator).clamp(max=MAX_LENGTH + 1).tolist()
        bodies = [torch.randint(3, 12, (n - 1,), generator=generator).tolist() for n in lengths]
        written[tuple(tokenizer(text)["input_ids"])] = [[*body, EOS] for body in bodies]
    return written


def num_letters(completion_ids, **_):
    return [0.3 * sum(token < 7 for token in ids) for ids in completion_ids]


def ends(completion_ids, **_):
    """None for some, which are then rewarded by the other function alone."""
    return [None if len(ids) == 3 else float(ids[-1] == EOS) for ids in completion_ids]


def sampler_logprobs(prompt_ids: list[int], ids: list[int]) -> list[float]:
    return [-4.0 + 0.1 * (token % 5) for token in ids]


def make(library: ModuleType, method: str, folder: Path, *, mismatch: bool = False, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder / library.__name__),
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": MAX_LENGTH,
        "shuffle_dataset": False,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "reward_weights": [1.0, 0.5],
        **options,
    }
    engine = ScriptedEngine(script(), logprobs=sampler_logprobs)
    if method == "GRPO":
        settings["vllm_importance_sampling_correction"] = mismatch
    given = {"rollout_engine": engine} if library is tuneline else {}
    trainer = getattr(library, f"{method}Trainer")(
        model=_model(folder),
        reward_funcs=[num_letters, ends],
        args=getattr(library, f"{method}Config")(**settings),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=character_tokenizer(),
        **given,
    )
    if library is not tuneline:
        sampling = Sampling(max_new_tokens=MAX_LENGTH, stop_token_ids=(EOS,))

        def generate(prompt_ids, *_):
            drawn = engine.generate([Request(ids, [0]) for ids in prompt_ids], sampling)
            ids, logprobs = ([getattr(group[0], name) for group in drawn] for name in ("ids", "logprobs"))
            return (ids, logprobs if mismatch else None) if method == "GRPO" else ids

        trainer._generate_single_turn = generate
        trainer.use_vllm = mismatch
    return trainer


def _model(folder: Path) -> PreTrainedModel:
    """From a file, since TRL loads its reference from where the policy came."""
    path = folder / "model"
    if not path.exists():
        tiny_causal_lm().save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


class _Gradients(TrainerCallback):
    """The last gradients that the optimizer was given; weights themselves are rounded too coarsely to compare."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.last = {name: p.grad.clone() for name, p in model.named_parameters()}


def train(library: ModuleType, method: str, folder: Path, **options: Any) -> tuple[Outcome, list[dict[str, float]]]:
    """Loss and gradients of the last update, and the log lines."""
    trainer = make(library, method, folder, **options)
    gradients = _Gradients()
    trainer.add_callback(gradients)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return Outcome(lines[-1]["loss"], gradients.last), lines


def compare(method: str, folder: Path, *, loss_has_constants: bool = False, **options: Any) -> tuple[list, list]:
    """Both libraries' log lines, once losses and the last gradients were found equal."""
    import trl

    own, own_lines = train(tuneline, method, folder, **options)
    theirs, their_lines = train(trl, method, folder, **options)
    for own_line, their_line in zip(own_lines, their_lines, strict=True):
        # the advantages of a group cancel in the loss, which leaves the rounding of terms about 1
        difference = abs(own_line["loss"] - their_line["loss"])
        assert loss_has_constants or difference <= 1e-5 * max(1, abs(their_line["loss"]))
    assert_same(own._replace(loss=theirs.loss), theirs)
    return own_lines, their_lines
