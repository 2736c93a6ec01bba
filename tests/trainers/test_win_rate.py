"""The win rate: against the answers as training began, logged at each evaluation, the same in a resumed run."""

import pytest
from transformers import GenerationConfig

from tests.trainers.online import questions
from tests.trainers.taught import build_taught
from tuneline import WinRateCallback
from tuneline.errors import ConfigError
from tuneline.judges import FunctionJudge
from tuneline.trainers.win_rate import BASELINE_FILE


def trainer_with(folder, judge, **options):
    trainer = build_taught(
        "Distillation", folder, eval_dataset=questions(4), eval_strategy="steps", eval_steps=2, **options
    )
    config = GenerationConfig(max_new_tokens=5, do_sample=True)
    callback = WinRateCallback(judge, trainer, config, num_prompts=3)
    trainer.add_callback(callback)
    return trainer, callback


def rates(trainer):
    return [line["eval_win_rate"] for line in trainer.state.log_history if "eval_win_rate" in line]


def test_each_evaluation_has_a_win_rate_against_the_first_answers(tmp_path):
    seen = []

    def judge(prompt, a, b):
        seen.append({a, b})
        return None if prompt.startswith("what is 2") else int(sorted([a, b])[0] == a)

    options = {"max_steps": 4, "learning_rate": 3e-2, "save_strategy": "steps", "save_steps": 2}
    trainer, callback = trainer_with(tmp_path, FunctionJudge(judge), **options)
    trainer.train()
    assert len(rates(trainer)) == 2
    assert len(seen) == 6  # three prompts at two evaluations
    assert all(answers & set(callback.baseline) for answers in seen)
    failures = [line["eval_win_rate_failures"] for line in trainer.state.log_history if "eval_win_rate" in line]
    assert failures == pytest.approx([1 / 3, 1 / 3])
    resumed, other = trainer_with(tmp_path, FunctionJudge(judge), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert other.baseline == callback.baseline
    assert rates(resumed)[-1] == rates(trainer)[-1]
    (tmp_path / "out" / BASELINE_FILE).unlink()
    with pytest.raises(ConfigError, match="answers to beat"):
        trainer_with(tmp_path, FunctionJudge(judge), **options)[0].train(
            resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2")
        )


def test_without_prompts_it_says_so(tmp_path):
    trainer = build_taught("Distillation", tmp_path)
    with pytest.raises(ConfigError, match="pass prompts"):
        WinRateCallback(FunctionJudge(lambda prompt, a, b: 0), trainer)
