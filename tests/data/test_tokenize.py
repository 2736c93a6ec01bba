import json

import pytest
from datasets import Dataset, IterableDataset

from tests.data.tiny_tokenizers import CHATML_WITH_MARKS, character_tokenizer, merging_tokenizer
from tuneline.data.tokenize import (
    TokenizationReport,
    tokenize_completions,
    tokenize_for_preference,
    tokenize_for_reward,
    tokenize_for_sft,
)
from tuneline.errors import ConfigError, DataError, ModelError

USER = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
EOS = 0


def targets_of(row, tokenizer):
    """The text of a row's targets."""
    pairs = zip(row["input_ids"], row["is_target"], strict=True)
    return tokenizer.decode([token for token, counts in pairs if counts])


def sft(rows, tokenizer=None, max_length=100, **options):
    return tokenize_for_sft(
        Dataset.from_list(rows), tokenizer or character_tokenizer(), max_length=max_length, **options
    )


def test_text_ends_with_eos_and_only_the_first_token_is_no_target():
    tokenizer = character_tokenizer()
    tokenized = sft([{"text": "abc"}, {"text": "de<eos>"}], tokenizer)
    assert tokenized.dataset["input_ids"][:] == [[*tokenizer.encode("abc"), EOS], [*tokenizer.encode("de"), EOS]]
    assert tokenized.dataset["is_target"][:] == [[0, 1, 1, 1], [0, 1, 1]]
    assert tokenized.report == TokenizationReport(2, 2, 0, 0, 7, 0)


def test_eos_is_a_target_even_where_it_is_the_padding_token_too():
    tokenizer = character_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert sft([{"text": "a"}], tokenizer).dataset[0]["is_target"] == [0, 1]


def test_dialogues_end_as_their_template_has_them_end():
    tokenizer = character_tokenizer()
    row = sft([{"messages": [USER, YES]}], tokenizer).dataset[0]
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert row["input_ids"] == tokenizer.encode(text)
    assert sum(row["is_target"]) == len(row["input_ids"]) - 1


def test_sharegpt_dialogues_are_read_like_messages():
    dialogue = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    assert sft([{"conversations": dialogue}]).dataset[0] == sft([{"messages": [USER, YES]}]).dataset[0]


def test_the_completion_alone_counts_where_there_is_one():
    tokenizer = character_tokenizer()
    row = sft([{"prompt": [USER], "completion": [YES]}], tokenizer).dataset[0]
    assert targets_of(row, tokenizer) == "yes<|im_end|>\n"
    row = sft([{"prompt": "abc ", "completion": "def"}], tokenizer).dataset[0]
    assert targets_of(row, tokenizer) == "def<eos>"


def test_completion_only_loss_false_makes_targets_of_the_prompt_too():
    row = sft([{"prompt": "abc", "completion": "def"}], completion_only_loss=False).dataset[0]
    assert row["is_target"] == [0, 1, 1, 1, 1, 1, 1]


def test_the_completion_starts_where_prompt_and_whole_depart():
    """The prompt `ab` is one token; followed by `c` the tokens are `a` and `bc`, which share nothing with it."""
    tokenizer = merging_tokenizer()
    assert tokenizer.tokenize("ab") == ["ab"]
    assert tokenizer.tokenize("abc") == ["a", "bc"]
    row = sft([{"prompt": "ab", "completion": "c"}], tokenizer).dataset[0]
    assert row["is_target"] == [0, 1, 1]
    pair = {"prompt": "ab", "chosen": "c", "rejected": "a"}
    row = tokenize_for_preference(Dataset.from_list([pair]), tokenizer, max_length=9).dataset[0]
    assert [tokenizer.convert_ids_to_tokens(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        [],
        ["a", "bc", "<eos>"],
        ["ab", "a", "<eos>"],
    ]


def test_assistant_only_loss_counts_what_the_template_marks():
    tokenizer = character_tokenizer(CHATML_WITH_MARKS)
    row = sft([{"messages": [USER, YES, USER, NO]}], tokenizer, assistant_only_loss=True).dataset[0]
    assert targets_of(row, tokenizer) == "yes<|im_end|>no<|im_end|>"
    row = sft([{"prompt": [USER, YES, USER], "completion": [NO]}], tokenizer, assistant_only_loss=True).dataset[0]
    assert targets_of(row, tokenizer) == "no<|im_end|>"


def test_assistant_only_loss_without_marks_or_messages_is_refused():
    with pytest.raises(ModelError, match="generation"):
        sft([{"messages": [USER, YES]}], assistant_only_loss=True)
    with pytest.raises(DataError, match="needs messages"):
        sft([{"text": "abc"}], character_tokenizer(CHATML_WITH_MARKS), assistant_only_loss=True)


def test_it_is_an_error_when_no_row_has_a_target():
    tokenizer = character_tokenizer(CHATML_WITH_MARKS)
    with pytest.raises(DataError, match=r"No row has a token to learn from \(1 rows: 0 kept"):
        sft([{"messages": [USER, YES]}], tokenizer, max_length=10, assistant_only_loss=True)
    with pytest.raises(DataError, match="No row has a token"):
        sft([{"input_ids": [1, 2], "labels": [1, -100]}])
    stream = Dataset.from_list([{"prompt": "abc", "completion": "d"}]).to_iterable_dataset()
    with pytest.raises(DataError, match="No row has a token"):
        tokenize_for_sft(stream, tokenizer, max_length=2)


def test_cut_and_dropped_rows_are_counted():
    rows = [
        {"prompt": "ab", "completion": "c"},  # 4 tokens with EOS, fits
        {"prompt": "ab", "completion": "cdefg"},  # 8 tokens, loses 4
        {"prompt": "abcdef", "completion": "g"},  # 8 tokens, of which the first 4 are no targets
    ]
    tokenized = sft(rows, max_length=4)
    assert tokenized.report == TokenizationReport(3, 2, 1, 1, 8, 12)
    assert tokenized.report.describe() == (
        "3 rows: 2 kept with 8 tokens, of which 1 truncated; 1 dropped; 12 tokens cut"
    )
    assert [len(ids) for ids in tokenized.dataset["input_ids"]] == [4, 4]


def test_keeping_the_end_cuts_the_beginning():
    tokenizer = character_tokenizer()
    row = sft([{"prompt": "abcdef", "completion": "g"}], tokenizer, max_length=4, truncation_mode="keep_end").dataset[0]
    assert tokenizer.decode(row["input_ids"]) == "efg<eos>"
    assert row["is_target"] == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="'keep_middle' is unknown"):
        sft([{"text": "a"}], truncation_mode="keep_middle")


def test_without_a_length_nothing_is_cut():
    assert sft([{"text": "a" * 5000}], max_length=None).report.num_tokens_cut == 0


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({}, {}, [0, 1, 1, 1]),
        ({"completion_mask": [0, 0, 1, 1]}, {}, [0, 0, 1, 1]),
        ({"completion_mask": [0, 0, 1, 1]}, {"completion_only_loss": False}, [0, 1, 1, 1]),
        ({"assistant_masks": [1, 1, 0, 1]}, {}, [0, 1, 0, 1]),
        ({"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 0, 1]}, {}, [0, 0, 0, 1]),
        ({"labels": [1, 2, -100, 4], "completion_mask": [0, 0, 0, 1]}, {}, [0, 1, 0, 1]),
    ],
)
def test_token_ids_are_taken_as_they_are_with_their_masks_or_labels(columns, options, expected):
    row = sft([{"input_ids": [1, 2, 3, 4], **columns}], **options).dataset[0]
    assert row == {"input_ids": [1, 2, 3, 4], "is_target": expected}


def test_rows_without_a_target_after_the_cut_are_dropped():
    rows = [
        {"input_ids": [1, 2, 3, 4], "completion_mask": [0, 0, 0, 1]},
        {"input_ids": [6, 7, 8], "completion_mask": [0, 1, 1]},
    ]
    assert sft(rows, max_length=3).dataset["input_ids"][:] == [[6, 7, 8]]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(DataError, match="Row 0 of the dataset: 'labels' has 1 entries and 'input_ids' has 2"):
        sft([{"input_ids": [1, 2], "labels": [1]}])


def test_a_formatting_function_makes_the_text():
    tokenizer = character_tokenizer()
    row = sft([{"a": "x", "b": "y"}], tokenizer, formatting_func=lambda row: row["a"] + "+" + row["b"]).dataset[0]
    assert tokenizer.decode(row["input_ids"]) == "x+y<eos>"


def test_tools_and_template_arguments_of_a_row_reach_the_template():
    template = "{% for t in tools or [] %}{{ t.name }};{% endfor %}{{ mood }}"
    tokenizer = character_tokenizer(template)
    rows = [
        {"messages": [USER], "tools": json.dumps([{"name": "f"}]), "chat_template_kwargs": {"mood": "calm"}},
        {"messages": [USER], "tools": None, "chat_template_kwargs": {"mood": "wild"}},
    ]
    texts = [tokenizer.decode(ids) for ids in sft(rows, tokenizer).dataset["input_ids"]]
    assert texts == ["f;calm", "wild"]


def test_streams_give_the_same_rows_and_counts_are_unknown():
    rows = [{"prompt": "ab", "completion": "cde"}, {"prompt": "abcdef", "completion": "g"}]
    expected = sft(rows, max_length=4)
    stream = tokenize_for_sft(Dataset.from_list(rows).to_iterable_dataset(), character_tokenizer(), max_length=4)
    assert list(stream.dataset) == list(expected.dataset)
    assert stream.report == TokenizationReport(None, None, None, None, None, None)
    assert "stream" in stream.report.describe()
    unnamed = IterableDataset.from_generator(lambda: iter(rows))
    assert list(tokenize_for_sft(unnamed, character_tokenizer(), max_length=4).dataset) == list(expected.dataset)


def test_pairs_share_their_prompt_and_end_with_eos():
    tokenizer = character_tokenizer()
    tokenized = tokenize_for_preference(
        Dataset.from_list([{"prompt": "ab", "chosen": "c", "rejected": "de<eos>", "margin": 0.5}]),
        tokenizer,
        max_length=10,
    )
    row = tokenized.dataset[0]
    assert {name: tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")} == {
        "prompt_ids": "ab",
        "chosen_ids": "c<eos>",
        "rejected_ids": "de<eos>",
    }
    assert row["margin"] == 0.5
    assert tokenized.report == TokenizationReport(1, 1, 0, 0, 7, 0)


@pytest.mark.parametrize("prompt", [{}, {"prompt": [USER]}, {"prompt": "hi"}])
def test_dialogues_give_their_shared_turns_as_the_prompt(prompt):
    tokenizer = character_tokenizer()
    explicit = prompt.get("prompt") == [USER]
    sides = {"chosen": [YES], "rejected": [NO]} if explicit else {"chosen": [USER, YES], "rejected": [USER, NO]}
    row = tokenize_for_preference(Dataset.from_list([prompt | sides]), tokenizer, max_length=100).dataset[0]
    assert tokenizer.decode(row["prompt_ids"]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["chosen_ids"]) == "yes<|im_end|>\n"
    assert tokenizer.decode(row["rejected_ids"]) == "no<|im_end|>\n"


def test_pairs_are_cut_at_the_length_and_dropped_when_the_prompt_fills_it():
    rows = [
        {"prompt": "ab", "chosen": "cdef", "rejected": "g"},  # 2 + 5 + 2 tokens; the chosen side loses 2
        {"prompt": "abcde", "chosen": "f", "rejected": "g"},  # 5 + 2 + 2 tokens; no room
    ]
    tokenized = tokenize_for_preference(Dataset.from_list(rows), character_tokenizer(), max_length=5)
    assert tokenized.report == TokenizationReport(2, 1, 1, 1, 7, 11)
    assert [len(tokenized.dataset[0][name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [2, 3, 2]


def test_single_completions_are_cut_at_the_length_and_dropped_when_the_prompt_fills_it():
    rows = [
        {"prompt": "ab", "completion": "cdef", "label": True},  # 2 + 5 tokens, of which 2 go
        {"prompt": "abcde", "completion": "f", "label": False},  # no room
    ]
    tokenized = tokenize_completions(
        Dataset.from_list(rows),
        character_tokenizer(),
        ["completion"],
        max_length=5,
        required_columns=["label"],
    )
    assert tokenized.report == TokenizationReport(2, 1, 1, 1, 5, 9)
    (row,) = tokenized.dataset
    assert (len(row["prompt_ids"]), len(row["completion_ids"]), row["label"]) == (2, 3, True)


def test_keeping_the_end_of_pairs_cuts_the_prompt_alike_for_both():
    tokenizer = character_tokenizer()
    rows = [{"prompt": "abcde", "chosen": "fg", "rejected": "h"}]
    tokenized = tokenize_for_preference(Dataset.from_list(rows), tokenizer, max_length=5, truncation_mode="keep_end")
    row = tokenized.dataset[0]
    assert [tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")] == [
        "de",
        "fg<eos>",
        "h<eos>",
    ]


def test_token_ids_of_pairs_and_reference_log_probabilities_are_passed_on():
    pair = {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}
    rows = [pair | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5, "other": 1}]
    row = tokenize_for_preference(Dataset.from_list(rows), character_tokenizer(), max_length=2).dataset[0]
    assert row == pair | {"chosen_ids": [2], "ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "hi", "chosen": [USER, YES], "rejected": [USER, NO]},
    ],
)
def test_reward_rows_are_whole_sequences(row):
    tokenizer = character_tokenizer()
    tokenized = tokenize_for_reward(Dataset.from_list([row | {"margin": 2.0}]), tokenizer, max_length=100).dataset[0]
    start = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenized["chosen_ids"]) == start + "yes<|im_end|>\n"
    assert tokenizer.decode(tokenized["rejected_ids"]) == start + "no<|im_end|>\n"
    assert tokenized["margin"] == 2.0


def test_reward_pairs_that_are_too_long_are_dropped_and_counted():
    rows = [{"chosen": "ab", "rejected": "c"}, {"chosen": "abcd", "rejected": "c"}]
    tokenized = tokenize_for_reward(Dataset.from_list(rows), character_tokenizer(), max_length=4)
    assert tokenized.report == TokenizationReport(2, 1, 0, 1, 5, 7)
    with pytest.raises(DataError, match="No row"):
        tokenize_for_reward(Dataset.from_list(rows), character_tokenizer(), max_length=1)


def test_reward_rows_may_be_token_ids_already():
    rows = Dataset.from_list([{"chosen_input_ids": [1, 2], "rejected_input_ids": [1]}])
    row = tokenize_for_reward(rows, character_tokenizer(), max_length=4).dataset[0]
    assert row == {"chosen_ids": [1, 2], "rejected_ids": [1]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"question": "a"}], "has the columns 'question'; expected 'text', 'messages'"),
        ([{"text": "a"}, {"text": None}], "Row 1 of the dataset: 'text' is null, which is neither text nor"),
        ([{"prompt": "a", "completion": [YES]}], "Row 0 of the dataset: 'completion' is .* give both in one notation"),
    ],
)
def test_rows_of_no_known_format_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        sft(rows)


def test_what_a_template_does_not_take_is_told_with_its_row():
    tokenizer = character_tokenizer(
        "{% if messages|length == 1 %}{{ raise_exception('two turns at least') }}{% endif %}a"
    )
    with pytest.raises(DataError, match=r"Row 1 of the dataset: the chat template .* two turns at least"):
        sft([{"messages": [USER, YES]}, {"messages": [USER]}], tokenizer)


def test_a_tokenizer_without_template_or_eos_is_refused():
    tokenizer = character_tokenizer(chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        sft([{"messages": [USER, YES]}], tokenizer)
    with pytest.raises(ModelError, match="'</s>' is no token"):
        sft([{"text": "a"}], tokenizer, eos_token="</s>")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        sft([{"text": "a"}], tokenizer)


def test_completion_only_loss_needs_completions():
    with pytest.raises(DataError, match="completion_only_loss=True needs 'prompt' and 'completion'"):
        sft([{"text": "a"}], completion_only_loss=True)
