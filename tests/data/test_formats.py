import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tests.data.tiny_tokenizers import character_tokenizer
from tuneline.data.formats import (
    apply_chat_template,
    extract_prompt,
    is_conversational,
    is_conversational_from_value,
    maybe_apply_chat_template,
    maybe_convert_to_chatml,
    maybe_extract_prompt,
    maybe_unpair_preference_dataset,
    to_messages,
    unpair_preference_dataset,
)
from tuneline.errors import DataError

QUESTION = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"messages": [QUESTION, BLUE]}, True),
        ({"prompt": [QUESTION]}, True),
        ({"prompt": [QUESTION], "completion": [BLUE]}, True),
        ({"prompt": "The sky is", "chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]}, True),
        ({"prompt": "The sky is"}, False),
        ({"text": "The sky is blue."}, False),
        ({"prompt": []}, False),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, False),
        ({"other": [QUESTION]}, False),
    ],
)
def test_conversational_rows_are_those_with_messages(example, expected):
    assert is_conversational(example) is expected


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({"conversations": [{"from": "user", "value": "Hi"}]}, True),
        ({"conversations": [QUESTION]}, False),
        ({"conversations": "The sky is"}, False),
        ({"conversations": []}, False),
        ({"messages": [{"from": "user", "value": "Hi"}]}, False),
    ],
)
def test_sharegpt_rows_are_those_with_from_and_value(example, expected):
    assert is_conversational_from_value(example) is expected


def test_sharegpt_becomes_messages_and_the_row_that_came_in_stays_as_it_was():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 3}
    converted = maybe_convert_to_chatml(row)
    assert converted == {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "id": 3,
    }
    assert row["conversations"][0] == {"from": "human", "value": "Hi"}


def test_rows_in_chatml_are_not_changed():
    row = {"messages": [QUESTION, BLUE]}
    assert maybe_convert_to_chatml(row) == row


def test_nulls_that_arrow_added_are_taken_out_of_messages_but_not_a_null_content():
    messages = [{"role": "assistant", "content": None, "name": None, "tool_calls": [{"function": {"a": None, "b": 1}}]}]
    assert to_messages(messages) == [{"role": "assistant", "content": None, "tool_calls": [{"function": {"b": 1}}]}]


def test_the_prompt_is_what_both_sides_begin_with():
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert extract_prompt(row) == {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    row = {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]}
    assert extract_prompt(row) == {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]}


def test_a_row_without_a_shared_beginning_gets_an_empty_prompt():
    assert extract_prompt({"chosen": "a ", "rejected": "b "}) == {"prompt": "", "chosen": "a ", "rejected": "b "}


def test_both_sides_keep_something_when_one_is_the_beginning_of_the_other():
    assert extract_prompt({"chosen": "abc", "rejected": "ab"}) == {"prompt": "a", "chosen": "bc", "rejected": "b"}
    row = {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, BLUE]}
    assert extract_prompt(row) == {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [BLUE]}


def test_extracting_twice_changes_nothing():
    once = maybe_extract_prompt({"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]})
    assert maybe_extract_prompt(once) == once
    once = maybe_extract_prompt({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert maybe_extract_prompt(once) == once


def test_a_prompt_in_another_notation_than_the_dialogues_is_extracted_anew():
    row = {"prompt": "What color is the sky?", "chosen": [QUESTION, BLUE], "rejected": [QUESTION, GREEN]}
    assert maybe_extract_prompt(row)["prompt"] == [QUESTION]


def test_rows_that_are_no_preferences_are_left_alone():
    assert maybe_extract_prompt({"prompt": "a", "completion": "b"}) == {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize("columns", [("prompt", "chosen", "rejected"), ("chosen", "rejected")])
def test_unpairing_gives_all_chosen_rows_and_then_all_rejected_ones(columns):
    pairs = {"prompt": ["p", "q"], "chosen": ["c", "d"], "rejected": ["r", "s"]}
    dataset = Dataset.from_dict({name: pairs[name] for name in columns} | {"id": [1, 2]})
    unpaired = unpair_preference_dataset(dataset)
    assert unpaired["completion"][:] == ["c", "d", "r", "s"]
    assert unpaired["label"][:] == [True, True, False, False]
    assert unpaired["id"][:] == [1, 2, 1, 2]
    if "prompt" in columns:
        assert unpaired["prompt"][:] == ["p", "q", "p", "q"]


def test_unpairing_reads_dictionaries_of_datasets_and_streams():
    dataset = Dataset.from_dict({"chosen": ["c"], "rejected": ["r"]})
    assert len(maybe_unpair_preference_dataset(DatasetDict({"train": dataset}))["train"]) == 2
    assert len(list(unpair_preference_dataset(dataset.to_iterable_dataset()))) == 2
    assert maybe_unpair_preference_dataset(unpair_preference_dataset(dataset)).num_rows == 2
    stream = IterableDataset.from_generator(lambda: iter([{"chosen": "c", "rejected": "r"}]))
    assert [row["label"] for row in unpair_preference_dataset(stream)] == [True, False]


def test_the_prompt_is_a_strict_prefix_of_prompt_and_completion():
    tokenizer = character_tokenizer()
    rendered = apply_chat_template({"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GREEN]}, tokenizer)
    whole = apply_chat_template({"messages": [QUESTION, BLUE]}, tokenizer)["text"]
    assert rendered["prompt"] == "<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered["prompt"] + rendered["chosen"] == whole
    assert rendered["rejected"] == "It is green.<|im_end|>\n"


def test_a_prompt_that_ends_with_the_assistant_is_left_open():
    tokenizer = character_tokenizer()
    rendered = apply_chat_template({"prompt": [QUESTION, {"role": "assistant", "content": "It is"}]}, tokenizer)
    assert rendered["prompt"].endswith("<|im_start|>assistant\nIt is")


def test_tools_and_template_arguments_reach_the_template():
    tokenizer = character_tokenizer("{% for t in tools or [] %}{{ t.name }};{% endfor %}{{ mood }}{{ tone }}")
    row = {"messages": [QUESTION], "chat_template_kwargs": {"tone": "!"}}
    assert apply_chat_template(row, tokenizer, tools=[{"name": "f"}], mood="calm") == {"text": "f;calm!"}
    assert apply_chat_template(row, tokenizer, tools=[], mood="calm") == {"text": "calm!"}


def test_a_label_is_kept_and_standard_rows_come_back_as_they_are():
    tokenizer = character_tokenizer()
    rendered = apply_chat_template({"prompt": [QUESTION], "completion": [BLUE], "label": True}, tokenizer)
    assert rendered["label"] is True
    assert maybe_apply_chat_template({"prompt": "a", "completion": "b"}, tokenizer) == {
        "prompt": "a",
        "completion": "b",
    }


def test_columns_of_no_format_and_prompts_of_no_speaker_are_refused():
    tokenizer = character_tokenizer()
    with pytest.raises(DataError, match=r"\['chosen'\] is none of the known formats"):
        apply_chat_template({"chosen": [BLUE]}, tokenizer)
    with pytest.raises(DataError, match="ends with the role 'system'"):
        apply_chat_template({"prompt": [{"role": "system", "content": "Be kind."}]}, tokenizer)
