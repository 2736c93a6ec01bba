"""The PPO benchmark gives both sides the same work, and notices where they did other."""

import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, GenerationConfig

from benchmarks import peers
from benchmarks.parts import Agreement, PartsComparison, PartWork, check_agreement
from benchmarks.peers import PEERS, TRL_WITH_PPO, trl_with_ppo
from benchmarks.ppo import _check, _parser, _parts, _workload, main
from benchmarks.ppo_report import AGREEMENTS, BOUNDS, comparison_of, first_step_strays, ppo_table
from benchmarks.ppo_side import METRICS, in_order
from benchmarks.ppo_trl import scripted_generation
from benchmarks.ppo_work import WARM_UP_LENGTH, PPOPart, PPOWorkload, count_part, prepare
from benchmarks.rollouts import Script, generate_of_lengths
from tests.models import tiny_causal_lm
from tuneline.errors import ConfigError, DataError

EOS, PAD = 0, 1
SMALL = {
    "steps": 1,
    "episodes": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "rollout_batch_size": 64,
    "max_prompt_length": 64,
    "response_length": 12,
    "learning_rate": 1e-5,
    "gradient_checkpointing": True,
    "value_function": "model",
    "seed": 0,
}
PART = PPOPart(PartWork(1, 4, 40, 1e9), 5.0, 10.0, 12, 60, 80)


def _workload_of(data="", **changes) -> PPOWorkload:
    return PPOWorkload(data=str(data), **(SMALL | changes))


def _write_pairs(path, num_rows):
    rows = [
        {
            "prompt": f"What is {n} and {n}?" + " Well?" * n,
            "chosen": f" It is {2 * n}." + " Yes." * 9,
            "rejected": " No.",
        }
        for n in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_hold_a_completion_for_each_part(tmp_path):
    workload = _workload_of(_write_pairs(tmp_path / "pairs.jsonl", 6))
    parts = prepare(workload, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    eos = rows[0]["completions"]["steps"][-1]
    for number, row in enumerate(rows):
        longest = WARM_UP_LENGTH if number < 2 else 12
        assert len(row["completions"]["update"]) == longest
        assert len(row["completions"]["steps"]) <= longest
        assert all(ids.index(eos) == len(ids) - 1 for ids in row["completions"].values())
    warm_up, measured = rows[:2], rows[2:]
    assert [row["prompt"][:9] for row in measured] == ["What is 0", "What is 1"]
    assert [row["prompt"][:9] for row in warm_up] == ["What is 2", "What is 3"]  # the shortest of the others
    update = parts["update"]
    assert (update.mean_length, update.longest, update.work.completion_tokens) == (12, 12, 24)
    prompts = [len(row["prompt_ids"]) for row in measured]
    assert update.real_tokens == sum(prompts) + 24
    assert update.padded_tokens == 2 * (max(prompts) + 12)
    with pytest.raises(DataError, match="6 different prompts of at most 64 tokens; 8 are needed"):
        prepare(_workload_of(workload.data, steps=3), tmp_path)


def test_the_text_of_a_given_completion_has_its_tokens(tmp_path):
    prepare(_workload_of(_write_pairs(tmp_path / "pairs.jsonl", 6)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines()):
        ids = row["completions"]["update"][:-1]
        assert tokenizer(row["prompt"] + tokenizer.decode(ids))["input_ids"] == [*row["prompt_ids"], *ids]


def test_work_is_that_of_four_models():
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    config = SimpleNamespace(**sizes, intermediate_size=8, vocab_size=16)
    rows = [{"prompt_ids": [2, 3], "completions": {"steps": [4, 5, EOS], "update": [4, 5, EOS]}}]
    layers = 5 * 3 * 2 * (2 * 16 + 2 * 8 + 3 * 32) + 15 * 4 * 4 * 3  # weights by tokens; keys seen: 1 + 2 + 3 + 4 + 5
    head = 3 * 2 * 4 * 16  # three targets
    # a backward pass is two forward passes, and two epochs are six; before them each model is asked once
    epochs = 6 * (layers + head) + 6 * layers
    scoring = (layers + head) + layers + layers  # reference, value model, reward model
    assert count_part(_workload_of(), rows, "update", config).work.flops == pytest.approx(epochs + scoring)
    assert count_part(_workload_of(), rows, "steps", config).work.flops == pytest.approx(
        epochs + scoring + layers + head  # the rollout
    )


def test_generation_that_gives_scores_has_the_given_lengths():
    model = tiny_causal_lm().eval()
    rows = [
        {"prompt": "a", "prompt_ids": [5, 6, 7], "completions": [[8, 9, 9, EOS]]},
        {"prompt": "b", "prompt_ids": [9], "completions": [[8, EOS]]},
    ]
    generate = generate_of_lengths(model.generate, Script(rows, EOS))
    output = generate(
        input_ids=torch.tensor([[5, 6, 7], [0, 0, 9]]),
        attention_mask=torch.tensor([[1, 1, 1], [0, 0, 1]]),
        generation_config=GenerationConfig(max_new_tokens=8, do_sample=True, pad_token_id=PAD, eos_token_id=EOS),
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [row.tolist().index(EOS) + 1 for row in output.sequences[:, 3:]] == [4, 2]
    assert len(output.scores) == 4


def test_scripted_generation_gives_the_logits_before_each_token():
    queries = torch.tensor([[PAD, 5], [6, 7]])
    rows = [
        {"prompt": "a", "prompt_ids": [5], "completions": [[8, 9]]},
        {"prompt": "b", "prompt_ids": [6, 7], "completions": [[3, 4]]},
    ]

    class Output:
        def __init__(self, sequences):
            self.logits = sequences[..., None].float()  # each position says its own token

    generate = scripted_generation(Script(rows, EOS), lambda model, sequences, pad: Output(sequences))
    sequences, logits = generate(None, queries, 1, PAD, GenerationConfig(temperature=0.5))
    assert sequences.tolist() == [[PAD, 5, 8, 9], [6, 7, 3, 4]]
    assert logits[..., 0].tolist() == [[10, 16], [14, 6]]


def test_mini_batches_are_neighbours():
    assert in_order(6, 3, group_size=1, first=0, key=()) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mini-batches", "3"], "--mini-batches 3 does not divide the 32 episodes"),
        (["--response-length", "1"], "--response-length 1 must be at least 2"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        _workload(_parser().parse_args(options))


def test_trl_that_cannot_be_fetched_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    with pytest.raises(ConfigError, match=f"TRL {TRL_WITH_PPO}, the last one with PPO, .* could not be fetched"):
        trl_with_ppo(said.append, tmp_path)
    assert said == [f"fetching TRL {TRL_WITH_PPO} into {tmp_path / f'trl-{TRL_WITH_PPO}'}"]
    assert not any(tmp_path.iterdir())


def test_trl_is_fetched_once(tmp_path, monkeypatch):
    packages = tmp_path / f"trl-{TRL_WITH_PPO}"
    (packages / "trl" / "experimental" / "ppo").mkdir(parents=True)
    monkeypatch.setattr(peers.subprocess, "run", lambda *args, **kwargs: pytest.fail("fetched again"))
    assert trl_with_ppo(pytest.fail, tmp_path) == packages


def _run(**changes):
    run = {
        "loop_seconds": 4.0,
        "peak_memory": 2.0**31,
        "memory_before": 2.0**29,
        "peak_flops": 1e9,
        "waited": 0.0,
        "num_threads": 1,
        "processor_seconds": 4.0,
        "phases": {"rollout": 1.5, "forward": 2.5},
        "processor_phases": {"rollout": 1.4, "forward": 2.5},
        "losses": [0.5, 0.25],
        **{name: [0.0, 0.1] for name in METRICS},
        "val/ratio": [1.0, 1.1],
    }
    return run | changes


def _compared(**changes) -> PartsComparison:
    other = _run(loop_seconds=1.0, peak_memory=2.0**30, **changes)
    runs = {part: {"trl": [_run()], "tuneline": [other]} for part in ("steps", "update")}
    return comparison_of(_workload_of(), {"steps": PART, "update": PART}, runs)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"losses": [0.5, 0.26]}, "losses of the two sides differ by 1.0e-02, more than 1e-04"),
        ({"loss/value_avg": [0.0, 0.11]}, "loss/value avg"),
        ({"objective/scores": [0.0, float("nan")]}, "objective/scores"),
        ({"objective/kl": [0.5, 0.1]}, "objective/kl of tuneline is 0.500000 before the first update, and must be 0"),
        ({"val/ratio": [1.01, 1.1]}, "val/ratio of tuneline is 1.010000 before the first update, and must be 1"),
    ],
)
def test_sides_that_disagree_are_told(changes, told):
    comparison = _compared(**changes)
    console = Console(record=True, width=200)
    assert _check(comparison, console) == bool(told)
    console.print(ppo_table(comparison, {"steps": PART, "update": PART}))
    text = console.export_text()
    assert told in text
    assert "1 / 4.00" in text  # time
    assert "1 / 2.00" in text  # memory


def test_with_another_value_function_whole_steps_alone_are_measured():
    assert _parts(_parser().parse_args([])) == ["steps", "update"]
    assert _parts(_parser().parse_args(["--value-function", "head"])) == ["steps"]
    with pytest.raises(ConfigError, match="no update that both compute alike"):
        _parts(_parser().parse_args(["--value-function", "head", "--parts", "update"]))


def test_one_side_alone_has_nothing_to_agree_with():
    runs = {"update": {"tuneline": [_run()]}}
    comparison = comparison_of(_workload_of(), {"update": PART}, runs)
    assert check_agreement(comparison, AGREEMENTS, Console()) == 0
    assert first_step_strays(comparison) == []
    assert comparison.largest_difference(Agreement("losses", "loss", 1.0, relative=False)) is None


def test_every_metric_has_a_bound():
    assert set(BOUNDS) == set(METRICS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not (PEERS / f"trl-{TRL_WITH_PPO}").is_dir(), reason="needs TRL with PPO: python -m benchmarks ppo fetches it"
)
def test_both_sides_learn_the_same_from_the_same_completions(tmp_path):
    data = _write_pairs(tmp_path / "pairs.jsonl", 14)
    result = tmp_path / "result.json"
    sizes = {"steps": 2, "episodes": 4, "mini-batches": 2, "epochs": 2, "response-length": 8, "learning-rate": 1e-5}
    small = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    assert main([*small, "--data", str(data), "--json", str(result)], Console()) == 0
    runs = json.loads(result.read_text())["runs"]["update"]
    trl, own = (runs[side][0] for side in ("trl", "tuneline"))
    assert len(trl["losses"]) == 3 * 2 * 2
    torch.testing.assert_close(torch.tensor(own["losses"]), torch.tensor(trl["losses"]), rtol=1e-4, atol=1e-5)
    assert abs(own["objective/kl"][-1]) > 0.1  # an estimate of completions that the policy did not draw: of any sign
