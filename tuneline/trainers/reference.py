"""The reference policy, in each of the shapes it can take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from tuneline.errors import ConfigError
from tuneline.logprobs import token_logprobs
from tuneline.models.adapters import REFERENCE_ADAPTER, active_adapter, adapters_off, add_adapter_beside
from tuneline.models.layouts import policy_of, prepare_for_trees, unwrapped
from tuneline.models.saved_names import take_saved_names
from tuneline.trees import PromptTrees


def add_reference_adapter(model: PeftModel) -> None:
    """Keep a frozen copy of the adapter that training goes on from: the reference is the model as it came."""
    active = model.active_adapter
    try:
        add_adapter_beside(model, REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[active]), trains=False)
    except ValueError as error:  # of kinds that a layer can have once only, such as LoRA's target_parameters
        raise ConfigError(
            f"the adapter that training goes on from cannot be kept beside itself as the reference: {error} Set "
            "precompute_ref_log_probs=True, or merge it and add a new one."
        ) from error
    for name, parameter in list(model.named_parameters()):
        if f".{active}." in name:
            model.get_parameter(name.replace(f".{active}.", f".{REFERENCE_ADAPTER}.")).data.copy_(parameter.data)


def reference_of(policy: Any, continues_adapter: bool) -> Any:
    """The reference where none is given: a frozen copy of the policy. None where the policy's own base stands for it,
    without its new adapter, or with a frozen copy of an adapter that training goes on from."""
    if continues_adapter:
        add_reference_adapter(policy)
    return None if isinstance(policy, PeftModel) else frozen_copy(policy)


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


class Reference:
    """What the reference policy says of the targets of a batch.

    It is a model of its own, or, where none is given, the policy's own base: adapters off, or the adapter named `ref`.
    """

    def __init__(self, model: nn.Module | None, trainer: Trainer):
        self.trainer = trainer
        self.model = model
        if model is not None:
            prepare_for_trees(model)
            model.eval().requires_grad_(False)
            self.model = _prepared(model, trainer)

    @torch.no_grad()
    def logprobs(self, trees: PromptTrees, temperature: float = 1.0, support: Tensor | None = None) -> Tensor:
        """(targets,), float32; see `token_logprobs`."""
        if self.model is not None:
            return token_logprobs(self.model, trees, temperature=temperature, support=support).logprobs
        # Not DDP's wrapper, which would wait for the other processes: in evaluation they may have less to ask.
        wrapped = self.trainer.model_wrapped if self.trainer.is_deepspeed_enabled else self.trainer.model
        with _as_reference(policy_of(wrapped)):
            return token_logprobs(wrapped, trees, temperature=temperature, support=support).logprobs

    def callable_model(self) -> tuple[nn.Module, Callable[[], AbstractContextManager[None]]]:
        """A model to draw from, unwrapped, and what makes it the reference while it is called.

        Raises:
            ConfigError: its weights are spread over processes.
        """
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            raise ConfigError(
                "this method draws completions from its reference, whose weights are spread over processes here; train "
                "with DDP."
            )
        if self.model is not None:
            return unwrapped(self.model), nullcontext
        policy = policy_of(self.trainer.model)
        return policy, lambda: _as_reference(policy)


@contextmanager
def _as_reference(policy: PeftModel) -> Iterator[None]:
    was_training = policy.training
    policy.eval()
    try:
        has_own = REFERENCE_ADAPTER in policy.peft_config
        with active_adapter(policy, REFERENCE_ADAPTER) if has_own else adapters_off(policy):
            yield
    finally:
        policy.train(was_training)


def _prepared(model: nn.Module, trainer: Trainer) -> nn.Module:
    """The reference sharded or placed as the policy is."""
    if trainer.is_deepspeed_enabled:
        raise ConfigError(
            "a reference model of its own is not supported under DeepSpeed; set precompute_ref_log_probs=True, or use "
            "FSDP."
        )
    return trainer.accelerator.prepare_model(model, evaluation_mode=True)


class SyncReference(TrainerCallback):
    """Move the reference towards the policy every few steps (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656, eq. 8).

    Checkpoints carry the moved reference, so that a resumed run goes on from it.
    """

    def __init__(self, reference: PreTrainedModel, *, alpha: float, every: int):
        self.reference, self.alpha, self.every = reference, alpha, every
        take_saved_names(reference)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            policy = policy_of(model)
            torch._foreach_lerp_(list(self.reference.parameters()), list(policy.parameters()), self.alpha)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.reference.save_pretrained(self._folder(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        weights = self._folder(args, state) / "model.safetensors"
        if not weights.is_file():
            raise ConfigError(
                f"cannot resume with sync_ref_model=True: {weights} is missing, so the moved reference is lost."
            )
        load_model(self.reference, weights)

    @staticmethod
    def _folder(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "reference"


class SyncRefModelCallback(SyncReference):
    """`SyncReference` by TRL's name and arguments: how far and how often it moves stands in the trainer's options,
    `ref_model_mixup_alpha` and `ref_model_sync_steps`. `sync_ref_model=True` adds the same by itself.

    Args:
        ref_model: the reference that the trainer was given.
        accelerator: accepted; the policy is found without it.

    Raises:
        ConfigError: on training, options without those two, or a reference that is not built as the policy is.
    """

    def __init__(self, ref_model: PreTrainedModel, accelerator: Accelerator | None):
        super().__init__(ref_model, alpha=0.0, every=1)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        names = {one.name for one in fields(args)}
        if not {"ref_model_mixup_alpha", "ref_model_sync_steps"} <= names:
            raise ConfigError(
                f"SyncRefModelCallback reads ref_model_mixup_alpha and ref_model_sync_steps, and {type(args).__name__} "
                "has neither: this trainer holds no reference."
            )
        policy, reference = (
            [one.shape for one in module.parameters()] for module in (policy_of(model), self.reference)
        )
        if policy != reference:
            raise ConfigError(
                "SyncRefModelCallback moves a reference towards the policy weight by weight, and theirs differ; with "
                "an adapter the reference is the base, which stays."
            )
        self.alpha, self.every = args.ref_model_mixup_alpha, args.ref_model_sync_steps
        super().on_train_begin(args, state, control)
