"""Run by the interpreter with vLLM, as on a CPU vLLM pins the process to one thread: draws, updates, draws again.

Prints one line of JSON: for each set of weights the largest difference between the sampler's log-probabilities and
those of the model that it was given.
"""

import json
import sys

import torch
from peft import LoraConfig, get_peft_model

from tests.vllm.policies import perturb, tiny_policy
from tuneline.errors import RolloutError
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.vllm_config import write_blueprint
from tuneline.rollout.vllm_inprocess import VLLMInProcess

REQUESTS = [Request([5, 6, 7, 8, i], [2**63 - 1 - i, i]) for i in range(10, 14)]


def worst_difference(model, groups):
    worst = 0.0
    for request, group in zip(REQUESTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
            with torch.no_grad():
                log_p = model(ids).logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
            ours = log_p.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            worst = max(worst, float((ours - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def main(folder):
    model, tokenizer = tiny_policy()
    write_blueprint(model, tokenizer, folder)
    options = {"enforce_eager": True}
    engine = VLLMInProcess(folder, dtype="float32", max_model_length=128, lora_rank=8, engine_options=options)
    refused = False
    try:
        engine.generate(REQUESTS, Sampling(12))
    except RolloutError:
        refused = True
    assert refused  # it has no weights yet
    seen = []
    for seed in (1, 2):
        perturb(model, 0.1, seed)
        engine.sync_weights(model)
        groups = engine.generate(REQUESTS, Sampling(12))
        assert groups == engine.generate(REQUESTS, Sampling(12))
        seen.append(worst_difference(model, groups))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    for seed in (3, 4):
        perturb(adapted, 0.1, seed)
        engine.sync_weights(adapted)
        seen.append(worst_difference(adapted, engine.generate(REQUESTS, Sampling(12))))
    [[completion]] = engine.generate([Request([5], [1])], Sampling(4, top_k=3))
    assert [len(ids) for ids in completion.support] == [3] * 4
    engine.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
