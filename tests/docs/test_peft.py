"""What docs/peft.md says runs: its programs with tiny models in the place of names, its table against the trainers."""

import re
from pathlib import Path

import pytest
from peft import PromptTuningConfig

import tuneline
from tests.trainers.build import build
from tests.trainers.online import build_online
from tuneline.trainers.online import OnlineTrainer

PAGE = (Path(__file__).parents[2] / "docs" / "peft.md").read_text()


def test_programs_compile_and_name_what_is_there():
    programs = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(programs) >= 4
    for program in programs:
        compile(program, "docs/peft.md", "exec")
        for names in re.findall(r"^from tuneline import (.+)$", program, flags=re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(tuneline.__all__)


def test_methods_that_take_learned_prompts_are_those_of_the_table():
    heading = next(line for line in PAGE.splitlines() if line.startswith("| adapter |"))
    row = next(line for line in PAGE.splitlines() if line.startswith("| prompt tuning, P-tuning |"))
    cells = list(zip(heading.split("|")[2:-1], row.split("|")[2:-1], strict=True))
    served = {name.strip() for names, said in cells if said.strip().startswith("yes") for name in names.split(",")}
    drawing = {
        name.removesuffix("Trainer")
        for name in tuneline.__all__
        if name.endswith("Trainer") and name != "PPOTrainer" and issubclass(getattr(tuneline, name), OnlineTrainer)
    }
    taking = {name for name in drawing if getattr(tuneline, f"{name}Trainer").takes_learned_prompts}
    assert taking == {"GRPO", "RLOO"} == served & drawing


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "cpo", "tpo", "bco", "grpo"])
def test_each_offline_method_trains_a_learned_prompt(method, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    if method == "grpo":
        trainer = build_online(method, tmp_path, peft_config=config)
    else:
        trainer = build(method, tmp_path, options={"max_steps": 1}, peft_config=config)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0
