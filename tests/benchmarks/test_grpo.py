"""The GRPO benchmark gives both sides the same work, and notices where they did other."""

import json
import time

import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig

from benchmarks.grpo import _parser, _workload, main
from benchmarks.grpo_report import AGREEMENTS, comparison_of, grpo_table
from benchmarks.grpo_work import WARM_UP_LENGTH, GRPOWork, GRPOWorkload, prepare
from benchmarks.parts import check_agreement
from benchmarks.phases import Phases
from benchmarks.rollouts import EngineOfLengths, Script, generate_of_lengths
from benchmarks.workload import Work
from tests.models import tiny_causal_lm
from tuneline.errors import ConfigError, DataError
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.transformers_engine import TransformersEngine

EOS = 0
ROWS = [
    {"prompt": "a", "prompt_ids": [5, 6, 7], "completions": [[8, 9, EOS], [8, EOS, 9, 9, EOS]]},
    {"prompt": "b", "prompt_ids": [9], "completions": [[EOS], [7, EOS]]},
]
WORKLOAD = GRPOWorkload("", 1, 2, 2, 2, 8, 1e-6, True, 0)


def test_trl_writes_completions_of_the_given_lengths():
    model, script = tiny_causal_lm().eval(), Script(ROWS, EOS)
    generate = generate_of_lengths(model.generate, script)
    prompts = [[5, 6, 7], [5, 6, 7], [1, 1, 9], [1, 1, 9]]
    mask = [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 1]]
    config = GenerationConfig(max_new_tokens=8, do_sample=True, pad_token_id=1, eos_token_id=[EOS])
    written = generate(torch.tensor(prompts), torch.tensor(mask), config)[:, 3:].tolist()
    assert [row.index(EOS) + 1 for row in written] == [3, 5, 1, 2]
    assert config.eos_token_id == [EOS]


def test_tuneline_writes_completions_of_the_given_lengths():
    engine = EngineOfLengths(TransformersEngine(tiny_causal_lm()), Script(ROWS, EOS))
    drawn = engine.generate([Request([5, 6, 7], [1, 2]), Request([9], [3, 4])], Sampling(8, stop_token_ids=(EOS,)))
    assert [len(one.ids) for group in drawn for one in group] == [3, 5, 1, 2]
    assert all(one.is_finished and one.ids.index(EOS) == len(one.ids) - 1 for group in drawn for one in group)


def test_scripted_rollouts_are_the_solutions_in_turn():
    script = Script(ROWS, EOS)
    found = script.rollout_func(["a", "a", "b"], None)
    assert found["prompt_ids"] == [[5, 6, 7], [5, 6, 7], [9]]
    assert found["completion_ids"] == [[8, 9, EOS], [8, EOS, 9, 9, EOS], [EOS]]


def test_work_is_counted_from_the_measured_rows(tmp_path):
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}." + " Yes." * 30} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workload = GRPOWorkload(str(data), 1, 2, 3, 3, 12, 1e-6, True, 0)
    work = prepare(workload, tmp_path)
    made = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [len(row["completions"]) for row in made] == [3] * 4
    assert max(len(ids) for row in made[:2] for ids in row["completions"]) <= WARM_UP_LENGTH
    measured = [(len(row["prompt_ids"]), len(ids)) for row in made[2:] for ids in row["completions"]]
    assert work.completions == 6
    assert work.completion_tokens == work.update.targets == sum(length for _, length in measured)
    assert work.update.real_tokens == sum(prompt + length for prompt, length in measured)
    with pytest.raises(DataError, match="4 different questions; 6 are needed"):
        prepare(GRPOWorkload(str(data), 2, 2, 3, 3, 12, 1e-6, True, 0), tmp_path)


def test_a_phase_within_another_is_taken_out_of_it():
    class Owner:
        def sleep(self, seconds):
            time.sleep(seconds)
            return "slept"

    phases, owner = Phases(), Owner()
    phases.watch("inner", owner, "sleep")
    with phases.timed("outer"):
        assert owner.sleep(0.5) == "slept"
    assert phases.seconds["inner"] >= 0.5
    assert phases.seconds["outer"] < 0.4
    assert 0 <= phases.processor_seconds["inner"] < 0.4


def test_batches_that_do_not_divide_a_step_are_refused():
    with pytest.raises(ConfigError, match=r"--batch-size 3 does not divide the 32 completions"):
        _workload(_parser().parse_args(["--batch-size", "3"]))
    with pytest.raises(ConfigError, match=r"--num-generations 1 must be at least 2"):
        _workload(_parser().parse_args(["--num-generations", "1"]))


def _run(**changes):
    run = {
        "loop_seconds": 2.0,
        "peak_memory": 2.0**30,
        "memory_before": 2.0**29,
        "peak_flops": 1e9,
        "waited": 0.0,
        "num_threads": 1,
        "processor_seconds": 2.0,
        "phases": {"rollout": 1.5, "forward": 0.5},
        "processor_phases": {"rollout": 1.4, "forward": 0.5},
        "losses": [0.5, 0.25],
        "grad_norms": [1.0, 2.0],
        "entropies": [3.0, 4.0],
    }
    return run | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"losses": [0.5, 0.2502]}, "losses of the two sides differ by 2.0e-04, more than 1e-04"),
        ({"grad_norms": [1.0, 2.01]}, "grad norms"),
        ({"losses": [0.5, float("nan")]}, "losses"),
    ],
)
def test_sides_that_disagree_are_told(changes, told):
    work = GRPOWork(4, 40, 10.0, 12, Work(2, 60, 50, 70, 40, 1e9))
    runs = {part: {"trl": [_run()], "tuneline": [_run(loop_seconds=0.5, **changes)]} for part in ("steps", "update")}
    comparison = comparison_of(WORKLOAD, work, runs)
    console = Console(record=True, width=200)
    assert check_agreement(comparison, AGREEMENTS, console) == bool(told)
    console.print(grpo_table(comparison, work))
    text = console.export_text()
    assert told in text
    assert "1 / 4.00" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_sides_learn_from_the_same_completions(tmp_path):
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"What is {n} and {n}?", "answer": f"{2 * n} it is." + " Yes." * n} for n in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = tmp_path / "result.json"
    sizes = {"steps": 1, "prompts": 2, "num-generations": 4, "batch-size": 4, "max-completion-length": 8}
    small = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    assert main([*small, "--data", str(data), "--json", str(result)], Console()) == 0
    runs = json.loads(result.read_text())["runs"]
    assert runs["steps"]["trl"][0]["mean_lengths"] == runs["steps"]["tuneline"][0]["mean_lengths"]
