"""Kullback-Leibler divergence of a policy from its reference, estimated on completions that the policy sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tuneline.attention import Segments, reading_trees
from tuneline.heads import TargetHead
from tuneline.logprobs import sum_by_sequence
from tuneline.models.layouts import base_model, output_head
from tuneline.models.padded import padded_logits
from tuneline.trees import Branch, PromptTrees, Tree, lay_out

_LOGITS_AT_ONCE = 2**25  # of each model; 128 MiB in float32


@dataclass(frozen=True)
class Sampled:
    """A prompt and what the policy answered at temperature 1."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]


class Divergences(NamedTuple):
    """One value a sequence, in nats; the mean of either over sequences estimates the same KL(policy || reference)."""

    log_ratios: list[float]  # log policy(completion) - log reference(completion): unbiased, may be negative
    exact: list[float]  # sum over tokens of the KL of the two next-token distributions: never negative, less variance


@torch.inference_mode()
def kl_divergences(policy: nn.Module, reference: nn.Module, sampled: Sequence[Sampled]) -> Divergences:
    """What each sampled completion says of KL(policy || reference) over completions.

    By the chain rule E[sum over t of KL(policy(. | y_<t) || reference(. | y_<t))] equals
    E[log policy(y) - log reference(y)] for y from the policy; the former sums out each token instead of taking the one
    drawn. Completions cut off at a length give the divergence up to that length.

    Args:
        policy, reference: causal language models with one vocabulary that went through `prepare_for_trees`, in eval
            mode.
    """
    log_ratios: list[float] = [0.0] * len(sampled)
    exact: list[float] = [0.0] * len(sampled)
    for numbers in _batches(sampled, max(1, _LOGITS_AT_ONCE // base_model(policy).config.get_text_config().vocab_size)):
        trees = lay_out([Tree(sampled[i].prompt_ids, [Branch(sampled[i].completion_ids)]) for i in numbers])
        trees = trees.to(next(policy.parameters()).device)
        log_p = target_logits(policy, trees).float().log_softmax(-1)
        log_q = target_logits(reference, trees).float().log_softmax(-1)
        drawn = (log_p - log_q).gather(1, trees.target_ids[:, None])[:, 0]
        token_kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        ratios, kls = sum_by_sequence(drawn.double(), trees), sum_by_sequence(token_kl.double(), trees)
        for i, ratio, kl in zip(numbers, ratios.tolist(), kls.tolist(), strict=True):
            log_ratios[i], exact[i] = ratio, kl
    return Divergences(log_ratios, exact)


def target_logits(model: nn.Module, trees: PromptTrees) -> Tensor:
    """(targets, vocab): the logits that predict each target, for batches small enough to hold them."""
    if not isinstance(output_head(model), TargetHead):
        return padded_logits(model, trees)
    with reading_trees():
        output = model(
            input_ids=trees.input_ids,
            position_ids=trees.position_ids,
            segments=Segments(trees.segments, trees.num_tokens),
            logits_to_keep=trees.target_positions,
            use_cache=False,
        )
    return output.logits[0]


def _batches(sampled: Sequence[Sampled], num_tokens: int) -> Iterator[list[int]]:
    """Numbers of the samples with a completion, in order: as many as have `num_tokens` in all, at least one."""
    batch: list[int] = []
    taken = 0
    for i, sample in enumerate(sampled):
        length = len(sample.prompt_ids) + len(sample.completion_ids)
        if not sample.completion_ids:
            continue
        if batch and taken + length > num_tokens:
            yield batch
            batch, taken = [], 0
        batch.append(i)
        taken += length
    if batch:
        yield batch
