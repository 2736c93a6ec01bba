"""`python -m benchmarks.roles`: the memory of the four roles of PPO, as models of their own and as adapters of one.

The same PPO steps, with the same adapters trained, in a process each: policy, value function, reward and reference on
four copies of a base model, or on one. Weights are counted by their storages, the peak is the process's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tuneline import PPOConfig, PPOTrainer
from tuneline.models.tiny import make_model
from tuneline.rewards import RewardAdapter

SIZES = dict(num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=True)


def weights_in_memory(*modules: nn.Module) -> int:
    """Bytes of all parameters, each storage once."""
    storages = [p.untyped_storage() for module in modules for p in module.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def lora(task: str) -> LoraConfig:
    return LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type=task)


def prepare(folder: Path, hidden_size: int, num_layers: int) -> None:
    """Write a base model and a reward adapter on it."""
    sizes = {**SIZES, "hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": num_layers}
    model, tokenizer = make_model({"model_type": "llama", **sizes}, seed=0)
    model.save_pretrained(folder / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    get_peft_model(classifier, lora("SEQ_CLS")).save_pretrained(folder / "reward")
    for name in ("base", "reward"):
        tokenizer.save_pretrained(folder / name)


def load_reward(folder: Path) -> PeftModel:
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    return PeftModel.from_pretrained(classifier, folder / "reward")


def measure(folder: Path, kind: str, num_steps: int) -> dict[str, float]:
    """Weights in memory and the peak of this process, in MiB."""
    base, roles = folder / "base", {}
    if kind == "adapters":
        roles = {"reward_funcs": RewardAdapter(folder / "reward"), "value_model": str(folder / "reward")}
    else:
        value = load_reward(folder)
        for name, parameter in value.named_parameters():
            parameter.requires_grad_("lora_" in name or ".score.modules_to_save." in name)
        reference = AutoModelForCausalLM.from_pretrained(base)
        roles = {"reward_model": load_reward(folder), "value_model": value, "ref_model": reference}
    arguments = PPOConfig(
        str(folder / kind), per_device_train_batch_size=8, response_length=64, max_steps=num_steps, num_ppo_epochs=1,
        value_function="adapter" if kind == "adapters" else "model", report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    trainer: Any = PPOTrainer(
        arguments,
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list([{"prompt": "memory of four roles, row " + str(i)} for i in range(64)]),
        peft_config=lora("CAUSAL_LM"),
        **roles,
    )
    trainer.train()
    own = (roles[name] for name in ("reward_model", "ref_model") if name in roles)
    weights = weights_in_memory(trainer.model, *own)
    return {"weights": weights / 2**20, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roles", description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, kind = arguments.measure
        print(json.dumps(measure(Path(folder), kind, arguments.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="roles-") as temporary:
        prepare(Path(temporary), arguments.hidden_size, arguments.layers)
        print(f"{'':16}{'weights':>12}{'peak':>12}   MiB")
        for kind, label in (("models", "four models"), ("adapters", "one base model")):
            command = [sys.executable, "-m", "benchmarks.roles", "--steps", str(arguments.steps)]
            done = subprocess.run([*command, "--measure", temporary, kind], check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{label:16}{found['weights']:12.0f}{found['peak']:12.0f}")


if __name__ == "__main__":
    main()
