"""Values of the built-in rewards that read text and token ids, and finding them by name."""

import gzip
import importlib.util
import json
import pickle
import subprocess
import sys
import time

import pytest

from tests.data.shared_files import real_data
from tuneline.errors import ConfigError
from tuneline.rewards import (
    exact_match_reward,
    get_code_execution_reward,
    get_cosine_scaled_reward,
    get_json_schema_reward,
    get_regex_reward,
    get_repetition_penalty_reward,
    get_reward,
    get_soft_overlong_punishment,
    numeric_match_reward,
    think_format_reward,
)
from tuneline.rewards.matching import final_number
from tuneline.rewards.texts import completion_text

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


def said(*texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_the_text_of_a_conversation_is_what_the_assistant_said_last():
    turns = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    assert completion_text(turns) == "It is 4."
    assert completion_text([{"content": "no role"}]) == "no role"
    assert completion_text("text") == "text"
    assert completion_text([]) == ""


def test_soft_overlong_punishment_falls_on_a_line_to_minus_one():
    reward = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    lengths = [80, 81, 90, 99, 100, 120]
    assert reward(completion_ids=[[1] * n for n in lengths]) == pytest.approx([0, -0.05, -0.5, -0.95, -1, -1])


def test_repetition_is_punished_by_the_share_of_repeated_ngrams():
    reward = get_repetition_penalty_reward(ngram_size=3)
    # 4 n-grams of which 1 differs: 1 - 1/4; 7 of which 3 differ: 1 - 3/7
    ids = [[1, 2, 3, 4, 5, 6], [1] * 6, [1, 2, 3] * 3, [1, 1], []]
    assert reward(completion_ids=ids) == pytest.approx([0, -0.75, -4 / 7, 0, 0])
    assert get_repetition_penalty_reward(2, -2.0)(completion_ids=[[5] * 5]) == [-1.5]
    with pytest.raises(ConfigError, match="max_penalty"):
        get_repetition_penalty_reward(max_penalty=0.5)


def test_think_format_wants_one_opened_and_closed_thought_in_front():
    completions = said(
        "<think>\nwhy\n</think>\nanswer",
        "why\n</think>\nanswer",
        "answer",
        "<think>why",
        "<think>a<think>b</think>c",
        " <think>a</think>",
        "<think>a</think>b</think>",
        "<think></think>",
    )
    assert think_format_reward(completions) == [1, 0, 0, 0, 0, 0, 1, 1]
    assert think_format_reward(["<think>a</think>"]) == [1]


def test_exact_match_ignores_blanks_around_and_case_when_told():
    assert exact_match_reward(said(" 4\n", "Four", "5"), ["4", "four", None]) == [1, 0, None]
    assert exact_match_reward(["Four"], ["four"], ignore_case=True) == [1]
    assert exact_match_reward(["4"], [4]) == [1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("#### 1,234", 1234),
        ("7 apples\n#### 3\nThat is 9", 3),
        (r"so \boxed{-1,000.5} is it, not 2", -1000.5),
        ("it costs $1,234,567.", 1234567),
        ("5-3", 3),
        ("is -3", -3),
        ("is \u22123", -3),
        ("3/4", 0.75),
        ("1.5e3", 1500.0),
        ("12,34", 34),
        (".5", 0.5),
        ("no number", None),
        ("#### none, though 3 above", 3),
        ("1/0", None),
        ("1e999", None),
        ("9" * 5000, None),
        ("4 (in 2 steps) #### 4 steps", 4),
    ],
)
def test_the_final_number_of_a_text(text, number):
    value = final_number(text)
    assert value == number
    assert type(value) is type(number)


def test_numeric_match_reads_both_sides_and_keeps_whole_numbers_exact():
    completions = said("so 0.333333", "1,000,001", "72", "none", "x")
    solutions = ["1/3", "1000000", "<<48+24=72>>72 in all.\n#### 72", "4", "unknown"]
    assert numeric_match_reward(completions, solutions) == [1, 0, 1, 0, None]
    assert numeric_match_reward(["0.33"], ["1/3"], relative_tolerance=0.02) == [1]
    assert numeric_match_reward(["0.01"], ["0"], absolute_tolerance=0.1) == [1]


def test_numeric_match_agrees_with_every_worked_solution_of_gsm8k():
    with gzip.open(real_data("gsm8k-test.jsonl.gz"), "rt") as file:
        answers = [json.loads(line)["answer"] for line in file]
    shown = [answer.rpartition("####")[2].strip() for answer in answers]
    assert numeric_match_reward(list(answers), shown) == [1.0] * len(answers)
    assert sum(numeric_match_reward([f"It is {number}." for number in shown], list(answers))) == len(answers)


def test_a_pattern_is_searched_or_must_match_all():
    completions = said("answer: 42", "Answer:\n42!")
    assert get_regex_reward(r"answer: \d+")(completions) == [1, 0]
    assert get_regex_reward(r"answer:.\d+", ignore_case=True)(completions) == [1, 1]
    assert get_regex_reward(r"answer:.\d+", whole=True, ignore_case=True)(completions) == [1, 0]
    with pytest.raises(ConfigError, match="no regular expression"):
        get_regex_reward("(")


def test_a_pattern_without_end_costs_its_completion_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr("tuneline.rewards.formats._TIMEOUT", 0.5)
    started = time.monotonic()
    assert get_regex_reward(r"(a+)+$")(["a" * 50 + "b", "aa", "a" * 60 + "b", "a"]) == [0, 1, 0, 1]
    assert time.monotonic() - started < 15


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_json_that_follows_the_schema_is_rewarded_and_the_reason_of_others_logged():
    columns = {}
    completions = said('{"age": 3}', 'Here:\n```json\n{"age": 3}\n```', '{"age": "3"}', "{age: 3}", "[" * 10**5)
    rewards = get_json_schema_reward(SCHEMA)(completions, log_extra=columns.__setitem__)
    assert rewards == [1, 1, 0, 0, 0]
    assert columns["json_schema"][2] == "$.age: '3' is not of type 'integer'"
    assert columns["json_schema"][3].startswith("no JSON")


def test_schemas_of_the_dataset_go_before_and_none_is_none():
    rewards = get_json_schema_reward()(["3", "3", "3"], schema=['{"type": "integer"}', {"type": "string"}, None])
    assert rewards == [1, 0, None]
    with pytest.raises(ConfigError, match="no schema"):
        get_json_schema_reward()(["3"])
    with pytest.raises(ConfigError, match="no JSON schema"):
        get_json_schema_reward({"type": "whole"})


PROMPT = 'from math import sqrt\n\n\ndef root(x):\n    """The root of x."""\n'
TEST = "def check(candidate):\n    assert candidate(9) == 3\n"


def test_programs_are_taken_from_blocks_or_put_behind_the_prompt():
    reward = get_code_execution_reward(wall_time=5, num_workers=1)
    columns = {}
    block = "Like so:\n```python\ndef root(x):\n    return sqrt(x)\n```\nThat is all."
    dialogue = [{"role": "user", "content": "Write root(x)."}]
    completions = [
        "    return sqrt(x)\n",
        "    return x\n",
        f"<think>```python\nwrong\n```</think>{block}",
        [{"role": "assistant", "content": "from math import sqrt\n" + block.split("```python\n")[1].split("```")[0]}],
        [{"role": "assistant", "content": block.replace("def", "from math import sqrt\ndef")}],
    ]
    rewards = reward(
        prompts=[PROMPT, PROMPT, PROMPT, dialogue, dialogue],
        completions=completions,
        test=[TEST] * 5,
        entry_point=["root"] * 5,
        log_extra=columns.__setitem__,
    )
    assert rewards == [1, 0, 1, 1, 1]
    assert columns["code_execution"][:2] == ["passed", "AssertionError at 'assert candidate(9) == 3'"]
    cases = [{"input": "3", "output": "6"}]
    assert reward(prompts=["Double it."], completions=["```\nprint(2 * int(input()))\n```"], test=[cases]) == [1]
    reward.sandboxes.close()


def test_a_code_reward_says_how_long_it_may_take():
    assert get_code_execution_reward(wall_time=9, num_workers=2).longest(10) == 10 + 5 * 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("get_cosine_scaled_reward", {"max_len": 10}, marks=needs_math_verify),
        pytest.param("cosine_scaled_reward", {"max_len": 10}, marks=needs_math_verify),
        ("get_repetition_penalty_reward", {}),
        ("soft_overlong_punishment", {"max_completion_len": 10, "soft_punish_cache": 2}),
        ("think_format_reward", {}),
        ("numeric_match_reward", {"relative_tolerance": 0.1}),
        ("regex_reward", {"pattern": "a"}),
        ("json_schema_reward", {"schema": {}}),
        ("code_execution_reward", {"wall_time": 1.0}),
        pytest.param("accuracy_reward", {}, marks=needs_math_verify),
        pytest.param("reasoning_accuracy_reward", {"reasoning_delimiters": ["###"]}, marks=needs_math_verify),
        ("tests.rewards.test_built_in.said", {}),
        ("tests.rewards.test_built_in:said", {}),
    ],
)
def test_rewards_are_found_by_name_and_can_be_pickled(name, options):
    reward = get_reward(name, **options)
    assert callable(reward)
    assert callable(pickle.loads(pickle.dumps(reward)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("acuracy_reward", {}, "did you mean 'accuracy_reward'"),
        ("regex_rewards", {}, "did you mean 'regex_reward'"),
        ("tests.rewards.test_built_in.sad", {}, "did you mean 'said'"),
        ("no.such.module", {}, "cannot be imported"),
        ("numeric_match_reward", {"relative_tolerence": 1}, "did you mean 'relative_tolerance'"),
        ("get_soft_overlong_punishment", {"soft_punish_cache": 3}, "needs max_completion_len"),
        ("get_repetition_penalty_reward", {"ngram": 3}, "did you mean 'ngram_size'"),
        ("regex_reward", {"pattern": "("}, "no regular expression"),
    ],
)
def test_unknown_names_and_options_name_the_nearest(name, options, message):
    with pytest.raises(ConfigError, match=message):
        get_reward(name, **options)


def test_a_cosine_reward_has_trls_name_for_the_logs():
    assert get_cosine_scaled_reward(max_len=3).__name__ == "cosine_scaled_reward"


def test_choosing_a_reward_loads_no_torch():
    code = (
        "import sys; from tuneline.rewards import get_reward; "
        "get_reward('think_format_reward'); get_reward('numeric_match_reward'); get_reward('code_execution_reward'); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
