"""From `--set` to variants: what commas mean, what is refused, what the variants are called."""

from pathlib import Path

import pytest

from flows.sweep import devices_of_jobs
from tasks.sweep_settings import in_words, make_variants, parse_axes, short_names, split_values, sweep_key
from tests.flows.checkouts import CONFIG
from tuneline.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all, so that what is known to be valid is not asked again."""
    path = tmp_path_factory.mktemp("toy")
    (path / "toy.yaml").write_text(CONFIG)
    (path / "toy.jsonl").touch()
    return path


@pytest.fixture
def toy(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Path("toy.yaml")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.05,0.1, 0.3", ["0.05", "0.1", "0.3"]),
        ("[sigmoid,sft],[sigmoid]", ["[sigmoid,sft]", "[sigmoid]"]),
        ("[[1,2],[3]]", ["[[1,2],[3]]"]),
        ("{a: 1, b: [2,3]},null", ["{a: 1, b: [2,3]}", "null"]),
        ("'one, two',three", ["'one, two'", "three"]),
        ("['a]b', c],d", ["['a]b', c]", "d"]),
        ("don't,x", ["don't", "x"]),
        ("-1,2e-5", ["-1", "2e-5"]),
    ],
)
def test_commas_within_brackets_and_quotes_belong_to_a_value(text, values):
    assert split_values(text, f"x={text}") == values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a=[1,2"], "`]` is missing"),
        (["a='1,2"], "`'` is missing"),
        (["a=[1}"], "other kind"),
        (["a=1,,2"], "empty value"),
        (["a=1,2,1"], "1 is given twice"),
        (["a=1", "a=2"], "set before"),
        (["a"], "section.name=value"),
        (["a..b=1"], "section.name=value"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        parse_axes(overrides)


def test_variants_are_all_combinations_and_seeds_are_told_from_settings(toy, folder):
    variants = make_variants(toy, ["dpo.launch.timeout_hours=2,3", "seed=0,1", "evaluate.max_new_tokens=9"], folder)
    assert [variant.name for variant in variants] == [
        "toy-timeout_hours-2-seed-0",
        "toy-timeout_hours-2-seed-1",
        "toy-timeout_hours-3-seed-0",
        "toy-timeout_hours-3-seed-1",
    ]
    assert variants[1].setting == {"dpo.launch.timeout_hours": "2"}
    assert variants[1].seeds == {"seed": "1"}
    assert in_words(variants[1].chosen) == "timeout_hours=2 seed=1"
    assert {variant.config.evaluate.max_new_tokens for variant in variants} == {9}
    assert variants[3].config.dpo.launch.timeout_hours == 3
    again = make_variants(toy, ["dpo.launch.timeout_hours=2,3", "seed=0,1", "evaluate.max_new_tokens=9"], folder)
    assert sweep_key(variants) == sweep_key(again)
    assert sweep_key(variants) != sweep_key(variants[:3])


def test_names_are_good_for_folders_and_refs_and_unlike_one_another(toy, folder):
    variants = make_variants(toy, ["evaluate.best_of_n=[1,2],[1, 2, 4],[]", "evaluate.temperature=0,.5"], folder)
    names = [variant.name for variant in variants]
    assert len(set(names)) == 6
    assert all(name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names)
    assert all(len(name) <= 80 for name in names)
    assert ".." not in "".join(names)


def test_a_typo_is_refused_with_the_nearest_name(toy, folder):
    with pytest.raises(ConfigError, match="did you mean `temperature`"):
        make_variants(toy, ["evaluate.temprature=0,1"], folder)


def test_a_wrong_value_in_the_last_variant_is_found_too(toy, folder):
    with pytest.raises(ConfigError, match="seed"):
        make_variants(toy, ["seed=0,1,-2"], folder)


def test_one_setting_written_twice_is_no_sweep(toy, folder):
    with pytest.raises(ConfigError, match="the same settings"):
        make_variants(toy, ["dpo.launch.timeout_hours=2,2.0"], folder)


def test_short_names_tell_settings_apart():
    assert short_names(["dpo.training.beta", "seed"]) == {"dpo.training.beta": "beta", "seed": "seed"}
    both = short_names(["dpo.training.beta", "grpo.training.beta"])
    assert both == {"dpo.training.beta": "dpo.training.beta", "grpo.training.beta": "grpo.training.beta"}
    assert short_names(["seed", "prepare.seed"])["seed"] == "seed"


def test_jobs_are_as_many_as_gpus_allow_and_each_has_its_own(toy, folder, monkeypatch):
    variants = make_variants(toy, ["seed=0,1,2"], folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_of_jobs(folder, variants, None) == [None]
    assert devices_of_jobs(folder, variants, 8) == [None] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert devices_of_jobs(folder, variants, None) == ["4", "5", "6"]
    wide = make_variants(toy, ["seed=0,1,2", "dpo.launch.num_processes=2"], folder)
    assert devices_of_jobs(folder, wide, None) == ["4,5", "6,7"]
    with pytest.raises(ConfigError, match="--jobs 3 needs 6 GPUs"):
        devices_of_jobs(folder, wide, 3)
