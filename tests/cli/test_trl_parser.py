import os
from dataclasses import dataclass, field

import pytest

from tuneline import DatasetMixtureConfig, ScriptArguments, TrlParser
from tuneline.errors import ConfigError


@dataclass
class Options:
    rate: float = 0.5
    name: str = "default"
    flag: bool = False
    sizes: list[int] = field(default_factory=list)


def written(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_a_flag_goes_before_the_file_and_the_file_before_a_default(tmp_path):
    path = written(tmp_path, "rate: 1e-3\nname: file\nflag: true\nsizes: [1, 2]\n")
    for words in (["--config", path], [f"--config={path}"]):
        assert TrlParser(Options).parse_args_and_config(words) == (Options(1e-3, "file", True, [1, 2]),)
    assert TrlParser([Options]).parse_args_and_config([]) == (Options(),)
    (options,) = TrlParser((Options,)).parse_args_and_config(["--name", "line", "--config", path, "--rate", "2"])
    assert (options.name, options.rate, options.flag) == ("line", 2.0, True)


def test_variables_of_the_file_are_set(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_VARIABLE", "before")
    TrlParser(Options).parse_args_and_config(["--config", written(tmp_path, "env:\n  SOME_VARIABLE: 3\nname: a\n")])
    assert os.environ["SOME_VARIABLE"] == "3"
    with pytest.raises(ConfigError, match="env is 'all'"):
        TrlParser(Options).parse_args_and_config(["--config", written(tmp_path, "env: all\n")])


def test_what_nothing_reads_is_an_error_or_is_handed_back(tmp_path):
    path = written(tmp_path, "naem: a\nrate: 2\n")
    with pytest.raises(ConfigError, match=r"config.yaml has options that nothing reads: --naem \(did you mean --name"):
        TrlParser(Options).parse_args_and_config(["--config", path])
    with pytest.raises(ConfigError, match=r"the command line has .*: --ratee \(did you mean --rate"):
        TrlParser(Options).parse_args_and_config(["--ratee=3"])
    parse = TrlParser(Options).parse_args_and_config
    assert parse(["--config", path], fail_with_unknown_args=False) == (Options(rate=2),)
    words = ["--config", path, "--other", "1"]
    assert parse(words, return_remaining_strings=True) == (Options(rate=2), ["--naem", "a", "--other", "1"])
    separate = parse(words, return_remaining_strings=True, separate_remaining_strings=True)
    assert separate == (Options(rate=2), ["--naem", "a"], ["--other", "1"])


def test_a_file_fills_what_is_required_and_reaches_subcommands(tmp_path):
    @dataclass
    class Needed:
        path: str

    config = written(tmp_path, "path: here\n")
    assert TrlParser(Needed).parse_args_and_config(["--config", config]) == (Needed("here"),)
    parser = TrlParser()
    commands = parser.add_subparsers()
    commands.add_parser("train", dataclass_types=Needed)
    (parsed,) = parser.parse_args_and_config(["train", "--config", config])
    assert parsed.path == "here"


def test_a_mixture_is_read_from_the_file(tmp_path):
    path = written(
        tmp_path, "datasets:\n  - path: a\n    fraction: 0.5\n  - path: b\n    fraction: 0.2\nstreaming: false\n"
    )
    script, mixture = TrlParser((ScriptArguments, DatasetMixtureConfig)).parse_args_and_config(["--config", path])
    assert script == ScriptArguments()
    assert [(source.path, source.fraction) for source in mixture.datasets] == [("a", 0.5), ("b", 0.2)]


def test_files_that_are_none_are_told(tmp_path):
    for text, message in (("- a\n", "holds a list"), ("a: [", "cannot be read as YAML"), ("", "holds a NoneType")):
        with pytest.raises(ConfigError, match=message):
            TrlParser(Options).parse_args_and_config(["--config", written(tmp_path, text)])
    with pytest.raises(ConfigError, match="cannot be read"):
        TrlParser(Options).parse_args_and_config(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="--config names no file"):
        TrlParser(Options).parse_args_and_config(["--config"])


def test_a_field_named_config_is_refused():
    @dataclass
    class Taken:
        config: str = ""

    with pytest.raises(ConfigError, match="Taken has a field 'config'"):
        TrlParser(Taken)
