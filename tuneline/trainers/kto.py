"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306): completions labelled desirable or not.

The reference point is the policy's divergence from the reference, estimated from prompts with the completions of other
rows. Deviation from TRL: these rows, and the mean, are those of the whole optimizer step and not of a micro-batch, so
that results do not depend on how the step was cut; with one micro-batch a step the two are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from tuneline.data.multimodal_rendering import ProcessingClass
from tuneline.data.tokenize import Tokenized
from tuneline.errors import ConfigError
from tuneline.logging import get_logger
from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.losses.unpaired import divergence_from_mismatches, kto_loss
from tuneline.trainers.base import Rows
from tuneline.trainers.collators import Row, collate_completions
from tuneline.trainers.kto_config import KTOConfig
from tuneline.trainers.unpaired import UnpairedTrainer
from tuneline.tree_images import TreeImages
from tuneline.trees import PromptTrees

logger = get_logger(__name__)

MISMATCHED = "KL_completion_ids"  # the completion of another row
_MOST_IMBALANCE = 4 / 3  # of the weighted numbers of desirable and undesirable rows, the paper's eq. 8


@dataclass(frozen=True)
class KTOBatch:
    """A micro-batch: prompts with their completions and, for the divergence, with those of other rows."""

    trees: PromptTrees  # columns: label (sequences,)
    mismatched: PromptTrees | None

    def __len__(self) -> int:
        return len(self.trees)

    @property
    def sequence_lengths(self) -> Tensor:
        """(sequences,), of what is trained on."""
        return self.trees.sequence_lengths

    @property
    def num_tokens(self) -> int:
        return self.trees.num_tokens

    def to(self, device: torch.device | str, non_blocking: bool = False) -> KTOBatch:
        mismatched = self.mismatched and self.mismatched.to(device, non_blocking)
        return KTOBatch(self.trees.to(device, non_blocking), mismatched)

    def pin_memory(self) -> KTOBatch:
        return KTOBatch(self.trees.pin_memory(), self.mismatched and self.mismatched.pin_memory())

    def first(self, num_trees: int) -> KTOBatch:
        return KTOBatch(self.trees.first(num_trees), self.mismatched and self.mismatched.first(num_trees))

    def with_images(self, images: TreeImages) -> KTOBatch:
        """The images are those of the prompts, which completions of other rows follow too."""
        return KTOBatch(self.trees.with_images(images), self.mismatched and self.mismatched.with_images(images))


def collate_with_mismatches(rows: Sequence[Row]) -> KTOBatch:
    """Rows of `prompt_ids`, `completion_ids` and `label`, and `KL_completion_ids` where the loss needs them."""
    mismatched = collate_completions(rows, MISMATCHED) if MISMATCHED in rows[0] else None
    return KTOBatch(collate_completions(rows), mismatched)


class KTOTrainer(UnpairedTrainer):
    """Preference optimization from labels of single completions; the items are completions.

    Args:
        model: a name or folder, a model, or a PEFT model.
        ref_model: the reference; see `ReferencedTrainer`.
        train_dataset, eval_dataset: rows with `prompt`, `completion` and `label` (bool), or preferences (`chosen`,
            `rejected`, `prompt` if any), which are taken apart; standard or conversational. Those with `images` or
            `image` need a vision-language model.

    Raises:
        ConfigError, DataError, ModelError: before any training.
    """

    config_class = KTOConfig
    takes_images = True
    collate = staticmethod(collate_with_mismatches)
    args: KTOConfig
    kl: Tensor | None = None  # (), of the optimizer step, or of the batch in evaluation

    def tokenize(self, rows: Rows, tokenizer: ProcessingClass, args: KTOConfig, is_training: bool) -> Tokenized:
        tokenized = super().tokenize(rows, tokenizer, args, is_training)
        if is_training and isinstance(tokenized.dataset, Dataset):
            warn_of_imbalance(tokenized.dataset["label"], args)
        if not args.estimates_divergence:
            return tokenized
        together = args.rows_of_a_step if is_training else args.per_device_eval_batch_size * args.world_size
        if together == 1:
            raise ConfigError("the loss 'kto' cannot evaluate one row at a time; raise per_device_eval_batch_size.")
        return tokenized._replace(dataset=with_mismatches(tokenized.dataset, together))

    def num_items(self, batch: KTOBatch) -> int:
        return batch.trees.num_sequences

    def count_step(self, batches: list[KTOBatch]) -> None:
        if not self.args.estimates_divergence:
            return
        policy = self.model_wrapped
        was_training = policy.training
        policy.eval()  # no dropout in an estimate
        mismatched = [batch.mismatched for batch in batches if batch.mismatched is not None]
        ratios = [self._mismatched_log_ratios(policy, trees.to(self.args.device)) for trees in mismatched]
        policy.train(was_training)
        found = torch.cat(ratios) * self._counted
        own = torch.stack([found.sum(), found.new_tensor(float(len(found) * self._counted))])
        self.kl = divergence_from_mismatches(*self.accelerator.reduce(own, "sum"))

    @torch.no_grad()
    def _mismatched_log_ratios(self, policy: nn.Module, trees: PromptTrees) -> Tensor:
        """(sequences,): log-ratios of policy and reference."""
        with self.compute_loss_context_manager():
            logps = sum_by_sequence(token_logprobs(policy, trees).logprobs, trees)
            return logps - self.ref_logps(trees, "ref_KL_logps")

    def loss(self, model: nn.Module, batch: KTOBatch) -> Tensor:
        trees = batch.trees
        answers = token_logprobs(
            model, trees, with_entropy=True, with_aux_loss=self.args.router_aux_loss_coef is not None
        )
        logps = sum_by_sequence(answers.logprobs, trees)
        is_desirable = trees.columns["label"].bool()
        kl = torch.zeros_like(logps[0]) if self.kl is None else self.kl
        found = kto_loss(
            logps,
            self.ref_logps(trees, "ref_logps"),
            is_desirable,
            kl,
            beta=self.args.beta,
            loss_type=self.args.loss_type,
            desirable_weight=self.args.desirable_weight,
            undesirable_weight=self.args.undesirable_weight,
        )
        self.record({"kl": kl})
        self.record_completions(answers, logps, found.rewards, is_desirable, trees)
        return self.add_aux_loss(found.losses, answers.aux_loss)

    def reference_columns(self, model: nn.Module, batch: KTOBatch) -> dict[str, Tensor]:
        asked = {"ref_logps": batch.trees, "ref_KL_logps": batch.mismatched}
        return {
            name: sum_by_sequence(token_logprobs(model, trees).logprobs, trees)
            for name, trees in asked.items()
            if trees is not None
        }


def with_mismatches(rows: Any, together: int) -> Any:
    """Rows with the completion of the row before as `KL_completion_ids`, in turns within blocks of `together` rows.

    Among the rows of a block the completions are so the same with their own prompts and with others.
    """
    if isinstance(rows, Dataset) and len(rows) % together == 1:
        logger.warning(
            "%d rows in steps of %d leave one alone in the last, whose divergence can only be estimated from itself; "
            "leave out a row.",
            len(rows),
            together,
        )
    return rows.map(_turn_completions, batched=True, batch_size=together)


def _turn_completions(batch: dict[str, list]) -> dict[str, list]:
    completions = batch["completion_ids"]
    return batch | {MISMATCHED: completions[-1:] + completions[:-1]}


def warn_of_imbalance(labels: Sequence[bool], args: KTOConfig) -> None:
    """Tell where one kind of rows outweighs the other more than the paper found to work."""
    desirable = sum(map(bool, labels))
    undesirable = len(labels) - desirable
    if not desirable or not undesirable:
        return
    ratio = args.desirable_weight * desirable / max(args.undesirable_weight * undesirable, 1e-12)
    if desirable != undesirable and not 1 <= ratio <= _MOST_IMBALANCE:
        even = args.undesirable_weight * undesirable / desirable
        logger.warning(
            "%d desirable and %d undesirable rows, weighted, are as %.2f to 1, and 1 to 1.33 is advised; set "
            "desirable_weight between %.3g and %.3g.",
            desirable,
            undesirable,
            ratio,
            even,
            even * _MOST_IMBALANCE,
        )
