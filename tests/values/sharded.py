"""Run by the launcher in test_processes.py: values and gradients of a sharded module against those of a whole one."""

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from tests.trees.test_equality import random_trees
from tests.values.build import FORMS, build, values_of
from tuneline.trees import lay_out
from tuneline.values import PolicyAndValue, logprobs_and_values


def ask(both: torch.nn.Module, trees) -> tuple[torch.Tensor, torch.Tensor]:
    found, values = logprobs_and_values(both, trees)
    (found.logprobs.mean() + values.square().mean()).backward()
    return found.logprobs.detach(), values.detach()


def shard(both: PolicyAndValue, kind: str) -> torch.nn.Module:
    layers = [module for name, module in both.named_modules() if name.rpartition(".")[0].endswith("layers")]
    if kind == "fsdp":
        kinds = {type(layer) for layer in layers}
        wrap = lambda module, recurse, **_: recurse or type(module) in kinds  # noqa: E731
        return FullyShardedDataParallel(
            both, auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu")
        )
    for layer in layers:
        fully_shard(layer)
    return fully_shard(both)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def main(kind: str) -> None:
    dist.init_process_group("gloo")
    trees = lay_out(random_trees())
    for form in FORMS:
        whole = build(form, tie_word_embeddings=False).train()
        whole.gradient_checkpointing_enable({"use_reentrant": False})
        sharded = shard(copy.deepcopy(whole), kind)
        for found, expected in zip(ask(sharded, trees), ask(whole, trees), strict=True):
            assert_close(found, expected, atol=1e-5, rtol=1e-5)
        if kind == "fsdp2":  # the other keeps flat parts
            expected = gradients(whole)
            found = gradients(sharded)
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=f"{form} {name}": f"{n}: {m}")
        with torch.no_grad():
            assert_close(values_of(sharded, trees), values_of(whole, trees), atol=1e-5, rtol=1e-5)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
