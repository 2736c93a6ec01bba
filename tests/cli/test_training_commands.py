"""`tuneline sft|dpo|...`: TRL's flags and YAML keys reach the trainer, those of the launch reach Accelerate."""

import logging
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from peft import PeftConfig
from transformers import AutoModelForCausalLM
from trl import ModelConfig as PeersModelConfig
from trl.scripts.utils import ScriptArguments as PeersScriptArguments

import tuneline
from stages import schema
from tests.compat.examples import (
    EXAMPLES,
    chat_model,
    chats_preferred,
    conversations,
    data_set,
    prompts,
    source_of,
    texts_preferred,
)
from tests.models import tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline.cli.accelerate_configs import NAMED, accelerate_config_file
from tuneline.cli.launch import check_launch_words, has_processes_without_gpus, without
from tuneline.cli.main import main
from tuneline.cli.methods import METHODS
from tuneline.cli.model_config import ModelConfig, get_peft_config, get_quantization_config
from tuneline.cli.parser import STAGES, make_parser
from tuneline.cli.training import make_trainer, make_training_parser, with_names_of_today
from tuneline.errors import ConfigError

ROOT = Path(__file__).parents[2]
QUIET = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, and an accelerate without settings of the machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuneline.cli.launch.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr("tuneline.trainers.older_names._said", set())
    return tmp_path


def steps(num, *more):
    return ["--max_steps", str(num), "--output_dir", "out", "--save_strategy", "no", *QUIET, *more]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_parser_with_the_options_of_its_configuration(method):
    parser = make_training_parser(method)
    assert parser.parse_known_args([])[1] == []  # every default is one that its flag could have
    assert f"usage: tuneline {method}" in parser.format_help()
    known = {action.dest for action in parser._actions}
    config = getattr(tuneline, METHODS[method].config)
    assert {one.name for one in fields(config) if one.init} <= known
    assert {one.name for kind in (PeersModelConfig, PeersScriptArguments) for one in fields(kind)} <= known
    assert {"datasets", "streaming", "test_split_size"} <= known
    assert ("reward_funcs" in known) == METHODS[method].takes_rewards


def test_options_of_models_have_the_peers_names_and_defaults():
    ours = {one.name: one.default for one in fields(ModelConfig)}
    assert {one.name: one.default for one in fields(PeersModelConfig)} == ours


def test_flags_of_adapters_and_quantisation():
    given = dict(use_peft=True, lora_r=4, lora_target_modules=["all-linear"], use_dora=True, use_rslora=True)
    adapter = get_peft_config(ModelConfig(**given))
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == (4, 32, "all-linear")
    assert adapter.use_dora
    assert adapter.use_rslora
    assert get_peft_config(ModelConfig()) is None
    four = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16", use_bnb_nested_quant=True))
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", True)
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    assert get_quantization_config(ModelConfig()) is None
    with pytest.raises(ConfigError, match="exclude each other"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


def test_sft_trains_and_saves(here):
    chat_model(here / "qwen")
    data_set(here / "chats", conversations())
    before = AutoModelForCausalLM.from_pretrained(here / "qwen").state_dict()
    words = ["--model_name_or_path", "qwen", "--dataset_name", "chats", "--learning_rate", "1e-3"]
    assert main(["sft", *words, *steps(1)]) == 0
    after = AutoModelForCausalLM.from_pretrained(here / "out").state_dict()
    assert any((after[name] != value).any() for name, value in before.items())


def test_a_file_with_a_mixture_an_adapter_and_variables(here, monkeypatch):
    monkeypatch.delenv("SET_BY_THE_FILE", raising=False)
    chat_model(here / "qwen")
    data_set(here / "first", chats_preferred())
    data_set(here / "second", chats_preferred())
    config = {
        "model_name_or_path": "qwen",
        "datasets": [{"path": "first"}, {"path": "second", "columns": ["prompt", "chosen", "rejected"]}],
        "test_split_size": 4,
        "eval_strategy": "steps",
        "beta": 0.3,
        "use_peft": True,
        "lora_r": 4,
        "lora_target_modules": "all-linear",
        "output_dir": "elsewhere",
        "env": {"SET_BY_THE_FILE": 3},
    }
    (here / "dpo.yaml").write_text(yaml.safe_dump(config))
    assert main(["dpo", "--config", "dpo.yaml", *steps(1)]) == 0
    assert PeftConfig.from_pretrained(here / "out").r == 4
    assert not (here / "elsewhere").exists()
    assert os.environ["SET_BY_THE_FILE"] == "3"


def trainer_of(method, *words):
    parsed = make_training_parser(method).parse_args_and_config([*words, *steps(1)])
    return make_trainer(method, *parsed)


def test_rewards_are_functions_by_name_or_path_and_models(here):
    chat_model(here / "qwen")
    data_set(here / "prompts", prompts())
    (here / "of_mine.py").write_text("def short(completions, **columns):\n    return [-len(c) for c in completions]\n")
    tiny_reward_model().save_pretrained(here / "judge")
    character_tokenizer().save_pretrained(here / "judge")
    words = ["--model_name_or_path", "qwen", "--dataset_name", "prompts"]
    functions = ["--reward_funcs", "of_mine.short", "think_format_reward", "get_soft_overlong_punishment"]
    trainer = trainer_of("grpo", *words, *functions, "--reward_model_name_or_path", "judge")
    assert len(trainer.rewards.names) == 4
    assert trainer_of("ppo", *words, "--reward_model_path", "judge").rewards.names == ["judge"]
    with pytest.raises(ConfigError, match="tuneline rloo needs a reward"):
        trainer_of("rloo", *words)


@pytest.mark.parametrize("method", ["distillation", "gkd"])
def test_a_teacher_is_named_by_its_option(method, here):
    chat_model(here / "qwen")
    data_set(here / "chats", [{"prompt": row["messages"][:1], **row} for row in conversations()])
    words = ["--model_name_or_path", "qwen", "--dataset_name", "chats", "--teacher_model_name_or_path", "qwen"]
    assert trainer_of(method, *words).teacher is not None


@pytest.mark.parametrize("method", ["online-dpo", "xpo", "nash-md"])
def test_pairs_are_drawn_and_rewarded(method, here):
    chat_model(here / "qwen")
    data_set(here / "prompts", prompts())
    words = ["--model_name_or_path", "qwen", "--dataset_name", "prompts", "--reward_funcs", "think_format_reward"]
    assert trainer_of(method, *words).rewards.names == ["think_format_reward"]


def test_an_adapter_of_a_reward_model_keeps_the_head(here):
    chat_model(here / "qwen")
    data_set(here / "pairs", texts_preferred())
    trainer = trainer_of("reward", "--model_name_or_path", "qwen", "--dataset_name", "pairs", "--use_peft")
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in trained)


def test_what_is_missing_is_told_before_a_model_is_loaded(here, capsys):
    assert main(["sft", "--dataset_name", "x", *steps(1)]) == 2
    assert "tuneline sft needs a model; give --model_name_or_path" in capsys.readouterr().err
    assert main(["sft", "--model_name_or_path", "x", *steps(1)]) == 2
    assert "no data: give --dataset_name" in capsys.readouterr().err
    (here / "rows.jsonl").write_text('{"text": "a"}\n')
    words = ["--model_name_or_path", "x", "--dataset_name", "rows.jsonl", "--eval_strategy", "steps"]
    assert main(["sft", *words, *steps(1)]) == 2
    assert "rows.jsonl is one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--learning_rat", "1"], "--learning_rat (did you mean --learning_rate?)"),
        (["--num-proceses=2"], "--num-proceses (did you mean --num_processes?)"),
        (["--accelerate-config", "fsdp2"], "--accelerate-config (did you mean --accelerate_config?)"),
        (["--qqqqq"], "nothing reads --qqqqq;"),
    ],
)
def test_an_unknown_flag_gets_the_nearest_known_one(words, told, here, capsys):
    assert main(["dpo", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_key_of_the_file_that_nothing_reads_is_told(here, capsys):
    (here / "x.yaml").write_text("lerning_rate: 1\n")
    assert main(["dpo", "--config", "x.yaml"]) == 2
    assert "--lerning_rate (did you mean --learning_rate?)" in capsys.readouterr().err


def test_a_value_of_the_wrong_kind_is_one_line(here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["dpo", "--max_steps", "many"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_training_does_not_read_goes_to_the_launch(here):
    (here / "x.yaml").write_text("num_processes: 4\nbeta: 0.3\n")
    words = [
        "--seed",
        "2",
        "--config",
        "x.yaml",
        "--mixed_precision",
        "bf16",
        "--max_steps",
        "2",
        "--main_process_port=1",
    ]
    parser = make_training_parser("dpo")
    of_file, of_line = parser.words_left_over(words)
    assert of_file == ["--num_processes", "4"]
    assert of_line == ["--mixed_precision", "bf16", "--main_process_port=1"]
    check_launch_words([*of_file, *of_line], parser)
    assert without(words, of_line) == ["--seed", "2", "--config", "x.yaml", "--max_steps", "2"]
    assert parser.words_left_over(["--no_such_flag", "-1.5"])[1] == ["--no_such_flag", "-1.5"]


def test_several_processes_without_gpus_are_told_from_one():
    assert has_processes_without_gpus(["--num_processes", "2"], 0)
    assert has_processes_without_gpus(["--num-processes=2"], 0)
    assert not has_processes_without_gpus(["--num_processes", "1"], 0)
    assert not has_processes_without_gpus(["--num_processes", "2"], 2)
    assert not has_processes_without_gpus(["--config_file", "x", "--num_processes", "2"], 0)


@pytest.mark.parametrize("name", NAMED)
def test_accelerate_reads_every_named_configuration(name, tmp_path):
    path = accelerate_config_file(name, tmp_path, num_gpus=4, has_bf16=True)
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if name == "single_gpu" else 4)
    assert config.mixed_precision == "bf16"
    # every setting of FSDP is one that `accelerate launch` has
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(NAMED[name].get("fsdp_config", {})) <= known


def test_a_configuration_is_a_name_or_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.touch()
    assert accelerate_config_file(str(path), tmp_path, num_gpus=0, has_bf16=False) == path
    with pytest.raises(ConfigError, match=r"--accelerate_config fsdp3: did you mean fsdp2\?|did you mean fsdp1\?"):
        accelerate_config_file("fsdp3", tmp_path, num_gpus=0, has_bf16=False)
    with pytest.raises(ConfigError, match="zero3 runs a process on each GPU, and none is visible"):
        accelerate_config_file("zero3", tmp_path, num_gpus=0, has_bf16=False)
    assert accelerate_config_file("single_gpu", tmp_path, num_gpus=0, has_bf16=False).is_file()


def test_older_flags_are_those_of_today(here, caplog):
    with caplog.at_level(logging.WARNING, "tuneline"):
        words = with_names_of_today("sft", ["--max_seq_length", "5", "--evaluation_strategy=no", "--packing"])
    assert words == ["--max_length", "5", "--eval_strategy=no", "--packing"]
    assert "--max_seq_length is --max_length today" in caplog.text


def completed(script, *words):
    asked = f'source {script}; COMP_WORDS=({" ".join(words)} "$1"); COMP_CWORD={len(words)}; _tuneline; '
    asked += "echo ${COMPREPLY[@]}"
    return lambda word: subprocess.run(
        ["bash", "-c", asked, "-", word], capture_output=True, text=True, check=True
    ).stdout.split()


def test_the_shell_completes_commands_flags_and_names(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "tuneline.bash"
    script.write_text(capsys.readouterr().out)
    assert {"sft", "stage", "status"} <= set(completed(script, "tuneline")("s"))
    assert completed(script, "tuneline")("gr") == ["grpo"]
    assert "--learning_rate" in completed(script, "tuneline", "dpo")("--learning")
    assert completed(script, "tuneline", "run")("--par") == ["--parallel"]
    assert completed(script, "tuneline", "stage")("pr") == ["prepare"]
    assert completed(script, "tuneline", "sft", "--accelerate_config")("fs") == ["fsdp1", "fsdp2"]
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_the_stages_of_the_command_line_are_those_of_the_pipeline():
    assert schema.STAGES == STAGES
    assert make_parser().parse_args(["stage", "ppo"]).name == "ppo"


def run_apart(*words, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    return subprocess.run(
        [sys.executable, "-m", "tuneline.cli.main", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_two_processes_of_a_file_train_one_model(tmp_path):
    chat_model(tmp_path / "qwen")
    data_set(tmp_path / "chats", conversations(16))
    (tmp_path / "sft.yaml").write_text("model_name_or_path: qwen\ndataset_name: chats\nnum_processes: 2\n")
    words = [*steps(2, "--logging_steps", "1"), "--per_device_train_batch_size", "4"]
    done = run_apart("sft", "--config", "sft.yaml", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.load(tmp_path / "out" / "training_args.bin", weights_only=False).world_size == 2
    broken = run_apart("sft", "--config", "sft.yaml", "--max_length", "0", *words, folder=tmp_path)
    assert broken.returncode not in (0, None)


COMMANDS = 2  # in cli.sh


@pytest.mark.slow
@pytest.mark.parametrize("number", range(COMMANDS))
def test_command_lines_as_users_write_them(number, tmp_path):
    commands = [block for block in source_of("cli.sh").replace("\\\n", " ").splitlines() if block.strip()]
    assert len(commands) == COMMANDS, f"{EXAMPLES / 'cli.sh'} has {len(commands)} commands"
    stand_ins = {
        "Qwen/Qwen2.5-0.5B-Instruct": chat_model(tmp_path / "instruct"),
        "Qwen/Qwen2.5-0.5B": chat_model(tmp_path / "base"),
        "trl-lib/Capybara": data_set(tmp_path / "capybara", conversations()),
        "argilla/Capybara-Preferences": data_set(tmp_path / "preferences", chats_preferred()),
    }
    program, *words = commands[number].split()
    assert program == "trl"
    done = run_apart(*[str(stand_ins.get(word, word)) for word in words], "--max_steps", "2", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    AutoModelForCausalLM.from_pretrained(tmp_path / words[words.index("--output_dir") + 1])
