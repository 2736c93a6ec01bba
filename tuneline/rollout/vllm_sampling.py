"""From our requests to vLLM's sampling parameters, and from its outputs to completions. Runs where vLLM is."""

from __future__ import annotations

import math
from typing import Any

from tuneline.rollout.protocol import Completion, Sampling


def sampling_params(sampling: Sampling, seed: int, max_new_tokens: int | None, regex: str | None, width: int) -> Any:
    """vLLM's parameters for one completion: nothing ends it but our stop tokens, the limit, or the end of `regex`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    limit = sampling.max_new_tokens if max_new_tokens is None else min(max_new_tokens, sampling.max_new_tokens)
    return SamplingParams(
        seed=seed,
        max_tokens=limit,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or 0.0,
        repetition_penalty=sampling.repetition_penalty,
        stop_token_ids=list(sampling.stop_token_ids),
        # The model's own end token counts only where it is among the stop tokens, or where a pattern must end.
        ignore_eos=regex is None,
        structured_outputs=None if regex is None else StructuredOutputsParams(regex=regex),
        logprobs=width,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_output(output: Any, width: int, vocab_size: int) -> Completion:
    """A completion from vLLM's output; its support is None where none was cut, or where `width` did not hold it."""
    flat = output.logprobs
    logprobs = [flat.logprobs[start] for start in flat.start_indices]  # the token drawn comes first
    if not all(map(math.isfinite, logprobs)):
        raise ValueError("vLLM's log-probabilities are no numbers; the policy's weights may hold some that are none")
    support: list[list[int]] | None = [] if width else None
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        if support is None:
            break
        ids = [flat.token_ids[i] for i in range(start + 1, end) if flat.logprobs[i] > -math.inf]
        is_whole = len(ids) < width or width == vocab_size
        # Of tokens equally likely at the edge vLLM may list another than the one it drew.
        support = [*support, sorted({flat.token_ids[start], *ids})] if is_whole else None
    return Completion(list(output.token_ids), logprobs, output.finish_reason == "stop", support)
