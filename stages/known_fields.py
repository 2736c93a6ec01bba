"""Checks `training:`, `peft:`, `model.init:`, synthetic tasks and rewards against the code that defines them.

These classes import torch, which takes seconds. So they are asked in a process of its own, and what was found valid is
remembered in .work/checked, by the settings, the versions of the libraries and the sources of the classes.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.schema import ONLINE_STAGES, TRAINING_STAGES
from stages.settings_errors import MISSING, SettingError, is_secret
from tuneline.errors import StageError

_CODE = Path(__file__).parent.parent
_SOURCES = (
    "tuneline/trainers/*_config.py",
    "tuneline/models/tiny.py",
    "tuneline/data/synthetic_tasks.py",
    "tuneline/rewards/*.py",
    "stages/known_fields.py",
)

# What a stage sets itself, and what it never lets a config turn on.
_NOT_SETTABLE = {
    "output_dir": "the stage sets it",
    "report_to": "stages write metrics.jsonl, which MLflow is fed from",
    "run_name": "the stage sets it",
    "project": "the stage sets it",
    "disable_tqdm": "the stage sets it",
    "resume_from_checkpoint": "a stage goes on from its last checkpoint by itself",
    "do_train": "the stage sets it",
    "do_eval": "the stage sets it",
    "do_predict": "the stage sets it",
    "push_to_hub": "models are versioned by DVC",
    "trust_remote_code": "code that comes with a model is never run",
    "model_init_kwargs": "the model section sets them",
    "chat_template_path": "set model.chat_template",
    "reward_weights": "each of the section's rewards has its weight",
    "log_completions": "the stage keeps all rollouts, in reports/STAGE/rollouts/rollouts.parquet",
    "num_sample_generations": "the stage keeps all rollouts, in reports/ppo/rollouts/rollouts.parquet",
    "sft_model_path": "the policy starts from models/sft",
    "reward_model_path": "name it in ppo.rewards",
}


def unknown_fields(settings: dict[str, Any], already: Iterable[str], root: Path) -> list[SettingError]:
    """What the classes refuse. Sections of another shape are left to the schema.

    Args:
        settings: the config as it was read.
        already: paths that the schema refused; a class that fields seem to be misplaced from is asked for them.
        root: the checkout.
    """
    return _ask([_asked(settings, already)], root)[0]


def remember_valid_fields(many: Iterable[dict[str, Any]], root: Path) -> None:
    """Asks about several configs in one process: for those that are valid, `unknown_fields` need not ask again."""
    _ask([_asked(settings, ()) for settings in many], root)


def _ask(many: list[dict[str, Any]], root: Path) -> list[list[SettingError]]:
    keys = [_key(asked) for asked in many]
    by_key = dict(zip(keys, many, strict=True))
    folder = root / ".work" / "checked"
    to_ask = [key for key in by_key if not (folder / key).is_file()]
    found: dict[str, list[SettingError]] = {key: [] for key in by_key}
    if to_ask:
        answer = subprocess.run(
            [sys.executable, "-m", "stages.known_fields"],
            input=json.dumps([by_key[key] for key in to_ask], default=str),
            capture_output=True,
            text=True,
            cwd=_CODE,
            check=False,
        )
        if answer.returncode != 0:
            raise StageError(f"the config could not be checked:\n{answer.stderr.strip()[-2000:]}")
        for key, errors in zip(to_ask, json.loads(answer.stdout), strict=True):
            found[key] = [SettingError(**{**error, "value": error.get("value", MISSING)}) for error in errors]
    for key in to_ask:
        if not found[key]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / key).touch()
    return [found[key] for key in keys]


def _asked(settings: dict[str, Any], already: Iterable[str]) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name in TRAINING_STAGES:
        section = settings.get(name)
        if isinstance(section, dict):
            for part in ("training", "peft"):
                asked[f"{name}.{part}"] = section.get(part) if isinstance(section.get(part), dict) else None
    model, prepare = settings.get("model"), settings.get("prepare")
    asked["model.init"] = model.get("init") if isinstance(model, dict) and isinstance(model.get("init"), dict) else None
    for name in ("demonstrations", "preferences", "prompts", "test"):
        source = prepare.get(name) if isinstance(prepare, dict) else None
        synthetic = source.get("synthetic") if isinstance(source, dict) else None
        if isinstance(synthetic, dict):
            asked[f"prepare.{name}.synthetic.tasks"] = synthetic.get("tasks")
    asked["method"], asked["rewards"] = "grpo", {}
    for stage in ONLINE_STAGES:
        section = settings.get(stage)
        rewards = section.get("rewards") if isinstance(section, dict) else None
        for number, reward in enumerate(rewards if isinstance(rewards, list) else []):
            options = reward.get("options", {}) if isinstance(reward, dict) else None
            if isinstance(options, dict) and isinstance(reward.get("name"), str):
                asked["rewards"][f"{stage}.rewards.{number}"] = {"name": reward["name"], "options": options}
    if isinstance(settings.get("grpo"), dict):
        asked["method"] = settings["grpo"].get("method", "grpo")
    for stage in ("ppo", "evaluate", "collect"):
        section = settings.get(stage)
        if isinstance(section, dict) and isinstance(section.get("verifier"), str):
            asked["rewards"][f"{stage}.verifier"] = {"name": section["verifier"], "options": {}}
    refused = [path.split(".") for path in already]
    asked["misplaced"] = {
        f"{stage}.{name}": settings[stage][name]
        for stage, name in (path for path in refused if len(path) == 2)
        if stage in TRAINING_STAGES and isinstance(settings[stage], dict) and name in settings[stage]
    }
    return asked


def _key(asked: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode())
    for package in ("torch", "transformers", "accelerate", "peft"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    for pattern in _SOURCES:
        for path in sorted(_CODE.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Below: the process that imports the classes.


def find_errors(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Errors as the fields of `SettingError`, a missing value left out."""
    from peft import LoraConfig

    from tuneline import DPOConfig, GRPOConfig, PPOConfig, RewardConfig, RLOOConfig, SFTConfig

    config_classes: dict[str, Any] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "ppo": PPOConfig}
    config_classes["grpo"] = RLOOConfig if asked["method"] == "rloo" else GRPOConfig
    for name, config_class in config_classes.items():
        training, lora = asked.get(f"{name}.training"), asked.get(f"{name}.peft")
        if training is not None:
            yield from _training_errors(f"{name}.training", training, config_class)
        if lora is not None:
            yield from _field_errors(f"{name}.peft", lora, LoraConfig, {})
    if asked["model.init"] is not None:
        yield from _init_errors(asked["model.init"])
    yield from _task_errors(asked)
    yield from _reward_errors(asked["rewards"])
    for path in asked["misplaced"]:
        section, name = path.split(".")
        if name in config_classes[section].__dataclass_fields__:
            value = asked["misplaced"][path]
            yield {"path": path, "value": value, "reason": "no such setting", "nearest": f"{section}.training.{name}"}


def _training_errors(path: str, values: dict[str, Any], config_class: Any) -> Iterator[dict[str, Any]]:
    errors = list(_field_errors(path, values, config_class, _NOT_SETTABLE))
    yield from errors
    if errors:
        return
    import torch

    here = {} if torch.cuda.is_available() else {"use_cpu": True}  # a config for a GPU can be checked without one
    try:
        config_class(**{"output_dir": ".work", "report_to": "none", **values, **here})
    except Exception as error:  # whatever the classes raise about their options
        yield {"path": path, "reason": " ".join(str(error).split())}


def _field_errors(
    path: str, values: dict[str, Any], config_class: Any, refused: dict[str, str]
) -> Iterator[dict[str, Any]]:
    from typing import get_args, get_origin, get_type_hints

    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(config_class)
    names = [name for name, field in config_class.__dataclass_fields__.items() if field.init]
    for name, value in values.items():
        error = {"path": f"{path}.{name}", "value": value}
        if name in refused or name.startswith(("hub_", "push_to_hub")):
            yield {**error, "reason": f"cannot be set here: {refused.get(name, 'models are versioned by DVC')}"}
        elif name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
            yield {**error, "reason": f"{config_class.__name__} has no such option", "nearest": near[0] if near else ""}
        elif is_secret(name) and isinstance(value, str) and name not in ("eos_token", "pad_token"):
            yield {**error, "reason": "a secret is given by the environment, never by a config"}
        else:
            hint = hints[name]
            hint = hint | get_args(hint)[0] if get_origin(hint) is list else hint  # loss_type: sigmoid
            try:
                TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
            except ValidationError as invalid:
                reasons = dict.fromkeys(one["msg"][0].lower() + one["msg"][1:] for one in invalid.errors())
                yield {**error, "reason": ", or ".join(reasons)}


def _init_errors(init: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from tuneline.errors import ConfigError
    from tuneline.models.tiny import make_model

    # One layer shows whether sizes fit; a list of layers' types has to have as many as there are.
    layers = {"num_hidden_layers": 1} if "num_hidden_layers" in init and "layer_types" not in init else {}
    try:
        make_model({**init, **layers}, seed=0, texts=[])
    except ConfigError as error:
        yield {"path": "model.init", "reason": str(error).removeprefix("model.init: ")}


def _task_errors(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from tuneline.data.synthetic_tasks import TASKS

    for path, tasks in asked.items():
        if path.endswith(".synthetic.tasks") and isinstance(tasks, list):
            for task in tasks:
                if task not in TASKS:
                    near = difflib.get_close_matches(str(task), TASKS, n=1, cutoff=0.6)
                    reason = f"no such task; there are {', '.join(TASKS)}"
                    yield {"path": path, "value": task, "reason": reason, "nearest": near[0] if near else ""}


def _reward_errors(rewards: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from tuneline.errors import TunelineError
    from tuneline.rewards import get_reward

    for path, reward in rewards.items():
        try:
            get_reward(reward["name"], **reward["options"])
        except (TunelineError, ImportError) as error:
            yield {"path": path, "value": reward["name"], "reason": " ".join(str(error).split())}


if __name__ == "__main__":
    import logging

    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):  # a module with rewards of the user's may print as it is imported
        answer = [list(find_errors(asked)) for asked in json.load(sys.stdin)]
    json.dump(answer, sys.stdout)
