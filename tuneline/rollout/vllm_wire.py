"""What the trainer and its vLLM server say to each other: names, paths, and the bodies of the two calls of our own.

vLLM's HTTP interface takes one seed a call. A rollout wants one seed a completion and thousands of completions, so the
server is started with a small service of ours (`vllm_service`) that takes them in bulk; health, pausing, weights and
adapters go through vLLM's own endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tuneline.rollout.protocol import Completion, Request, Sampling

BACKEND = "tuneline"  # of `--weight-transfer-config`
WORKER_EXTENSION = "tuneline.rollout.vllm_worker.WorkerExtension"
SERVICE = "tuneline.rollout.vllm_service.Service"
DESCRIBE = "/tuneline/describe"
GENERATE = "/tuneline/generate"
ADAPTER = "policy"


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself.

    Attributes:
        vocab_size, hidden_size, num_layers, model_type: of the model it serves.
        max_length: tokens that a prompt and its completion may have together.
        logprobs_mode: must be `processed_logprobs`, the log-probabilities after temperature and truncation.
        max_logprobs: most log-probabilities a token it gives; -1 for all.
        backend: of its weight transfer; None if it takes no weights.
        max_lora_rank: 0 if it takes no adapters.
        has_weights: it was started with some, not to be given them.
    """

    version: str
    model: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_length: int
    dtype: str
    device: str
    logprobs_mode: str
    max_logprobs: int
    backend: str | None
    max_lora_rank: int
    has_weights: bool

    @classmethod
    def read(cls, answer: Any) -> ServerFacts:
        """From the body of an answer; ValueError if it is none."""
        if not isinstance(answer, dict) or set(answer) != {f.name for f in fields(cls)}:
            raise ValueError(f"no description of a server: {str(answer)[:200]!r}")
        return cls(**answer)


@dataclass(frozen=True)
class Bulk:
    """One call: requests, how they are drawn, and by what.

    Attributes:
        regex: what each completion must match.
        width: log-probabilities wanted a token, to find what could be drawn; 0 where the support is whole.
        adapter: name of a loaded adapter; None for the weights alone.
    """

    requests: Sequence[Request]
    sampling: Sampling
    regex: str | None = None
    width: int = 0
    adapter: str | None = None

    def body(self) -> dict[str, Any]:
        body = asdict(self)
        for request in body["requests"]:
            del request["images"]  # a server is asked for texts alone
        return body

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Bulk:
        """From the body of a call; ValueError, KeyError or TypeError if it is none."""
        sampling = Sampling(**{**body["sampling"], "stop_token_ids": tuple(body["sampling"]["stop_token_ids"])})
        requests = [Request(**request) for request in body["requests"]]
        return cls(requests, sampling, body["regex"], body["width"], body["adapter"])


def support_width(sampling: Sampling, vocab_size: int, max_support: int, regex: str | None) -> int:
    """How many log-probabilities a token show the whole support; one more than it holds, as the last must be -inf."""
    if not sampling.cuts_support and regex is None:
        return 0
    most = min(sampling.top_k, max_support) if sampling.top_k > 0 else max_support
    return min(most + 1, vocab_size)


def read_completions(answer: Any, requests: Sequence[Request]) -> list[list[Completion]]:
    """From the body of an answer; ValueError if it does not fit the requests."""
    drawn = answer.get("completions") if isinstance(answer, dict) else None
    if not isinstance(drawn, list) or [len(group) for group in drawn] != [len(r.seeds) for r in requests]:
        raise ValueError(f"no completion a seed: {str(answer)[:200]!r}")
    try:
        groups = [[Completion(**completion) for completion in group] for group in drawn]
    except TypeError as error:
        raise ValueError(f"a completion with other fields: {error}") from error
    for group in groups:
        for completion in group:
            if not completion.ids or len(completion.ids) != len(completion.logprobs):
                raise ValueError(f"{len(completion.ids)} tokens with {len(completion.logprobs)} log-probabilities")
    return groups
