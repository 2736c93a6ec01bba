"""Gates that ask models and tokenizers: see `stages.gates`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stages.gates import Gates
from tuneline.data.formats import maybe_extract_prompt
from tuneline.evaluation.sampling import encode_prompts, sample_completions
from tuneline.logging import get_logger
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.models.loading import load_causal_lm
from tuneline.trainers.experience import ScoredRollout, lay_out_rollouts, sampler_logprobs, support_of
from tuneline.trees import PromptTrees

logger = get_logger(__name__)

NUM_TEXTS = 64
NUM_ROLLOUTS = 32  # of which the trainer is asked once more
_LN_2 = math.log(2)
_NEVER_ENDS = (
    "That is the share of the SFT model's answers that end by themselves; one that does not is cut off, and judged "
    "as it is. Check that the demonstrations end with the tokenizer's end token and are not cut at max_length, allow "
    "longer answers, or lower the limit."
)


def check_tokenizers(
    gates: Gates, policy: PreTrainedTokenizerBase, others: Sequence[PreTrainedTokenizerBase | None], prompts: Any
) -> None:
    """The policy's tokenizer against those of reward models; None stands for a reward that is no model."""
    texts = [_text(prompt) for prompt in prompts["prompt"][:NUM_TEXTS]]
    differences = [one for other in others if other is not None for one in tokenizer_differences(policy, other, texts)]
    if any(other is not None for other in others):
        gates.check(
            "same_tokenizer",
            len(differences),
            f"Policy and reward model do not read alike: {'; '.join(differences) or 'no difference'}. Train the reward "
            "model from the line's SFT model, or set gates.same_tokenizer to false if it may read in its own way.",
        )


def tokenizer_differences(
    own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[str]:
    """In words, what two tokenizers do differently; empty where they read alike."""
    found = []
    words, other_words = own.get_vocab(), other.get_vocab()
    num_different = len(dict(words.items() ^ other_words.items()))
    if num_different:
        found.append(f"{num_different} entries of their vocabularies ({len(words)} and {len(other_words)}) differ")
    if own.eos_token_id != other.eos_token_id:
        ends = (f"{one.eos_token!r} ({one.eos_token_id})" for one in (own, other))
        found.append(f"the end tokens are {' and '.join(ends)}")
    num_other = sum(own(text)["input_ids"] != other(text)["input_ids"] for text in texts)
    if num_other:
        found.append(f"{num_other} of {len(texts)} prompts become other tokens")
    return found


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content") or "") for message in prompt)


def check_ended_answers(
    gates: Gates, model: str, keywords: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: Path, seed: int
) -> None:
    """Sample answers of a model to the first prompts of a Parquet file, and see whether they end."""
    if gates.limits.ended_answers is None or gates.has_passed("ended_answers"):
        return
    read = [
        maybe_extract_prompt(row)
        for row in pq.read_table(rows).slice(0, gates.limits.ended_answers_prompts).to_pylist()
    ]
    policy = load_causal_lm(model, **keywords).to(PartialState().device).eval()
    prepare_for_trees(policy)
    prompts = encode_prompts(tokenizer, {"prompt": [row["prompt"] for row in read]}) if read else []
    longest = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    room = gates.limits.ended_answers_tokens
    if longest is not None:
        prompts = [ids for ids in prompts if len(ids) < longest]
        room = min(room, *(longest - len(ids) for ids in prompts)) if prompts else room
    if not prompts:
        logger.warning("gate ended_answers: %s has no prompt that leaves room for an answer: not checked", rows)
        return
    drawn = sample_completions(
        policy, tokenizer, prompts, max_new_tokens=room, temperature=1.0, seed=seed, batch_size=len(prompts)
    )
    gates.check("ended_answers", sum(group[0].finished for group in drawn) / len(drawn), _NEVER_ENDS)


def gated_dpo(trainer_class: Any, gates: Gates) -> Any:
    """The DPO trainer, looking at its first batch: policy and reference are the same then, so the loss of each pair, as
    the logistic loss has it, is ln 2 whatever `loss_type` says (Rafailov et al. 2023, eq. 7, at a margin of 0)."""

    class GatedDPOTrainer(trainer_class):
        is_first = True

        def loss(self, model: nn.Module, trees: PromptTrees) -> Tensor:
            if self.is_first and self.mode == "train":
                self.is_first = False
                if self.state.global_step == 0:
                    self._check_first(model, trees)
            return super().loss(model, trees)

        @torch.no_grad()
        def _check_first(self, model: nn.Module, trees: PromptTrees) -> None:
            gaps = self.logps(token_logprobs(model, trees).logprobs, trees) - self.ref_logps(trees)
            losses = -F.logsigmoid(self.args.beta * (gaps[::2] - gaps[1::2]))
            worst = self.accelerator.gather((losses - _LN_2).abs().max().reshape(1)).max().item()
            gates.check(
                "dpo_first_loss",
                worst,
                "So far from ln 2 is the loss of a pair before the first update: policy and reference are not the same "
                "model, read the pairs differently, or dropout is on. Start both from one model, recompute stored "
                "reference log-probabilities, or allow more.",
            )

    return GatedDPOTrainer


def gated_online(trainer_class: Any, gates: Gates) -> Any:
    """The online trainer, looking at its first generation: does it end, and do sampler and trainer agree on it?"""

    class GatedOnlineTrainer(trainer_class):
        is_first = True

        def assign_credit(self, rewards: Tensor, group_ids: Tensor, drawn: Any, scored: list[ScoredRollout]) -> Tensor:
            if self.is_first and self.mode == "train":
                self.is_first = False
                if self.state.global_step == 0:
                    self._check_first(scored)
            return super().assign_credit(rewards, group_ids, drawn, scored)

        @torch.no_grad()
        def _check_first(self, scored: list[ScoredRollout]) -> None:
            finished = torch.tensor([float(one.rollout.is_finished) for one in scored])
            gates.check("ended_answers", self.collector.of_all(finished).mean().item(), _NEVER_ENDS)
            differences = self._differences(scored)
            known = self.collector.of_all(differences[~differences.isnan()])
            if not len(known):
                logger.warning("gate logprob_difference: the sampler gave no log-probabilities: not checked")
                return
            gates.check(
                "logprob_difference",
                known.mean().item(),
                "So far apart are sampler and trainer about tokens that were just drawn, on average: the sampler has "
                "other weights, another precision or another temperature, and what is learned is not about the policy. "
                "Compare dtype and weights of the rollout engine, or allow more.",
            )

        def _differences(self, scored: list[ScoredRollout]) -> Tensor:
            """(targets,) |trainer - sampler| of this process's first rollouts; NaN where the sampler said nothing."""
            some = [one for one in scored if one.num_targets][:NUM_ROLLOUTS]
            if not some:
                return torch.empty(0)
            rollouts = [one.rollout for one in some]
            told = torch.cat([sampler_logprobs(one, self.sampling.cuts_support) for one in rollouts])
            if all("old_logprobs" in one.by_target for one in some):
                return (torch.cat([one.by_target["old_logprobs"] for one in some]) - told).abs()
            policy = self.model_wrapped if self.is_deepspeed_enabled else self.model
            was_training = policy.training
            policy.eval()
            trees, support = lay_out_rollouts(rollouts).to(self.args.device), support_of(rollouts)
            support = None if support is None else support.to(self.args.device)
            with self.compute_loss_context_manager():
                own = token_logprobs(policy, trees, temperature=self.sampling.temperature, support=support).logprobs
            policy.train(was_training)
            return (own.cpu() - told).abs()

    return GatedOnlineTrainer
