"""Both sides of the generation benchmark write the completions that they are asked for."""

import argparse
import json

import pytest
import torch

from benchmarks.generation import GenerationWork, prepare
from benchmarks.generation_side import as_trl, as_tuneline
from tests.models import tiny_causal_lm
from tuneline.errors import DataError


@pytest.mark.parametrize("side", [as_trl, as_tuneline])
def test_completions_have_the_lengths_asked_for_or_end_before(side):
    model = tiny_causal_lm().eval()
    call = [{"ids": [5, 6, 7], "lengths": [3, 8]}, {"ids": [9], "lengths": [1, 4]}]
    work = GenerationWork([call, call], 8, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    torch.manual_seed(0)
    assert 4 <= side(model, work)(call) <= 3 + 8 + 1 + 4
    assert work.lengths == [3, 8, 1, 4]


def test_prompts_and_lengths_come_from_the_data(tmp_path):
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}." + " Yes." * n} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dict(data=data, prompts=2, calls=2, num_generations=3, max_completion_length=5, seed=1)
    arguments = argparse.Namespace(**options, temperature=1.0, top_p=1.0, top_k=0)
    work = prepare(arguments, tmp_path)
    assert [len(call) for call in work.calls] == [2, 2, 2]
    assert len(work.lengths) == 2 * 2 * 3
    assert 1 < min(work.lengths) <= max(work.lengths) <= 5
    assert GenerationWork(**json.loads((tmp_path / "work.json").read_text())) == work
    arguments.calls = 3
    with pytest.raises(DataError, match="has 6 different questions; 8 are needed"):
        prepare(arguments, tmp_path)
