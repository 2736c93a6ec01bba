"""Divergence of a student from a teacher at the targets of a batch, chunk by chunk: neither's (targets, vocab) logits
ever exist as a whole, forward or backward."""

# T targets, V vocabulary, H hidden

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tuneline.heads import HeadGradients, TargetHead, head_logits, is_uniform, row_chunks
from tuneline.logprobs import ask_head
from tuneline.losses.distillation import (
    Divergence,
    generalized_jsd,
    generalized_jsd_and_slopes,
    jsd_on_support,
)
from tuneline.models.layouts import output_head
from tuneline.models.padded import padded_logits
from tuneline.products import fill_up
from tuneline.trees import PromptTrees

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

    def divergence(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Tensor:
        return generalized_jsd(log_p_TV, self.logprobs(rows, temperature), beta)

    def divergence_and_slopes(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Divergence:
        return generalized_jsd_and_slopes(log_p_TV, self.logprobs(rows, temperature), beta)


class KnownTokens(NamedTuple):
    """What a teacher says of a few tokens at each target of a batch, at temperature 1."""

    token_ids: Tensor  # (targets, tokens)
    logprobs: Tensor  # (targets, tokens), float32; minus infinity where a place is empty
    add_tail: bool  # see `jsd_on_support`

    def divergence(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Tensor:
        known = log_p_TV.gather(-1, self.token_ids[rows])
        return jsd_on_support(known, self.logprobs[rows], beta, add_tail=self.add_tail)

    def divergence_and_slopes(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Divergence:
        """By autograd over the few tokens, and from them to the logits by hand."""
        ids = self.token_ids[rows]
        with torch.enable_grad():
            known = log_p_TV.detach().gather(-1, ids).requires_grad_()
            values = jsd_on_support(known, self.logprobs[rows], beta, add_tail=self.add_tail)
            (by_known,) = torch.autograd.grad(values.sum(), known)
        slopes_TV = log_p_TV.exp().mul_(-by_known.sum(-1, keepdim=True)).scatter_add_(-1, ids, by_known)
        return Divergence(values.detach(), slopes_TV)


class TeachersAnswer(Protocol):
    """A teacher's side of the divergence, for the rows of targets that are compared at once."""

    def divergence(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Tensor:
        """(rows,), from the student's log-probabilities (rows, vocab); autograd works."""

    def divergence_and_slopes(self, log_p_TV: Tensor, rows: slice, beta: float, temperature: float) -> Divergence:
        """The same, with derivatives by the student's logits, without autograd."""


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
        return PendingLogits(padded_logits(model, trees))
    trees = fill_up(trees)
    positions, rows_T = trees.target_positions.unique(return_inverse=True)
    hidden_TH = ask_head(head, model, trees, positions, _HiddenQuestion(rows_T)).logits[0]
    bias = None if head.bias is None else head.bias.to(hidden_TH.dtype)
    return PendingLogits(hidden_TH, head.weight.to(hidden_TH.dtype), bias)


def divergences(
    model: nn.Module,
    trees: PromptTrees,
    teacher: TeachersAnswer,
    *,
    beta: float,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> Divergences:
    """The generalised Jensen-Shannon divergence of the student from the teacher at every target.

    Args:
        model: the student, wrapped or not (DDP, FSDP, PEFT), that went through `prepare_for_trees`.
        teacher: of the same targets: `pending_logits` of a model with the same vocabulary, or `KnownTokens`.
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
    model: nn.Module, trees: PromptTrees, teacher: TeachersAnswer, beta: float, temperature: float, weights: Tensor
) -> Divergences:
    log_p = (padded_logits(model, trees).float() / temperature).log_softmax(-1)
    values = teacher.divergence(log_p, slice(None), beta, temperature)
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
    teacher: TeachersAnswer
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
    found = question.teacher.divergence_and_slopes(log_p_TV, rows, question.beta, question.temperature)
    if grads is not None:
        grads.add(rows, found.slopes.mul_(weights[rows, None]), question.temperature)
    return found.values, _entropies(log_p_TV)
