"""A config is checked before anything runs: all that is wrong is told at once, with the nearest known name."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from pydantic import ValidationError

from stages.cross_checks import contradictions
from stages.loading import load_config, load_params, write_params
from stages.schema import NO_FILE, PipelineConfig
from tests.processor_time import processor_time_of_children
from tuneline.errors import ConfigError

TINY = Path(__file__).with_name("tiny.yaml")
PREFERENCES = Path(__file__).with_name("preferences.jsonl")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def errors():
    """What is told about a config with a dozen errors; to ask the trainers' classes takes seconds."""
    overrides = [
        "seed=1.5",
        "sede=3",
        "prepare.eval_fraction=2",
        "sft.training.max_lenght=12",
        "sft.training.learning_rate=fast",
        "sft.training.output_dir=elsewhere",
        "sft.peft={r: 8, lora_alfa: 16}",
        "reward.training.trust_remote_code=true",
        "reward.training.hub_token=hf_x",
        "dpo.beta=0.2",
        "dpo.training.label_smoothing=0.7",
        "model.init.hidden_sise=8",
        "model.revision=main",
        "prepare.preferences.synthetic.tasks=[ad]",
        "wandb_api_key=123x",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(TINY, overrides, root=ROOT)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "seed = 1.5 (from --set): input should be a valid integer",
        "sede = 3 (from --set): no such setting; did you mean `seed`?",
        "prepare.eval_fraction = 2 (from --set): input should be less than 1",
        "sft.training.max_lenght = 12 (from --set): SFTConfig has no such option; did you mean `max_length`?",
        "sft.training.learning_rate = 'fast' (from --set): input should be a valid number",
        "sft.training.output_dir = 'elsewhere' (from --set): cannot be set here: the stage sets it",
        "sft.peft.lora_alfa = 16: LoraConfig has no such option; did you mean `lora_alpha`?",
        "reward.training.trust_remote_code = True (from --set): cannot be set here: "
        "code that comes with a model is never run",
        "dpo.beta = 0.2 (from --set): no such setting; did you mean `dpo.training.beta`?",
        "model: revision goes with name_or_path, and there is none",
        "model.init: the configuration of qwen2 has no field 'hidden_sise' (nearest: 'hidden_size').",
        "prepare.preferences.synthetic.tasks = 'ad' (from --set): "
        "no such task; there are add, sort, reverse, count; did you mean `add`?",
    ],
)
def test_an_error_is_told_with_path_value_reason_and_nearest_name(errors, line):
    assert f"  {line}" in errors


def test_all_errors_are_told_at_once_and_none_twice(errors):
    """An override changes one place of what an anchor shares: tiny.yaml has one `training` for all stages."""
    assert errors[0] == f"{TINY}: 15 settings are wrong"
    assert len(set(errors)) == 16


def test_options_that_contradict_each_other_are_told_in_the_words_of_the_trainer(errors):
    assert any(line.startswith("  dpo.training: label_smoothing=0.7") for line in errors)


def test_a_module_of_rewards_may_print_as_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "loud_rewards.py").write_text("print('hello')\ndef kind(completions, **columns): return [1.0]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    load_config(TINY, ["grpo.rewards=[{name: loud_rewards.kind}]"], root=tmp_path)
    with pytest.raises(ConfigError, match="loud_rewards"):
        load_config(TINY, ["grpo.rewards=[{name: loud_rewards.other}]"], root=tmp_path)


def test_a_secret_is_refused_and_not_shown(errors):
    assert any(line.startswith("  reward.training.hub_token = ***") for line in errors)
    assert any(line.startswith("  wandb_api_key = ***") for line in errors)
    assert not any("hf_x" in line or "123x" in line for line in errors)


def settings_with(dotted, value):
    settings = yaml.safe_load(TINY.read_text())
    *sections, name = dotted.split(".")
    functools.reduce(lambda section, part: section[part], sections, settings)[name] = value
    return settings


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("prepare.max_length", 4096, "the model reads 128 tokens"),
        ("prepare.test.synthetic.noise", 0.5, "only demonstrations can be noisy"),
        ("prepare.prompts.synthetic.slips", 0.5, "only preferences have rejected answers"),
        ("prepare.preferences", {"path": "missing.jsonl"}, "prepare.preferences.path = 'missing.jsonl': no such file"),
        ("sft.launch", {"config_file": "missing.yaml"}, "sft.launch.config_file = 'missing.yaml': no such file"),
        ("reward.launch", {"num_processes": 2, "config_file": str(TINY)}, "names the number of processes"),
        ("evaluate.num_samples", 1, "only 1 rows are evaluated"),
        ("evaluate.pass_at", [4], "needs as many completions a prompt"),
        ("prepare.prompts", {"path": "missing.jsonl"}, "prepare.prompts.path = 'missing.jsonl': no such file"),
        ("prepare.prompts", {"synthetic": {"num_rows": 1, "noise": 0.5}}, "only demonstrations can be noisy"),
        ("grpo.training.max_completion_length", 200, "the model reads 128 tokens"),
        ("ppo.training.response_length", 200, "the model reads 128 tokens"),
        ("ppo.rewards", [{"url": "localhost:1"}], "ppo.rewards.0.url = 'localhost:1': should begin with http"),
        ("grpo.rewards", [{"url": "localhost:1"}], "should begin with http"),
        ("grpo.rewards", [{"model": "/missing"}], "grpo.rewards.0.model = '/missing': no such file or folder"),
        ("grpo.rewards", [{"model": str(path)} for path in sorted(ROOT.glob("t*/*"))[:5]], "at most 4 can be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(dotted, value, message):
    (error,) = contradictions(PipelineConfig.model_validate(settings_with(dotted, value)))
    assert message in error.describe({})


@pytest.mark.parametrize(
    ("dotted", "value", "message"),
    [
        ("model.name_or_path", "org/model", "needs exactly one of name_or_path and init"),
        ("prepare.preferences", {}, "needs exactly one of path and synthetic"),
        ("prepare.demonstrations.worked", {"mark": "=>"}, "about rows from a path"),
        ("prepare.prompts", {"path": "x.jsonl", "system": "s"}, "system goes with `chat: true`"),
        ("prepare.prompts", {"path": "x.jsonl", "worked": {"ending": "boxed"}}, "no place for the solution"),
        ("grpo.method", "ppo", "'grpo' or 'rloo'"),
        ("grpo.rewards", [{"name": "exact_match", "model": True}], "exactly one of name, model and url"),
        ("prepare.on_bad_rows", "warn", "'error' or 'skip'"),
        ("seed", True, "valid integer"),
        ("name", "a/b", "should match pattern"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path, dotted, value, message):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings_with(dotted, value)))
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "`name` stands here twice"),
        ("name: [a\n", "is no valid YAML"),
        ("- a\n", "holds no settings; it needs at least name, model, prepare"),
        ("{[a]: b}\n", "is no valid YAML.* unhashable key"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path, root=ROOT)
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "other.yaml", root=ROOT)


@pytest.mark.parametrize("override", ["dpo.training.beta", "=3", "a..b=3", "name.x=3", "seed=[1"])
def test_an_override_of_another_form_is_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        load_config(TINY, [override], root=ROOT)


def test_values_are_those_of_yaml_1_2_and_of_dvc(tmp_path):
    text = TINY.read_text().replace("1e-3", "1e-5").replace("save_steps: 2", "eval_strategy: no")
    (tmp_path / "edited.yaml").write_text(text)
    config = load_params(tmp_path / "edited.yaml")
    assert config.sft.training["learning_rate"] == 1e-5
    assert config.sft.training["eval_strategy"] == "no"
    write_params(config, tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml") == config
    assert load_yaml(str(tmp_path / "params.yaml")) == config.model_dump(mode="json")
    written = (tmp_path / "params.yaml").stat()
    write_params(config, tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").stat().st_ino == written.st_ino  # the same settings: left alone
    (tmp_path / "params.yaml").write_text("<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other\n")
    write_params(config, tmp_path / "params.yaml")
    assert load_params(tmp_path / "params.yaml") == config


def test_files_that_a_config_names_are_those_that_dvc_watches(tmp_path):
    config = PipelineConfig.model_validate(settings_with("prepare.preferences", {"path": str(PREFERENCES)}))
    assert config.files["preferences"] == str(PREFERENCES)
    assert config.files["demonstrations"] == config.files["model"] == NO_FILE
    hub = {"name": "x", "model": {"name_or_path": "org/model"}, "prepare": {"preferences": {"path": "org/data"}}}
    assert set(PipelineConfig.model_validate(hub).files.values()) == {NO_FILE}


def test_params_whose_files_are_not_those_that_they_name_are_refused(tmp_path):
    settings = PipelineConfig.model_validate(yaml.safe_load(TINY.read_text())).model_dump(mode="json")
    settings["prepare"]["preferences"] = {"path": str(PREFERENCES)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=f"set files.preferences={PREFERENCES}"):
        load_params(tmp_path / "params.yaml")


def test_a_config_that_was_checked_before_is_loaded_in_well_under_a_second():
    load_config(TINY, root=ROOT)
    load = f"from stages.loading import load_config; load_config({str(TINY)!r})"
    code = f"import sys; {load}; assert 'torch' not in sys.modules"
    times = []
    for _ in range(3):
        with processor_time_of_children() as taken:
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        times.append(taken.seconds)
    assert min(times) < 0.8


def test_a_line_without_preferences_or_rewards_has_stages_that_are_off():
    config = PipelineConfig.model_validate(settings_with("prepare.preferences", None))
    assert config.why_off("dpo") == config.why_off("reward") == "off: prepare.preferences is null"
    assert config.why_off("sft") is config.why_off("grpo") is None
    config = PipelineConfig.model_validate(settings_with("grpo.rewards", []))
    assert config.why_off("grpo") == "off: grpo.rewards is empty"
    settings = settings_with("prepare.preferences", None)
    settings["grpo"]["rewards"] = [{"model": True}]
    errors = [error.describe({}) for error in contradictions(PipelineConfig.model_validate(settings))]
    assert [error.split(" = ")[0] for error in errors] == ["ppo.rewards.0.model", "grpo.rewards.0.model"]
    assert all("the line has no reward model" in error for error in errors)
    settings["prepare"]["demonstrations"] = None
    with pytest.raises(ValidationError, match="needs demonstrations, preferences, or both"):
        PipelineConfig.model_validate(settings)


def test_ppo_is_off_without_a_section_and_learns_from_the_reward_model_where_nothing_else_is_named():
    config = PipelineConfig.model_validate(yaml.safe_load(TINY.read_text()))
    assert config.why_off("ppo") is None
    assert [reward.model for reward in config.ppo.rewards] == [True]
    assert config.files["ppo_reward_1"] == "models/reward"
    settings = yaml.safe_load(TINY.read_text())
    del settings["ppo"]
    config = PipelineConfig.model_validate(settings)
    assert config.why_off("ppo") == "off: there is no ppo section, or ppo.rewards is empty"
    assert config.files["ppo_reward_1"] == NO_FILE


def test_dvc_watches_what_rewards_are_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rewards.py").touch()
    rewards = [{"name": "exact_match"}, {"name": "mine.rewards.short"}, {"model": True}, {"name": "mine.rewards.long"}]
    rewards += [{"model": "org/judge"}, {"url": "http://localhost:8000"}]
    files = PipelineConfig.model_validate(settings_with("grpo.rewards", rewards)).files
    watched = [files[f"reward_{number}"] for number in (1, 2, 3, 4)]
    assert watched == ["mine/rewards.py", "models/reward", NO_FILE, NO_FILE]
    settings = settings_with("evaluate.verifier", "mine.rewards.short")
    assert PipelineConfig.model_validate(settings).files["verifier"] == "mine/rewards.py"
