import pytest
from datasets import Dataset, DatasetDict

from tuneline.data import convert_dataset, dataset_type
from tuneline.errors import ConfigError, DataError

PROMPT = [{"role": "user", "content": "2+2?"}]
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("4", "5"))

ROWS = {
    "instruction": [{"instruction": "Add.", "input": "2+2", "output": "4"}],
    "language modeling": [{"messages": PROMPT + GOOD}],
    "prompt-only": [{"prompt": "a b"}],
    "prompt-completion": [{"prompt": PROMPT, "completion": GOOD}],
    "preference": [{"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}],
    "unpaired preference": [
        {"prompt": "a", "completion": " b", "label": True},
        {"prompt": "a", "completion": " c", "label": False},
    ],
    "stepwise supervision": [
        {"prompt": "a", "completions": [" b", " c"], "labels": [True, True]},
        {"prompt": "a", "completions": [" b", " d"], "labels": [True, False]},
    ],
}


@pytest.mark.parametrize("kind", ROWS)
def test_types_are_told_by_their_columns(kind):
    assert dataset_type(Dataset.from_list(ROWS[kind])) == kind


@pytest.mark.parametrize(
    ("kind", "to", "expected"),
    [
        ("instruction", "prompt-completion", [{"prompt": "Add.\n\n2+2", "completion": "4"}]),
        ("instruction", "language modeling", [{"text": "Add.\n\n2+24"}]),
        ("instruction", "prompt-only", [{"prompt": "Add.\n\n2+2"}]),
        ("prompt-completion", "language modeling", [{"messages": PROMPT + GOOD}]),
        ("prompt-completion", "prompt-only", [{"prompt": PROMPT}]),
        ("preference", "language modeling", [{"messages": PROMPT + GOOD}]),
        ("preference", "prompt-only", [{"prompt": PROMPT}]),
        ("preference", "prompt-completion", [{"prompt": PROMPT, "completion": GOOD}]),
        ("preference", "implicit preference", [{"chosen": PROMPT + GOOD, "rejected": PROMPT + BAD}]),
        (
            "preference",
            "unpaired preference",
            [
                {"prompt": PROMPT, "completion": GOOD, "label": True},
                {"prompt": PROMPT, "completion": BAD, "label": False},
            ],
        ),
        ("unpaired preference", "language modeling", [{"text": "a b"}]),
        ("unpaired preference", "prompt-only", [{"prompt": "a"}, {"prompt": "a"}]),
        ("unpaired preference", "prompt-completion", [{"prompt": "a", "completion": " b"}]),
        ("stepwise supervision", "language modeling", [{"text": "a b c"}]),
        ("stepwise supervision", "prompt-only", [{"prompt": "a"}, {"prompt": "a"}]),
        ("stepwise supervision", "prompt-completion", [{"prompt": "a", "completion": " b c"}]),
        (
            "stepwise supervision",
            "unpaired preference",
            [
                {"prompt": "a", "completion": " b c", "label": True},
                {"prompt": "a", "completion": " b d", "label": False},
            ],
        ),
    ],
)
def test_a_type_becomes_each_that_it_says_enough_for(kind, to, expected):
    assert convert_dataset(Dataset.from_list(ROWS[kind]), to).to_list() == expected


def test_an_implicit_preference_gets_its_prompt_back():
    implicit = convert_dataset(Dataset.from_list(ROWS["preference"]), "implicit preference")
    assert convert_dataset(implicit, "preference").to_list() == ROWS["preference"]
    assert convert_dataset(implicit, "prompt-completion").to_list() == [{"prompt": PROMPT, "completion": GOOD}]


def test_a_type_is_itself_already():
    for kind in ("language modeling", "prompt-only", "prompt-completion", "preference", "unpaired preference"):
        assert convert_dataset(Dataset.from_list(ROWS[kind]), kind).to_list() == ROWS[kind]


def test_dictionaries_and_streams_are_converted_and_further_columns_stay():
    dataset = Dataset.from_list([row | {"id": 7} for row in ROWS["unpaired preference"]])
    expected = [{"prompt": "a", "completion": " b", "id": 7}]
    assert convert_dataset(DatasetDict({"train": dataset}), "prompt-completion")["train"].to_list() == expected
    assert list(convert_dataset(dataset.to_iterable_dataset(), "prompt-completion")) == expected


def test_what_a_type_does_not_say_is_refused():
    with pytest.raises(DataError, match="'prompt-only' does not say enough to become one of type 'preference'"):
        convert_dataset(Dataset.from_list(ROWS["prompt-only"]), "preference")
    with pytest.raises(DataError, match="has the columns a, which are those of no known type"):
        convert_dataset(Dataset.from_list([{"a": 1}]), "preference")
    with pytest.raises(ConfigError, match="to='pairs' is no type of dataset; use one of language modeling"):
        convert_dataset(Dataset.from_list(ROWS["preference"]), "pairs")
