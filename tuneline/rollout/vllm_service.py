"""Runs inside `vllm serve`, as `--middleware tuneline.rollout.vllm_service.Service`: completions in bulk, a seed each.

It adds `/tuneline/describe` and `/tuneline/generate`; every other path goes on to vLLM.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import asdict
from typing import Any

import vllm
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.lora.request import LoRARequest

from tuneline.rollout.protocol import Completion, Request
from tuneline.rollout.vllm_sampling import read_output, sampling_params
from tuneline.rollout.vllm_wire import DESCRIBE, GENERATE, Bulk, ServerFacts


class Service:
    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (DESCRIBE, GENERATE):
            await self.app(scope, receive, send)
            return
        state = scope["app"].state
        if scope["path"] == DESCRIBE:
            response = JSONResponse(asdict(describe(state.engine_client.vllm_config)))
        else:
            response = await _generate(state, HttpRequest(scope, receive))
        await response(scope, receive, send)


def describe(config: Any) -> ServerFacts:
    """What a client checks before training, from vLLM's configuration."""
    model, lora, transfer = config.model_config, config.lora_config, config.weight_transfer_config
    return ServerFacts(
        version=vllm.__version__,
        model=model.model,
        model_type=model.hf_text_config.model_type,
        vocab_size=model.get_vocab_size(),
        hidden_size=model.get_hidden_size(),
        num_layers=model.hf_text_config.num_hidden_layers,
        max_length=model.max_model_len,
        dtype=str(model.dtype).removeprefix("torch."),
        device=config.device_config.device_type,
        logprobs_mode=model.logprobs_mode,
        max_logprobs=model.max_logprobs,
        backend=None if transfer is None else transfer.backend,
        max_lora_rank=0 if lora is None else lora.max_lora_rank,
        has_weights=config.load_config.load_format != "dummy",
    )


async def _generate(state: Any, http: HttpRequest) -> JSONResponse:
    try:
        bulk = Bulk.read(json.loads(await http.body()))
    except (ValueError, KeyError, TypeError) as error:
        return JSONResponse({"error": f"not a call of this service: {error!r}"}, status_code=400)
    loaded = state.openai_serving_models.lora_requests
    if bulk.adapter is not None and bulk.adapter not in loaded:
        return JSONResponse({"error": f"no adapter {bulk.adapter!r}; there are {sorted(loaded)}"}, status_code=404)
    adapter = None
    if bulk.adapter is not None:
        # As it was loaded, with `load_inplace`, it would be read from its folder again at every step.
        kept = loaded[bulk.adapter]
        adapter = LoRARequest(kept.lora_name, kept.lora_int_id, kept.lora_path)
    work: asyncio.Future[list[Completion]] = asyncio.gather(
        *(
            _draw(state.engine_client, bulk, request, seed, adapter)
            for request in bulk.requests
            for seed in request.seeds
        )
    )
    # A client that gave up must not keep the engine busy: its disconnection cancels, and so aborts, what it asked for.
    gone: asyncio.Future[Any] = asyncio.ensure_future(http.receive())
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
        rest = iter(await work)
        groups = [[asdict(next(rest)) for _ in request.seeds] for request in bulk.requests]
        return JSONResponse({"completions": groups})
    except asyncio.CancelledError:
        return JSONResponse({"error": "the client is gone"}, status_code=499)
    except Exception as error:  # whatever vLLM raises is the client's to know
        return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=500)
    finally:
        gone.cancel()


async def _draw(client: Any, bulk: Bulk, request: Request, seed: int, adapter: Any) -> Completion:
    params = sampling_params(bulk.sampling, seed, request.max_new_tokens, bulk.regex, bulk.width)
    prompt = {"prompt_token_ids": list(request.prompt_ids)}
    outputs = client.generate(prompt, params, f"tuneline-{uuid.uuid4().hex}", lora_request=adapter)
    final = [output async for output in outputs][-1]
    return read_output(final.outputs[0], bulk.width, client.vllm_config.model_config.get_vocab_size())
