"""Binary Classifier Optimization (Jung et al. 2024, arXiv:2404.04656): the implicit reward as a classifier of labels.

Rewards are read against their running mean. Deviation from TRL: the mean takes in the rewards of a whole optimizer step
before its losses are computed, and not those of each micro-batch, so that results do not depend on how the step was
cut; where a step has several micro-batches that is one forward pass more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from tuneline.data.tokenize import Tokenized
from tuneline.errors import ConfigError
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.unpaired import bco_loss
from tuneline.running_moments import RunningMoments
from tuneline.trainers.base import Rows, reject_compute_metrics
from tuneline.trainers.bco_config import BCOConfig
from tuneline.trainers.collators import Row, collate_completions
from tuneline.trainers.density_ratio import DENSITY_RATIO, DensityRatio, PromptEmbeddings
from tuneline.trainers.offline import only_one
from tuneline.trainers.unpaired import UnpairedTrainer, unpaired
from tuneline.trees import PromptTrees


class BCOTrainer(UnpairedTrainer):
    """Preference optimization from labels of single completions; the items are completions.

    Args:
        model: a name or folder, a model, or a PEFT model; or `model_init`, which makes one.
        ref_model: the reference; see `ReferencedTrainer`.
        train_dataset, eval_dataset: rows with `prompt`, `completion` and `label` (bool), or preferences (`chosen`,
            `rejected`, `prompt` if any), which are taken apart; standard or conversational.
        embedding_func: where prompts of desirable and undesirable rows differ, a frozen model that takes `input_ids`
            and `attention_mask` and gives (prompts, dimensions); undesirable rows are then weighted. Needs
            `embedding_tokenizer`.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    config_class = BCOConfig
    collate = staticmethod(collate_completions)
    args: BCOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | None = None,
        ref_model: PreTrainedModel | None = None,
        args: BCOConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        processing_class: Any = None,
        data_collator: Callable[[list[Row]], PromptTrees] | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: None = None,
        peft_config: PeftConfig | None = None,
        compute_metrics: None = None,
        embedding_func: Callable[..., Tensor] | None = None,
        embedding_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        reject_compute_metrics(compute_metrics, preprocess_logits_for_metrics)
        if (embedding_func is None) != (embedding_tokenizer is None):
            missing = "embedding_func" if embedding_func is None else "embedding_tokenizer"
            raise ConfigError(f"embedding_func and embedding_tokenizer go together; {missing} is missing.")
        if embedding_func is not None and train_dataset is None:
            raise ConfigError("embedding_func is compared with the prompts of a train_dataset, and none is given.")
        self._embedding = (embedding_func, embedding_tokenizer)
        self._rows_to_fit = train_dataset
        self._density_ratio: DensityRatio | None = None
        self.running = RunningMoments()
        self._step_is_counted = False  # whether `running` has the rewards of this optimizer step
        super().__init__(
            only_one(model, model_init),
            ref_model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        del self._rows_to_fit
        self.add_callback(_RunningState(self.running))

    def tokenize(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, args: BCOConfig, is_training: bool) -> Tokenized:
        rows = unpaired(rows, args.dataset_num_proc)
        embed, embedding_tokenizer = self._embedding
        if embed is not None and embedding_tokenizer is not None:
            if self._density_ratio is None:
                size = args.per_device_train_batch_size
                self._density_ratio = DensityRatio(
                    unpaired(self._rows_to_fit, args.dataset_num_proc),
                    PromptEmbeddings(embed, embedding_tokenizer, tokenizer, size, args.device),
                    sample_size=args.prompt_sample_size,
                    bounds=(args.min_density_ratio, args.max_density_ratio),
                    seed=args.seed,
                )
            rows = self._density_ratio.added_to(rows)
        return super().tokenize(rows, tokenizer, args, is_training)

    def num_items(self, trees: PromptTrees) -> int:
        return trees.num_sequences

    def count_step(self, batches: list[PromptTrees]) -> None:
        self._step_is_counted = self.mode == "eval"
        if self._step_is_counted or len(batches) == 1:
            return  # of one micro-batch the rewards are at hand when its loss is computed
        policy = self.model_wrapped
        was_training = policy.training
        policy.eval()
        rewards = []
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in batches:
                trees = batch.to(self.args.device)
                logps = sum_by_sequence(token_logprobs(policy, trees).logprobs, trees)
                rewards.append(self.args.beta * (logps - self.ref_logps(trees, "ref_logps")))
        policy.train(was_training)
        self._count(torch.cat(rewards))

    def _count(self, rewards: Tensor) -> None:
        self.running.update(rewards.detach(), lambda sums: self.accelerator.reduce(sums, "sum"))
        self._step_is_counted = True

    def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
        answers = token_logprobs(
            model, trees, with_entropy=True, with_aux_loss=self.args.router_aux_loss_coef is not None
        )
        logps = sum_by_sequence(answers.logprobs, trees)
        ref_logps = self.ref_logps(trees, "ref_logps")
        if not self._step_is_counted:
            self._count(self.args.beta * (logps - ref_logps))
        is_desirable = trees.columns["label"].bool()
        ratios = trees.columns.get(DENSITY_RATIO)
        delta = logps.new_tensor(self.running.mean)
        found = bco_loss(logps, ref_logps, is_desirable, delta, beta=self.args.beta, density_ratios=ratios)
        self.record({"delta": delta})
        self.record_completions(answers, logps, found.rewards, is_desirable, trees)
        return self.add_aux_loss(found.losses, answers.aux_loss)

    def reference_columns(self, model: nn.Module, trees: PromptTrees) -> dict[str, Tensor]:
        return {"ref_logps": sum_by_sequence(token_logprobs(model, trees).logprobs, trees)}


class _RunningState(TrainerCallback):
    """Checkpoints carry the running mean, so that a resumed run goes on from it."""

    def __init__(self, running: RunningMoments):
        self.running = running

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._path(args, state).write_text(json.dumps(self.running.state_dict()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        path = self._path(args, state)
        if not path.is_file():
            raise ConfigError(f"cannot resume: {path} is missing, which holds the running mean of the rewards.")
        self.running.load_state_dict(json.loads(path.read_text()))

    @staticmethod
    def _path(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "running.json"
