"""Divergence of a student from a teacher at the targets of a batch, chunk by chunk: neither's (targets, vocab) logits
ever exist as a whole, forward or backward."""

# T targets, V vocabulary, H hidden

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuneline.heads import HeadGradients, TargetHead, head_logits, is_uniform, row_chunks
from tuneline.logprobs import ask_head
from tuneline.losses.distillation import generalized_jsd, generalized_jsd_and_slopes
from tuneline.models.layouts import output_head, pad_token_id
from tuneline.products import fill_up
from tuneline.trees import PromptTrees, pad_out

_NUM_TABLES = 4  # of a chunk's size at once, about: both models' log-probabilities, the mixture's, the slopes


class PendingLogits(NamedTuple):
    """The logits of a model at the targets of a batch, still to be multiplied out."""

    hidden: Tensor  # (targets, hidden); where there is no weight the logits themselves, (targets, vocab)
    weight: Tensor | None = None  # (vocab, hidden)
    bias: Tensor | None = None  # (vocab,)

    def logprobs(self, rows: slice, temperature: float) -> Tensor:
        """(rows, vocab), float32"""
        if self.weight is not None:
            return head_logits(self.hidden[rows], self.weight, self.bias, temperature).log_softmax(-1)
        return (self.hidden[rows].float() / temperature).log_softmax(-1)


class Divergences(NamedTuple):
    """Each (targets,), float32; only the losses carry gradients."""

    losses: Tensor  # divergences times weights
    divergences: Tensor
    entropies: Tensor  # of the student


@torch.no_grad()
def pending_logits(model: nn.Module, trees: PromptTrees) -> PendingLogits:
    """What a causal language model, not wrapped, has to say of the targets."""
    head = output_head(model)
    if not isinstance(head, TargetHead):
        rows = pad_out(trees, pad_token_id(model))
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
        return PendingLogits(logits[rows.target_rows, rows.target_columns])
    trees = fill_up(trees)
    positions, rows_T = trees.target_positions.unique(return_inverse=True)
    hidden_TH = ask_head(head, model, trees, positions, _HiddenQuestion(rows_T)).logits[0]
    bias = None if head.bias is None else head.bias.to(hidden_TH.dtype)
    return PendingLogits(hidden_TH, head.weight.to(hidden_TH.dtype), bias)


def divergences(
    model: nn.Module,
    trees: PromptTrees,
    teacher: PendingLogits,
    *,
    beta: float,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Divergences:
    """The generalised Jensen-Shannon divergence of the student from the teacher at every target.

    Args:
        model: the student, wrapped or not (DDP, FSDP, PEFT), that went through `prepare_for_trees`.
        teacher: of the same targets and vocabulary, see `pending_logits`.
        beta: see `generalized_jsd`.
        temperature: divides the logits of both.
        weights: (targets,), what each counts in the losses; None for 1.
    """
    weights = torch.ones(len(trees.target_ids), device=trees.target_ids.device) if weights is None else weights
    head = output_head(model)
    if not isinstance(head, TargetHead):
        return _padded_divergences(model, trees, teacher, beta, temperature, weights)
    trees = fill_up(trees)
    positions, rows = trees.target_positions.unique(return_inverse=True)
    question = _DivergenceQuestion(rows, teacher, beta, temperature, weights)
    return Divergences(*ask_head(head, model, trees, positions, question).logits[0].float().unbind(-1))


def _padded_divergences(
    model: nn.Module, trees: PromptTrees, teacher: PendingLogits, beta: float, temperature: float, weights: Tensor
) -> Divergences:
    rows = pad_out(trees, pad_token_id(model))
    output = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False)
    log_p = (output.logits[rows.target_rows, rows.target_columns].float() / temperature).log_softmax(-1)
    values = generalized_jsd(log_p, teacher.logprobs(slice(None), temperature), beta)
    return Divergences(values * weights, values.detach(), _entropies(log_p.detach()))


def _entropies(log_p_TV: Tensor) -> Tensor:
    return -torch.linalg.vecdot(log_p_TV.exp(), log_p_TV.clamp(min=-1e4))


@dataclass(frozen=True)
class _HiddenQuestion:
    """Asks for what the head reads."""

    rows: Tensor  # (targets,)

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return hidden


@dataclass(frozen=True)
class _DivergenceQuestion:
    """Asks for losses, divergences and entropies."""

    rows: Tensor  # (targets,)
    teacher: PendingLogits
    beta: float
    temperature: float
    weights: Tensor  # (targets,)

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.stack(_Diverge.apply(hidden, weight, bias, self, torch.is_grad_enabled()), -1)


class _Diverge(torch.autograd.Function):
    """Losses, divergences and entropies of targets.

    Gradients are made in the forward pass, while the log-probabilities are at hand; they hold for an upstream gradient
    that is the same for every target. For any other all is computed once more.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, question: _DivergenceQuestion, learns: bool
    ) -> tuple[Tensor, ...]:
        wants = _wants(ctx, bias)
        grads = HeadGradients(hidden, weight, bias, *wants) if learns and any(wants) else None
        values, entropies = hidden.new_zeros(2, len(hidden), dtype=torch.float32)
        for rows in row_chunks(len(hidden), weight, _NUM_TABLES):
            values[rows], entropies[rows] = _chunk(rows, hidden, weight, bias, question, question.weights, grads)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.question, ctx.grads = question, grads
        ctx.mark_non_differentiable(entropies)
        losses = values * question.weights
        values = values.clone()
        ctx.mark_non_differentiable(values)
        return losses, values, entropies

    @staticmethod
    def backward(ctx: Any, g_losses: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        if ctx.grads is not None and is_uniform(g_losses):
            return *ctx.grads.scaled(g_losses[0] if len(g_losses) else g_losses.sum()), None, None
        hidden, weight, bias = ctx.saved_tensors
        grads = HeadGradients(hidden, weight, bias, *_wants(ctx, bias))
        weights = ctx.question.weights * g_losses
        for rows in row_chunks(len(hidden), weight, _NUM_TABLES):
            _chunk(rows, hidden, weight, bias, ctx.question, weights, grads)
        return *grads.scaled(None), None, None


def _wants(ctx: Any, bias: Tensor | None) -> tuple[bool, bool, bool]:
    return ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]


def _chunk(
    rows: slice,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    question: _DivergenceQuestion,
    weights: Tensor,
    grads: HeadGradients | None,
) -> tuple[Tensor, Tensor]:
    """Divergences and entropies of some targets; their gradients, times `weights` (targets,), go into `grads`."""
    log_p_TV = head_logits(hidden[rows], weight, bias, question.temperature).log_softmax(-1)
    log_q_TV = question.teacher.logprobs(rows, question.temperature)
    found = generalized_jsd_and_slopes(log_p_TV, log_q_TV, question.beta)
    if grads is not None:
        grads.add(rows, found.slopes.mul_(weights[rows, None]), question.temperature)
    return found.values, _entropies(log_p_TV)
