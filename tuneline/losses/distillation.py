"""How far a student's next-token distributions are from a teacher's (Agarwal et al. 2023, arXiv:2306.13649, eq. 1).

All in nats, from log-probabilities over one vocabulary. A token that a distribution rules out has a log-probability of
-10,000 here instead of minus infinity, so that what is ruled out by both adds nothing and no term is undefined.
"""

# T targets, V vocabulary

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_RULED_OUT = -1e4


class Divergence(NamedTuple):
    """Divergences, and their derivatives by the logits that the student's log-probabilities are the log-softmax of."""

    values: Tensor  # (targets,), at least 0
    slopes: Tensor  # (targets, vocab)


def generalized_jsd(student_logprobs: Tensor, teacher_logprobs: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of each target; autograd works.

    Args:
        student_logprobs: (targets, vocab)
        teacher_logprobs: (targets, vocab)
        beta: 0 for KL(teacher || student), 1 for KL(student || teacher); between, beta KL(teacher || mixture) +
            (1 - beta) KL(student || mixture), where the mixture has beta of the teacher and the rest of the student.

    Returns:
        (targets,)
    """
    log_p_TV, log_q_TV = student_logprobs.clamp(min=_RULED_OUT), teacher_logprobs.clamp(min=_RULED_OUT)
    p_TV, q_TV = log_p_TV.exp(), log_q_TV.exp()
    if beta == 0:
        return (q_TV * (log_q_TV - log_p_TV)).sum(-1)
    if beta == 1:
        return (p_TV * (log_p_TV - log_q_TV)).sum(-1)
    log_m_TV = _log_mixture(log_p_TV, log_q_TV, beta)
    of_teacher = (q_TV * (log_q_TV - log_m_TV)).sum(-1)
    of_student = (p_TV * (log_p_TV - log_m_TV)).sum(-1)
    return beta * of_teacher + (1 - beta) * of_student


def generalized_jsd_and_slopes(student_logprobs: Tensor, teacher_logprobs: Tensor, beta: float) -> Divergence:
    """As `generalized_jsd`, with derivatives, without autograd.

    By a logit z_i of the student the divergence has the derivative p_i (g_i - sum_j p_j g_j), where g_i is its
    derivative by p_i up to a constant: log p_i - log q_i for beta 1, (1 - beta) (log p_i - log m_i) between, where the
    terms of the mixture's own change cancel. For beta 0 it is p_i - q_i.
    """
    log_p_TV, log_q_TV = student_logprobs.clamp(min=_RULED_OUT), teacher_logprobs.clamp(min=_RULED_OUT)
    p_TV = log_p_TV.exp()
    if beta == 0:
        q_TV = log_q_TV.exp()
        return Divergence(torch.linalg.vecdot(q_TV, log_q_TV - log_p_TV), p_TV - q_TV)
    if beta == 1:
        g_TV = log_p_TV - log_q_TV
        values = torch.linalg.vecdot(p_TV, g_TV)
        return Divergence(values, p_TV * (g_TV - values[:, None]))
    log_m_TV = _log_mixture(log_p_TV, log_q_TV, beta)
    of_teacher = torch.linalg.vecdot(log_q_TV.exp(), log_q_TV - log_m_TV)
    g_TV = log_p_TV - log_m_TV
    of_student = torch.linalg.vecdot(p_TV, g_TV)
    slopes = (1 - beta) * p_TV * (g_TV - of_student[:, None])
    return Divergence(beta * of_teacher + (1 - beta) * of_student, slopes)


def jsd_on_support(student_logprobs: Tensor, teacher_logprobs: Tensor, beta: float, *, add_tail: bool) -> Tensor:
    """The divergence where the teacher's log-probabilities are known of a few tokens only; autograd works.

    Args:
        student_logprobs: (targets, tokens) of those tokens, by the student's whole distribution.
        teacher_logprobs: (targets, tokens); minus infinity where a place is empty.
        beta: see `generalized_jsd`.
        add_tail: what is left of both distributions counts as one more token; otherwise both are normalised over the
            tokens that are known.

    Returns:
        (targets,)
    """
    is_empty = teacher_logprobs == -torch.inf
    both = [logprobs.masked_fill(is_empty, -torch.inf) for logprobs in (student_logprobs, teacher_logprobs)]
    ready = [_with_tail(one) if add_tail else one - one.logsumexp(-1, keepdim=True) for one in both]
    return generalized_jsd(ready[0], ready[1], beta)


def _with_tail(logprobs_TK: Tensor) -> Tensor:
    """(targets, tokens + 1); at least 1e-7 is left, so that its logarithm has a slope."""
    total = logprobs_TK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logprobs_TK, torch.log(-torch.expm1(total))], -1)


def _log_mixture(log_p_TV: Tensor, log_q_TV: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_p_TV + math.log1p(-beta), log_q_TV + math.log(beta))
