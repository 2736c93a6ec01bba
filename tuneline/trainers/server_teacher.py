"""A teacher behind a vLLM server, which says of each target how likely it and the likeliest few tokens are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tuneline.divergence import KnownTokens
from tuneline.errors import ConfigError, RolloutError
from tuneline.rollout.vllm_client import VLLMClient
from tuneline.trees import PromptTrees, pad_out

_CALLS_AT_ONCE = 4
_COMPLETIONS = "/v1/completions"


class ServerTeacher:
    """Asks a server for prompt log-probabilities; any vLLM server will do, also one that tuneline did not start.

    Args:
        url: such as `http://127.0.0.1:8000`.
        vocab_size: tokens of the student; those of the teacher have to mean the same.
        beta, top_k: which tokens are compared at a target. beta 0: the teacher's `top_k` likeliest; 1: the one that
            was written; between: that one and the teacher's likeliest.
        add_tail: see `jsd_on_support`.
        timeout: seconds for a call.
        wait: seconds until the server must be healthy.

    Raises:
        ConfigError: an address that is none, or a server of several models.
        RolloutError: the server is not reached.
    """

    def __init__(
        self, url: str, vocab_size: int, *, beta: float, top_k: int, add_tail: bool, timeout: float, wait: float = 240.0
    ):
        self._client = VLLMClient(url, timeout, option="teacher_model_server_url")
        self._vocab_size = vocab_size
        self._beta, self._top_k, self._add_tail = beta, top_k, add_tail
        self._client.wait_until_healthy(wait)
        models = self._client.get("/v1/models", timeout=60).get("data", [])
        bases = [model for model in models if not model.get("parent")]
        if len(bases) != 1:
            names = ", ".join(str(model.get("id")) for model in bases) or "none"
            raise ConfigError(f"teacher_model_server_url={url!r} serves {names}; it has to serve the teacher alone.")
        self.model: str = bases[0]["id"]
        self.max_length: int | None = bases[0].get("max_model_len")

    def answer(self, trees: PromptTrees) -> KnownTokens:
        """What it says of the targets.

        Raises:
            RolloutError: the server fails, knows tokens that the student does not, or leaves out what was asked for.
        """
        rows = pad_out(trees, 0)
        lengths = rows.attention_mask.sum(-1).tolist()
        sequences = [ids[:length] for ids, length in zip(rows.input_ids.tolist(), lengths, strict=True)]
        if self.max_length is not None and max(lengths) >= self.max_length:
            raise self._error(
                f"a prompt and its completion have {max(lengths)} tokens, and it reads less than {self.max_length}; "
                "raise its --max-model-len, or lower max_completion_length"
            )
        said = self._ask(sequences)
        ids, logprobs = [], []
        places = zip(rows.target_rows.tolist(), (rows.target_columns + 1).tolist(), strict=True)
        for row, place in places:
            known = self._known(said[row][place], sequences[row][place])
            ids.append([token for token, _ in known])
            logprobs.append([logprob for _, logprob in known])
        device = trees.target_ids.device
        return KnownTokens(
            torch.tensor(ids, device=device), torch.tensor(logprobs, device=device, dtype=torch.float32), self._add_tail
        )

    def _ask(self, sequences: Sequence[Sequence[int]]) -> list[list[Mapping[str, Any] | None]]:
        """For each sequence what was said at each of its tokens; of the first there is nothing to say."""
        pieces = [
            sequences[i :: min(_CALLS_AT_ONCE, len(sequences))] for i in range(min(_CALLS_AT_ONCE, len(sequences)))
        ]
        with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
            answers = list(pool.map(self._call, pieces))
        said: list[Any] = [None] * len(sequences)
        for i, answer in enumerate(answers):
            said[i :: len(pieces)] = answer
        return said

    def _call(self, sequences: Sequence[Sequence[int]]) -> list[list[Mapping[str, Any] | None]]:
        body = {
            "model": self.model,
            "prompt": list(sequences),
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": self._top_k,
        }
        answer = self._client.post(_COMPLETIONS, body, is_idempotent=True)
        try:
            said = [choice["prompt_logprobs"] for choice in sorted(answer["choices"], key=lambda one: one["index"])]
            if [len(one) for one in said] != [len(ids) for ids in sequences]:
                raise ValueError("other lengths than were sent")
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"POST {_COMPLETIONS}: not what was asked for ({error!r})") from error
        return said

    def _known(self, said: Mapping[str, Any] | None, written: int) -> list[tuple[int, float]]:
        """Tokens that are compared at a target; minus infinity at a place that is left empty."""
        try:
            known = [(int(token), float(one["logprob"]), int(one["rank"])) for token, one in (said or {}).items()]
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"log-probabilities that are none: {error!r}") from error
        if any(token >= self._vocab_size for token, _, _ in known):
            raise self._error(
                f"{self.model} knows the token {max(known)[0]}, and the student has {self._vocab_size}; a teacher "
                "needs the student's tokenizer"
            )
        top = sorted((one for one in known if one[2] <= self._top_k), key=lambda one: one[2])[: self._top_k]
        own = [one for one in known if one[0] == written]
        if (self._beta > 0 and not own) or (self._beta < 1 and not top):
            raise self._error("it leaves out log-probabilities that were asked for; start it with --max-logprobs -1")
        if self._beta == 0:
            wanted, width = top, self._top_k
        elif self._beta == 1:
            wanted, width = own, 1
        else:
            wanted, width = [*top, *(one for one in own if one[0] != top[0][0])], 2
        found = [(token, -math.inf if math.isnan(logprob) else logprob) for token, logprob, _ in wanted]
        return found + [(0, -math.inf)] * (width - len(found))

    def _error(self, reason: str) -> RolloutError:
        return RolloutError(f"teacher at {self._client.base_url}: {reason}.")
