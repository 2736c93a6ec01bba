"""What policy, value head and reference say of the targets of a batch, whatever its layout: prompt trees for causal
models (or padded rows, where a model cannot read trees), padded rows for encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneline.classic.batch import StepBatch
from tuneline.heads import TargetHead
from tuneline.logprobs import token_logprobs
from tuneline.models.hidden_states import input_of
from tuneline.models.layouts import base_model, output_head, pad_token_id, prepare_for_trees
from tuneline.models.padded import padded_logits
from tuneline.models.value_head import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead
from tuneline.trees import Branch, PromptTrees, Tree, lay_out
from tuneline.values import PolicyAndValue, logprobs_and_values

# Logits that may exist at once, where whole distributions are compared.
_LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}


class Reading(NamedTuple):
    """All (targets,), float32."""

    logprobs: Tensor
    entropies: Tensor
    values: Tensor  # of the state before each target


class Rows(NamedTuple):
    """Some sequences of a batch, laid out."""

    inputs: Any
    numbers: Tensor  # (targets,) the number of each target in the batch, in the order that they are read

    def to(self, device: torch.device) -> Rows:
        return Rows(self.inputs.to(device), self.numbers.to(device))


class Reader(Protocol):
    """A layout."""

    learner: nn.Module  # what is trained: policy and value head in one module

    def rows(self, batch: StepBatch, sequences: Sequence[int]) -> Rows:
        """Some sequences of a batch; their targets come in an order of the layout's own."""
        ...

    def read(self, learner: nn.Module, rows: Rows) -> Reading:
        """`learner` is this reader's, wrapped or not (DDP)."""
        ...

    def logprobs(self, model: nn.Module, rows: Rows) -> Tensor:
        """(targets,) under a language model without a value head, or under the learner."""
        ...

    def kl(self, policy: nn.Module, reference: Callable[[], Any], rows: Rows) -> Tensor:
        """(targets,): the KL divergence from policy to reference over the whole vocabulary, where each target stands.

        Args:
            reference: a context that gives the reference model.
        """
        ...


class CausalReader:
    """Prompt trees: a query that several responses of the rows share is computed once."""

    def __init__(self, model: AutoModelForCausalLMWithValueHead):
        self.learner: nn.Module = PolicyAndValue.with_head(model.pretrained_model)
        head: Any = self.learner.value_head
        head.weight, head.bias = model.v_head.summary.weight, model.v_head.summary.bias

    def rows(self, batch: StepBatch, sequences: Sequence[int]) -> Rows:
        by_query: dict[tuple[int, ...], list[int]] = {}
        for i in sequences:
            by_query.setdefault(tuple(batch.queries[i]), []).append(i)
        trees = [
            Tree(query, [Branch(batch.responses[i], batch.is_target[i]) for i in group])
            for query, group in by_query.items()
        ]
        return Rows(lay_out(trees), batch.target_numbers([i for group in by_query.values() for i in group]))

    def read(self, learner: nn.Module, rows: Rows) -> Reading:
        answers, values = logprobs_and_values(learner, rows.inputs, with_entropy=True)
        return Reading(answers.logprobs, answers.entropies, values)

    def logprobs(self, model: nn.Module, rows: Rows) -> Tensor:
        return token_logprobs(model, rows.inputs).logprobs

    def kl(self, policy: nn.Module, reference: Callable[[], Any], rows: Rows) -> Tensor:
        own = _logits_of_targets(policy, rows.inputs)
        with reference() as model:
            other = _logits_of_targets(model, rows.inputs)
            return vocabulary_kl(own, other, rows.inputs.num_targets, rows.numbers.device)


class Pairs(NamedTuple):
    """Padded rows of an encoder-decoder."""

    input_ids: Tensor  # (sequences, query length)
    attention_mask: Tensor  # (sequences, query length)
    decoder_input_ids: Tensor  # (sequences, response length)
    target_rows: Tensor  # (targets,) the row of each target
    target_columns: Tensor  # (targets,) the column whose output predicts it
    target_ids: Tensor  # (targets,)

    def to(self, device: torch.device) -> Pairs:
        return Pairs(*(tensor.to(device) for tensor in self))


class EncoderDecoderReader:
    """Queries for the encoder, responses for the decoder, which begin with its start token."""

    def __init__(self, model: AutoModelForSeq2SeqLMWithValueHead):
        self.learner: nn.Module = model
        self.pad_token_id = pad_token_id(model.pretrained_model)

    def rows(self, batch: StepBatch, sequences: Sequence[int]) -> Rows:
        queries = _padded([batch.queries[i] for i in sequences], self.pad_token_id)
        responses = _padded([batch.responses[i] for i in sequences], self.pad_token_id)
        is_target = _padded([batch.is_target[i] for i in sequences], 0)
        mask = _padded([[1] * len(batch.queries[i]) for i in sequences], 0)
        target_rows, places = is_target.nonzero(as_tuple=True)
        pairs = Pairs(queries, mask, responses, target_rows, places - 1, responses[target_rows, places])
        return Rows(pairs, batch.target_numbers(sequences))

    def read(self, learner: nn.Module, rows: Rows) -> Reading:
        pairs: Pairs = rows.inputs
        logits, _, values = learner(**_arguments(pairs))
        log_p = logits[pairs.target_rows, pairs.target_columns].log_softmax(-1)
        logprobs = log_p.gather(1, pairs.target_ids[:, None])[:, 0]
        entropies = -(log_p.exp() * log_p).sum(-1)
        return Reading(logprobs, entropies, values[pairs.target_rows, pairs.target_columns].float())

    def logprobs(self, model: nn.Module, rows: Rows) -> Tensor:
        log_p = self._logits(model, rows.inputs).log_softmax(-1)
        return log_p.gather(1, rows.inputs.target_ids[:, None])[:, 0]

    def kl(self, policy: nn.Module, reference: Callable[[], Any], rows: Rows) -> Tensor:
        pairs: Pairs = rows.inputs
        own = self._logits(policy, pairs)
        with reference() as model:
            other = self._logits(model, pairs)
        return vocabulary_kl(own.__getitem__, other.__getitem__, len(pairs.target_ids), own.device)

    def _logits(self, model: nn.Module, pairs: Pairs) -> Tensor:
        output: Any = model(**_arguments(pairs))
        logits = output[0] if isinstance(output, tuple) else output.logits
        return logits[pairs.target_rows, pairs.target_columns].float()


def vocabulary_kl(
    logits: Callable[[slice], Tensor], ref_logits: Callable[[slice], Tensor], num_targets: int, device: torch.device
) -> Tensor:
    """(targets,), float32: sum over the vocabulary of p (log p - log p_ref), a few targets at a time.

    Args:
        logits, ref_logits: give those of a slice of the targets, (targets, vocab).
    """
    kl = torch.empty(num_targets, device=device)
    if not num_targets:
        return kl
    vocab = logits(slice(0, 1)).shape[1]
    size = max(1, _LOGITS_AT_ONCE.get(device.type, _LOGITS_AT_ONCE["cuda"]) // vocab)
    for start in range(0, num_targets, size):
        some = slice(start, start + size)
        log_p, log_ref = logits(some).float().log_softmax(-1), ref_logits(some).float().log_softmax(-1)
        kl[some] = (log_p.exp() * (log_p - log_ref)).sum(-1)
    return kl


@torch.no_grad()
def _logits_of_targets(model: nn.Module, trees: PromptTrees) -> Callable[[slice], Tensor]:
    """What gives the logits of a slice of the targets, (targets, vocab)."""
    head: Any = output_head(model)
    if not isinstance(head, TargetHead):
        return padded_logits(model, trees).__getitem__
    with input_of(head) as heard:
        token_logprobs(model, trees)
    _, places = trees.target_positions.unique(return_inverse=True)
    hidden = heard[0][0].index_select(0, places)
    return lambda some: F.linear(hidden[some].to(head.weight.dtype), head.weight, head.bias)


def prepare_reference(model: Any) -> nn.Module:
    """A frozen language model, ready to read; of a model with a value head the language model alone."""
    if isinstance(model, AutoModelForCausalLMWithValueHead | AutoModelForSeq2SeqLMWithValueHead):
        model = model.pretrained_model
    if not base_model(model).config.is_encoder_decoder:
        prepare_for_trees(model)
    return model.eval().requires_grad_(False)


def _arguments(pairs: Pairs) -> dict[str, Tensor]:
    return {
        "input_ids": pairs.input_ids,
        "attention_mask": pairs.attention_mask,
        "decoder_input_ids": pairs.decoder_input_ids,
    }


def _padded(rows: list[list[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
