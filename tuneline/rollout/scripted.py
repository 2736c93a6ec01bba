"""An engine that says what it was told to: for tests of whatever stands around one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from tuneline.errors import RolloutError
from tuneline.rollout.protocol import Completion, Request, Sampling

Ids = Sequence[int]
Script = Mapping[tuple[int, ...], Sequence[Ids]] | Callable[[list[int], int], Ids | Completion] | Sequence[Ids]


class ScriptedEngine:
    """Implements `RolloutEngine` with completions that are given.

    They are cut at the request's limit and end with the first stop token, as any engine's; support is never cut.

    Args:
        script: a function of (prompt ids, seed) that gives token ids or a whole `Completion`; or a mapping from
            prompts, as tuples, to their completions, dealt out in turn over all calls; or one list for all prompts.
        logprobs: what each token is said to have; or a function of (prompt ids, completion ids), one number a token.

    Attributes:
        calls: the (requests, sampling) of every call of `generate`, in order.
        num_syncs: calls of `sync_weights`; `synced` is the model of the last.
        is_closed: whether `close` was called.
    """

    def __init__(self, script: Script, *, logprobs: float | Callable[[list[int], list[int]], Sequence[float]] = 0.0):
        self.script, self.logprobs = script, logprobs
        self.calls: list[tuple[list[Request], Sampling]] = []
        self.num_syncs = 0
        self.synced: nn.Module | None = None
        self.is_closed = False
        self._num_dealt: dict[tuple[int, ...], int] = {}

    @property
    def requests(self) -> list[Request]:
        """All that was asked for, over all calls."""
        return [request for requests, _ in self.calls for request in requests]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request a completion a seed, in order.

        Raises:
            RolloutError: a prompt that the script does not know, or an empty completion.
        """
        self.calls.append((list(requests), sampling))
        return [[self._complete(request, seed, sampling) for seed in request.seeds] for request in requests]

    def sync_weights(self, model: nn.Module) -> None:
        self.num_syncs += 1
        self.synced = model

    def close(self) -> None:
        self.is_closed = True

    def _complete(self, request: Request, seed: int, sampling: Sampling) -> Completion:
        prompt = list(request.prompt_ids)
        said: Any = self.script(prompt, seed) if callable(self.script) else self._deal(tuple(prompt))
        if isinstance(said, Completion):
            return said
        limit = sampling.max_new_tokens
        if request.max_new_tokens is not None:
            limit = min(limit, request.max_new_tokens)
        ids = list(said)[:limit]
        end = next((i for i, token in enumerate(ids) if token in sampling.stop_token_ids), None)
        ids = ids if end is None else ids[: end + 1]
        if not ids:
            raise RolloutError(f"scripted engine: an empty completion for the prompt {prompt}; give at least a token.")
        logprobs = self.logprobs(prompt, ids) if callable(self.logprobs) else [self.logprobs] * len(ids)
        return Completion(ids, list(logprobs), is_finished=end is not None)

    def _deal(self, prompt: tuple[int, ...]) -> Ids:
        if isinstance(self.script, Mapping):
            if prompt not in self.script:
                raise RolloutError(f"scripted engine: the script has no completions for the prompt {list(prompt)}.")
            completions, key = self.script[prompt], prompt
        else:
            assert not callable(self.script)
            completions, key = self.script, ()
        if not completions:
            raise RolloutError(f"scripted engine: the script has an empty list for the prompt {list(prompt)}.")
        turn = self._num_dealt.get(key, 0)
        self._num_dealt[key] = turn + 1
        return completions[turn % len(completions)]
