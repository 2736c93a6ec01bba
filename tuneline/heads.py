"""Output heads that answer about targets alone, so that (tokens, vocab) logits never exist, forward or backward.

Each replaces a model's own head, shares its parameters, and behaves as it did until it is asked to score. Being called
from within the model's forward, it works under DDP, FSDP, autocast and adapters like the head it replaces.
"""

# T targets, V vocabulary, H hidden

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneline.products import linear

Objective = Literal["nll", "dft", "weighted"]

# The logits of one chunk should stay in a CPU's cache; a GPU wants enough rows to fill its matrix units.
_CHUNK_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}


class AnyQuestion(Protocol):
    """What a head may be asked."""

    @property
    def rows(self) -> Tensor:
        """(targets,): the row of the head's input that predicts each."""
        ...

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(targets, answers) from what the head reads at these rows, and its parameters; outside autocast."""
        ...


@dataclass(frozen=True)
class Question:
    """What a head is asked about the targets of one forward pass."""

    target_ids: Tensor  # (targets,)
    rows: Tensor  # (targets,) the row of the head's input that predicts each
    temperature: float = 1.0
    with_entropy: bool = False
    with_probability_mass: bool = False  # log of the summed squared probabilities, for WPO
    objective: Objective | None = None
    support: Tensor | None = None  # (targets, kept) the tokens that could be drawn, see `token_logprobs`
    weights: Tensor | None = None  # (targets,) of the objective `weighted`

    def answer(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(targets, 6): log-probability, loss of the objective (when one is asked for), entropy, log of the summed
        squared probabilities, whether the target was the most likely token, and the mean logit."""
        answers = _AnswerTargets.apply(
            hidden,
            weight,
            bias,
            self.target_ids,
            self.temperature,
            self.with_entropy,
            self.with_probability_mass,
            self.objective,
            self.support,
            self.weights,
            torch.is_grad_enabled(),
        )
        with torch.no_grad():
            mean_logits = hidden.float() @ weight.float().mean(0)
            if bias is not None:
                mean_logits = mean_logits + bias.float().mean()
        return torch.stack([*answers, mean_logits], -1)


class TargetHead(nn.Linear):
    """A language-model head that, while a question is pending, returns (1, targets, answers) instead of logits."""

    question: AnyQuestion | None = None

    @classmethod
    def sharing(cls, head: nn.Linear) -> TargetHead:
        """A head with the very parameters of `head`; ties to the embeddings hold."""
        new = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        new.weight = head.weight
        new.bias = head.bias
        return new.train(head.training)

    @contextmanager
    def asked(self, question: AnyQuestion) -> Iterator[None]:
        self.question = question
        try:
            yield
        finally:
            self.question = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.question is None:
            return linear(hidden, self.weight, self.bias)
        q = self.question
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        # by index_select, whose gradient adds up rows that several targets share in a fixed order
        hidden_TH = hidden[0].index_select(0, q.rows)
        device_type = hidden.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            weight, hidden_TH = weight.to(dtype), hidden_TH.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device_type, enabled=False):
            return q.answer(hidden_TH, weight, bias)[None]


class _AnswerTargets(torch.autograd.Function):
    """Log-probability, loss, entropy, log of summed squared probabilities and top-1 of targets; each (targets,),
    float32.

    The backward pass computes each chunk's logits again. With an objective the gradients of the summed losses are made
    in the
    forward pass instead, while the logits are at hand, which saves a quarter of the head's work; they hold for an
    upstream gradient that is the same for every target, and any other falls back to the recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        temperature: float,
        with_entropy: bool,
        with_probability_mass: bool,
        objective: Objective | None,
        support: Tensor | None,
        given_weights: Tensor | None,
        learns: bool,
    ) -> tuple[Tensor, ...]:
        T = len(target_ids)
        logprobs, losses, entropies, log_mass, is_top1 = hidden.new_zeros(5, T, dtype=torch.float32)
        wants_hidden, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        fused = learns and objective is not None and (wants_hidden or wants_weight)
        grads = HeadGradients(hidden, weight, bias, wants_hidden, wants_weight, wants_bias) if fused else None

        for rows in row_chunks(T, weight):
            ids = target_ids[rows, None]
            logits = head_logits(hidden[rows], weight, bias, temperature)
            if support is not None:
                leave_out_of_support(logits, support[rows])
            top = logits.amax(1)
            target_logits = logits.gather(1, ids)[:, 0]
            unnormalised = (logits - top[:, None]).exp_()
            total = unnormalised.sum(1)
            log_normaliser = top + total.log()
            logprobs[rows] = target_logits - log_normaliser
            is_top1[rows] = (target_logits >= top).float()
            if with_entropy:
                entropies[rows] = log_normaliser - torch.linalg.vecdot(unnormalised, logits) / total
            if with_probability_mass:
                log_mass[rows] = torch.linalg.vecdot(unnormalised, unnormalised).log() - 2 * total.log()
            if objective is not None:
                weights = _objective_weights(objective, logprobs[rows], given_weights, rows)
                losses[rows] = -weights * logprobs[rows]
                if grads is not None:
                    # d(-w log p_y)/d logits = w (softmax - onehot)
                    upstream = unnormalised.mul_((weights / total)[:, None])
                    upstream.scatter_add_(1, ids, -weights[:, None])
                    grads.add(rows, upstream, temperature)

        ctx.save_for_backward(hidden, weight, bias, target_ids, logprobs, entropies, support, given_weights)
        ctx.temperature, ctx.with_entropy, ctx.objective, ctx.fused = temperature, with_entropy, objective, grads
        ctx.mark_non_differentiable(log_mass, is_top1)
        return logprobs, losses, entropies, log_mass, is_top1

    @staticmethod
    def backward(
        ctx: Any, g_logprobs: Tensor, g_losses: Tensor, g_entropies: Tensor, *unused: Any
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target_ids, logprobs, entropies, support, given_weights = ctx.saved_tensors
        nothing = (None,) * 8
        if ctx.fused is not None and is_uniform(g_losses) and not (g_logprobs.any() or g_entropies.any()):
            return *ctx.fused.scaled(g_losses[0] if len(g_losses) else g_losses.sum()), *nothing

        wants_bias = bias is not None and ctx.needs_input_grad[2]
        grads = HeadGradients(hidden, weight, bias, ctx.needs_input_grad[0], ctx.needs_input_grad[1], wants_bias)
        if ctx.objective is not None:
            g_logprobs = g_logprobs - _objective_weights(ctx.objective, logprobs, given_weights) * g_losses
        for rows in row_chunks(len(target_ids), weight):
            ids = target_ids[rows, None]
            logits = head_logits(hidden[rows], weight, bias, ctx.temperature)
            if support is not None:
                leave_out_of_support(logits, support[rows])
            log_normaliser = logits.gather(1, ids)[:, 0] - logprobs[rows]
            log_p = logits.sub_(log_normaliser[:, None])
            if ctx.with_entropy and g_entropies[rows].any():
                # d entropy/d logits = -p (log p + entropy)
                p = log_p.exp()
                slope = g_entropies[rows, None] * (log_p + entropies[rows, None]) + g_logprobs[rows, None]
                upstream = p.mul_(slope).neg_()
            else:
                upstream = log_p.exp_().mul_(-g_logprobs[rows, None])
            upstream.scatter_add_(1, ids, g_logprobs[rows, None])
            grads.add(rows, upstream, ctx.temperature)
        return *grads.scaled(None), *nothing


def _objective_weights(
    objective: Objective, logprobs: Tensor, given: Tensor | None, rows: slice = slice(None)
) -> Tensor:
    """(targets,): what each negative log-probability counts in an objective; no gradient goes through it."""
    match objective:
        case "dft":
            return logprobs.exp()
        case "weighted":
            assert given is not None
            return given[rows].to(logprobs)
        case _:
            return torch.ones_like(logprobs)


class HeadGradients:
    """The gradients of hidden states, weight and bias, added up chunk by chunk in float32 where chunks overlap."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *wants: bool):
        self.source, self.source_weight = hidden, weight
        wants_hidden, wants_weight, wants_bias = wants
        self.hidden = torch.empty_like(hidden) if wants_hidden else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        self.bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None

    def add(self, rows: slice, upstream_TV: Tensor, temperature: float) -> None:
        if temperature != 1.0:
            upstream_TV = upstream_TV.div_(temperature)
        if self.bias is not None:
            self.bias += upstream_TV.sum(0)
        upstream_TV = upstream_TV.to(self.source.dtype)
        if self.hidden is not None:
            self.hidden[rows] = linear(upstream_TV, self.source_weight.T)
        if self.weight is not None:
            if self.source.dtype == torch.float32:
                self.weight.addmm_(upstream_TV.T, self.source[rows])
            else:
                self.weight += upstream_TV.T @ self.source[rows]

    def scaled(self, scale: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [(self.hidden, self.source.dtype), (self.weight, self.source_weight.dtype)]
        found.append((self.bias, self.source_weight.dtype))
        return tuple(g if g is None else (g if scale is None else g * scale).to(dtype) for g, dtype in found)


def head_logits(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits_TV = linear(hidden_TH, weight_VH, bias_V).float()
    return logits_TV if temperature == 1.0 else logits_TV.div_(temperature)


def leave_out_of_support(logits_TV: Tensor, support: Tensor) -> None:
    """Give what is not in `support` (targets, kept) no probability, in place; a row of -1 leaves everything in.

    The value is finite, since 0 * -inf would be NaN in an entropy.
    """
    kept = torch.zeros_like(logits_TV, dtype=torch.bool).scatter_(1, support.clamp(min=0), True)
    kept |= support[:, :1] < 0
    logits_TV.masked_fill_(~kept, -1e30)


def row_chunks(num_targets: int, weight: Tensor, num_tables: int = 1) -> Iterator[slice]:
    """Rows that are computed together, where each has `num_tables` numbers a token of the vocabulary."""
    elements = _CHUNK_ELEMENTS.get(weight.device.type, _CHUNK_ELEMENTS["cuda"]) // num_tables
    size = max(16, 1 << round(math.log2(elements / weight.shape[0])))
    for start in range(0, num_targets, size):
        yield slice(start, min(start + size, num_targets))


def is_uniform(values: Tensor) -> bool:
    return bool((values == values[:1]).all())


class ScoreHead(nn.Linear):
    """A reward model's head that, while sequence ends are pending, scores every sequence of a row of trees.

    transformers pools one token a row. In that place this head puts the scores of all sequences, so that they leave
    the model by its output: (1, tokens, sequences), each token's row the same view.
    """

    ends: Tensor | None = None

    @classmethod
    def sharing(cls, head: nn.Linear) -> ScoreHead:
        new = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        new.weight = head.weight
        new.bias = head.bias
        return new.train(head.training)

    @contextmanager
    def asked(self, ends: Tensor) -> Iterator[None]:
        self.ends = ends
        try:
            yield
        finally:
            self.ends = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.ends is None:
            return super().forward(hidden)
        return self.laid_out(super().forward(hidden[0].index_select(0, self.ends)), hidden.shape[1])

    def laid_out(self, scores: Tensor, num_tokens: int) -> Tensor:
        """Scores, (sequences, 1), as the model's forward hands them over."""
        return scores[:, 0].expand(1, num_tokens, -1)


class LabelHead(ScoreHead):
    """A token classifier's head that, while positions are pending, answers at these alone: (1, positions, labels)."""

    def laid_out(self, scores: Tensor, num_tokens: int) -> Tensor:
        return scores[None]


class ScalarHead(nn.Linear):
    """A linear map to one number, computed in float32 whatever the precision of the model it reads."""

    def __init__(self, num_hidden: int, bias: bool = True, device: torch.device | str | None = None):
        super().__init__(num_hidden, 1, bias=bias, device=device, dtype=torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        """(rows, hidden) to (rows,), float32."""
        return scalars(self, hidden)


def scalars(head: nn.Linear, hidden_TH: Tensor) -> Tensor:
    """(targets,), float32: what a head with one output says, computed in float32."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden_TH.device.type, enabled=False):
        return F.linear(hidden_TH.float(), head.weight.float(), bias)[:, 0]
