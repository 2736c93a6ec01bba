"""Log-probabilities of targets, by whichever layout the model can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tuneline.attention import Segments, reading_trees
from tuneline.heads import AnyQuestion, Objective, Question, TargetHead, leave_out_of_support
from tuneline.losses.sft import dft_loss, nll_loss
from tuneline.models.layouts import learns_a_prompt, num_virtual_tokens, output_head
from tuneline.models.padded import padded_inputs, takes_logits_to_keep
from tuneline.products import fill_up
from tuneline.trees import PromptTrees


class TargetLogprobs(NamedTuple):
    """What a model says of the targets of a batch. All (targets,), float32; only the first three carry gradients."""

    logprobs: Tensor
    losses: Tensor  # of the objective that was asked for; else zero
    entropies: Tensor  # zero unless asked for
    log_probability_mass: Tensor  # log of the summed squared probabilities; zero unless asked for
    is_top1: Tensor  # 1 where no token was likelier
    mean_logits: Tensor  # mean over the vocabulary
    aux_loss: Tensor | None = None  # (), the load-balancing loss of a mixture of experts, where asked for


def token_logprobs(
    model: nn.Module,
    trees: PromptTrees,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_probability_mass: bool = False,
    with_aux_loss: bool = False,
    objective: Objective | None = None,
    support: Tensor | None = None,
    weights: Tensor | None = None,
    call: Callable[..., Any] | None = None,
) -> TargetLogprobs:
    """Log-probability of every target given what precedes it in its sequence.

    Args:
        model: a causal language model, wrapped or not (DDP, FSDP, PEFT), that went through `prepare_for_trees`.
        temperature: divides the logits.
        objective: a loss a target (`nll`; `dft` of Wu et al. 2025, arXiv:2508.05629; or `weighted`) whose summed
            gradient is made in the forward pass; a quarter less work in the head than through `logprobs`.
        weights: (targets,), what each negative log-probability counts in the objective `weighted`.
        support: (targets, kept), the tokens that the sampler could have drawn, the target among them, a row filled up
            by repeating one, or -1 in all of a row for every token. Probabilities are then normalised over these alone.
        call: called with the model's inputs in its place, for one that answers more than this.
    """
    call = model if call is None else call
    trees = trees if with_aux_loss else fill_up(trees)  # load balancing counts every token of the row
    router = {"output_router_logits": True} if with_aux_loss else {}
    # the first tokens of all branches are predicted at the end of their prompt, which the model hands over once
    positions, rows = trees.target_positions.unique(return_inverse=True)
    question = Question(
        trees.target_ids, rows, temperature, with_entropy, with_probability_mass, objective, support, weights
    )
    head = output_head(model)
    if not isinstance(head, TargetHead) or learns_a_prompt(model):
        return _padded_logprobs(model, call, trees, question, router)
    output = ask_head(head, call, trees, positions, question, **router)
    answers = TargetLogprobs(*output.logits[0].float().unbind(-1))
    return answers._replace(aux_loss=output.aux_loss) if with_aux_loss else answers


def ask_head(
    head: TargetHead,
    call: Callable[..., Any],
    trees: PromptTrees,
    positions: Tensor,
    question: AnyQuestion,
    **more: Any,
) -> Any:
    """The model's output, with the answers (1, targets, answers) in the place of its logits.

    Args:
        positions: (rows,), the places of the row of trees that the question's `rows` number.
        more: further keywords for the model.
    """
    segments = Segments(trees.segments, trees.num_tokens, read=positions)
    with head.asked(question), reading_trees():
        return call(
            input_ids=trees.input_ids,
            position_ids=trees.position_ids,
            segments=segments,
            logits_to_keep=positions,
            use_cache=False,
            **more,
        )


def _padded_logprobs(
    model: nn.Module, call: Callable[..., Any], trees: PromptTrees, question: Question, router: dict[str, bool]
) -> TargetLogprobs:
    rows, inputs = padded_inputs(model, trees)
    columns = rows.target_columns + num_virtual_tokens(model)
    if takes_logits_to_keep(model):  # prompts, and the images in them, do not go through the head
        inputs["logits_to_keep"], columns = columns.unique(return_inverse=True)
    output = call(**inputs, **router)
    raw = output.logits[rows.target_rows, columns].float()  # (targets, vocab)
    scaled = raw / question.temperature
    if question.support is not None:
        scaled = scaled.clone()
        leave_out_of_support(scaled, question.support)
    log_p = scaled.log_softmax(-1)
    logprobs = log_p.gather(1, trees.target_ids[:, None])[:, 0]
    zeros = torch.zeros_like(logprobs)
    match question.objective:
        case "nll":
            losses = nll_loss(logprobs)
        case "dft":
            losses = dft_loss(logprobs)
        case "weighted":
            assert question.weights is not None
            losses = -question.weights * logprobs
        case None:
            losses = zeros
    return TargetLogprobs(
        logprobs,
        losses,
        -(log_p.exp() * log_p).sum(-1) if question.with_entropy else zeros,
        (2 * log_p.detach()).logsumexp(-1) if question.with_probability_mass else zeros,
        (log_p.detach().amax(-1) <= logprobs.detach()).float(),
        raw.detach().mean(-1),
        output.aux_loss if router else None,
    )


def sum_by_sequence(values: Tensor, trees: PromptTrees) -> Tensor:
    """(targets,) to (sequences,): the sum over the targets of each sequence, zero for one without targets."""
    return values.new_zeros(trees.num_sequences).index_add(0, trees.sequence_ids, values)
