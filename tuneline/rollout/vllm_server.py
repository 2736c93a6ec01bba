"""The rollout engine that draws from a vLLM server, and hands it the policy's weights through shared memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tuneline.errors import RolloutError
from tuneline.logging import get_logger
from tuneline.models.layouts import base_model
from tuneline.rollout.images import refuse_images
from tuneline.rollout.protocol import Completion, Request, Sampling
from tuneline.rollout.vllm_client import VLLMClient
from tuneline.rollout.vllm_launch import ServerProcess, server_options
from tuneline.rollout.vllm_weights import WeightFolder, checkpoint_tensors, plain_lora
from tuneline.rollout.vllm_wire import (
    ADAPTER,
    BACKEND,
    DESCRIBE,
    GENERATE,
    Bulk,
    ServerFacts,
    read_completions,
    support_width,
)

logger = get_logger(__name__)


class VLLMServer:
    """Completions from a vLLM server that was started with `server_options()`, here or elsewhere.

    All ranks may draw at once; all must call `sync_weights` together, and the first hands over. While weights change
    the server draws nothing. If an update fails nothing is drawn until one succeeds.

    Args:
        base_url: such as `http://127.0.0.1:8000`.
        process: the server, if it is ours to end.
        request_timeout: seconds for any one call.
        wait_timeout: seconds until the server must be healthy.
        weights_folder: seen by the trainer and the server alike, in memory.
        structured_outputs_regex: what each completion must match.
        max_support: most tokens of a cut support that are asked for; a completion with a wider one has none.
        max_completions_per_call: more go in several calls at once.

    Raises:
        RolloutError: the server is not reached, is not healthy in time, or was started without what it needs.
    """

    def __init__(
        self,
        base_url: str,
        *,
        process: ServerProcess | None = None,
        request_timeout: float = 600.0,
        wait_timeout: float = 240.0,
        weights_folder: str = "/dev/shm",
        structured_outputs_regex: str | None = None,
        max_support: int = 512,
        max_completions_per_call: int = 256,
    ):
        self._process = process
        why_down: Callable[[], str | None] = process.why_down if process else lambda: None
        self.client = VLLMClient(base_url, request_timeout, why_down)
        self._regex = structured_outputs_regex
        self._max_support = max_support
        self._max_completions_per_call = max_completions_per_call
        self._lock = threading.Lock()
        self._adapter: str | None = None
        self._adapter_path: Any = None
        self._has_base = False
        self.num_unknown_supports = 0  # completions whose cut support was wider than what was asked for
        self._folder = WeightFolder(weights_folder)
        self.client.wait_until_healthy(wait_timeout)
        self.facts = self._describe()
        self._broken = None if self.facts.has_weights else "it was started without weights, and none came yet"
        self._check_server()

    def check(self, model: nn.Module, min_length: int = 0) -> None:
        """Before training: is the server the policy's, and is there room for a prompt and its completion?

        Args:
            min_length: tokens of the longest prompt and the longest completion together.
        """
        self.client.get("/health", timeout=30)
        config = base_model(model).config.get_text_config()
        for name, theirs, ours in (
            ("model type", self.facts.model_type, config.model_type),
            ("vocabulary size", self.facts.vocab_size, config.vocab_size),
            ("hidden size", self.facts.hidden_size, config.hidden_size),
            ("number of layers", self.facts.num_layers, config.num_hidden_layers),
        ):
            if theirs != ours:
                raise self._error(
                    f"it serves {self.facts.model!r} with {name} {theirs}, and the policy has {ours}; serve the "
                    "policy's own model"
                )
        if self.facts.max_length < min_length:
            raise self._error(
                f"prompt and completion may take {self.facts.max_length} tokens there, and {min_length} are wanted; "
                "raise vllm_max_model_length (--max-model-len), or lower max_completion_length"
            )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if self._broken:
            raise self._error(f"its weights are not the policy's: {self._broken}")
        refuse_images(requests, "vLLM server")
        for request in requests:
            wanted = len(request.prompt_ids) + (request.max_new_tokens or sampling.max_new_tokens)
            if wanted > self.facts.max_length:
                raise self._error(
                    f"a prompt of {len(request.prompt_ids)} tokens and its completion may take {wanted} tokens, and "
                    f"the server holds {self.facts.max_length}; raise vllm_max_model_length, or lower "
                    "max_completion_length"
                )
        width = support_width(sampling, self.facts.vocab_size, self._max_support, self._regex)
        pieces = list(_pieces(requests, self._max_completions_per_call))
        bulks = [Bulk(piece, sampling, self._regex, width, self._adapter) for piece in pieces]
        with self._lock, ThreadPoolExecutor(max(1, min(len(bulks), 16))) as pool:
            answers = [group for groups in pool.map(self._draw, bulks) for group in groups]
        if width:
            self._count_unknown_supports(answers)
        return _put_together(requests, answers)

    def sync_weights(self, model: nn.Module) -> None:
        started = time.monotonic()
        lora = plain_lora(model)
        is_alone = lora is not None and lora.r <= self.facts.max_lora_rank
        tensors = None if is_alone and self._has_base else checkpoint_tensors(model, merged=not is_alone)
        _on_first_rank(lambda: self._update(model if is_alone else None, tensors))
        self._has_base = is_alone
        self._adapter = ADAPTER if is_alone else None
        self._broken = None
        logger.debug(
            "vLLM server %s took %d tensors%s in %.3f s",
            self.client.base_url,
            len(tensors or ()),
            " and an adapter" if is_alone else "",
            time.monotonic() - started,
        )

    def close(self) -> None:
        self._folder.close()
        if self._process is not None:
            self._process.close()

    def _describe(self) -> ServerFacts:
        try:
            return ServerFacts.read(self.client.get(DESCRIBE, timeout=60))
        except (RolloutError, ValueError) as error:
            raise self._error(
                f"it does not say what it serves ({error}); start it with these options too: "
                f"{' '.join(server_options())}, and with tuneline on its PYTHONPATH"
            ) from error

    def _check_server(self) -> None:
        facts = self.facts
        wrong = []
        if facts.logprobs_mode != "processed_logprobs":
            wrong.append(f"--logprobs-mode is {facts.logprobs_mode}, and must be processed_logprobs")
        if facts.backend != BACKEND:
            wrong.append(f"the backend of --weight-transfer-config is {facts.backend}, and must be {BACKEND}")
        if facts.max_logprobs != -1 and facts.max_logprobs <= self._max_support:
            wrong.append(f"--max-logprobs is {facts.max_logprobs}, and must be -1")
        if wrong:
            raise self._error("; ".join(wrong))
        probe = self._folder.probe()
        try:
            info = {"init_info": {"probe": str(probe)}}
            self.client.post("/init_weight_transfer_engine", info, timeout=60, is_idempotent=True)
        finally:
            self._folder.remove(probe)

    def _draw(self, bulk: Bulk) -> list[list[Completion]]:
        answer = self.client.post(GENERATE, bulk.body(), is_idempotent=True)
        try:
            return read_completions(answer, bulk.requests)
        except ValueError as error:
            raise self._error(f"POST {GENERATE}: not an answer: {error}") from error

    def _update(self, adapted: Any, tensors: dict[str, Tensor] | None) -> None:
        with self._lock:
            self.client.post("/pause?mode=wait", is_idempotent=True)
            try:
                if tensors is not None:
                    self._send_weights(tensors)
                if adapted is not None:
                    self._send_adapter(adapted)
                answer = self.client.post("/reset_prefix_cache", is_idempotent=True)
                if isinstance(answer, dict) and not answer.get("success", True):
                    raise self._error("POST /reset_prefix_cache: it kept entries of the old weights")
            except RolloutError as error:
                self._broken, self._has_base = f"an update failed ({error})", False
                self._leave_update()
                raise
            self.client.post("/resume", is_idempotent=True)

    def _send_weights(self, tensors: dict[str, Tensor]) -> None:
        path = self._folder.write_weights(tensors, getattr(torch, self.facts.dtype))
        try:
            self.client.post("/start_weight_update", {}, is_idempotent=False)
            self.client.post("/update_weights", {"update_info": {"path": str(path)}}, is_idempotent=False)
            self.client.post("/finish_weight_update", {}, is_idempotent=False)
        finally:
            self._folder.remove(path)

    def _leave_update(self) -> None:
        """After a failure: let the server take another update, and serve whoever else it serves."""
        for path in ("/finish_weight_update", "/resume"):
            with contextlib.suppress(RolloutError):
                self.client.post(path, {}, timeout=30, is_idempotent=False)

    def _send_adapter(self, model: Any) -> None:
        # A new folder each time, and the last one stays: after an update of the base weights vLLM reads it again.
        path = self._folder.write_adapter(model, model.active_peft_config)
        body = {"lora_name": ADAPTER, "lora_path": str(path), "load_inplace": True}
        self.client.post("/v1/load_lora_adapter", body, is_idempotent=True)
        if self._adapter_path is not None:
            self._folder.remove(self._adapter_path)
        self._adapter_path = path

    def _count_unknown_supports(self, groups: list[list[Completion]]) -> None:
        unknown = sum(completion.support is None for group in groups for completion in group)
        self.num_unknown_supports += unknown
        if unknown:
            logger.warning(
                "%d completions could draw from more than %d tokens somewhere: they come without their support; lower "
                "top_p, set top_k, or raise max_support",
                unknown,
                self._max_support,
            )

    def _error(self, reason: str) -> RolloutError:
        return RolloutError(f"vLLM server {self.client.base_url}: {reason}.")


def _pieces(requests: Sequence[Request], most: int) -> Iterator[list[Request]]:
    """Requests in lists of at most `most` completions; one with more seeds than that is split."""
    piece: list[Request] = []
    room = most
    for request in requests:
        seeds = list(request.seeds)
        while seeds:
            taken, seeds = seeds[:room], seeds[room:]
            piece.append(Request(request.prompt_ids, taken, request.max_new_tokens))
            room -= len(taken)
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def _put_together(requests: Sequence[Request], groups: list[list[Completion]]) -> list[list[Completion]]:
    """One list a request again."""
    rest = (completion for group in groups for completion in group)
    return [[next(rest) for _ in request.seeds] for request in requests]


def _on_first_rank(act: Callable[[], None]) -> None:
    """Do it on rank 0 while the others wait; where it fails, it fails on all."""
    if not (dist.is_available() and dist.is_initialized()):
        act()
        return
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            act()
        except RolloutError as error:
            failure = [str(error)]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise RolloutError(failure[0])
