import pytest

from tests.data.shared_files import real_data
from tuneline.data.readers import BadRow, SourceRow, iter_source
from tuneline.data.validation import UnfitError, Validator, demonstration, preference, question

USER = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}
NO = {"role": "assistant", "content": "no"}
HI = "\n\nHuman: hi\n\nAssistant"
PAIR = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}


def says(content, role="assistant"):
    return {"role": role, "content": content}


def shared_gpt(*messages):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "abc", "id": 1}, {"text": "abc"}),
        ({"messages": [USER, YES]}, {"messages": [USER, YES]}),
        ({"conversations": shared_gpt(USER, YES)}, {"messages": [USER, YES]}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"prompt": [USER], "completion": [YES]}, {"prompt": [USER], "completion": [YES]}),
        ({"prompt": [USER], "completion": "yes"}, {"prompt": [USER], "completion": [YES]}),
        ({"text": "\n\nHuman: hi\n\nAssistant: yes"}, {"messages": [USER, YES]}),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "completion": " yes"}, {"prompt": [USER], "completion": [YES]}),
        (
            {
                "messages": [
                    says([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}], "user"),
                    YES,
                ]
            },
            {"messages": [USER, YES]},
        ),
        (
            {"messages": [USER, YES], "tools": [{"name": "f"}]},
            {"messages": [USER, YES], "tools": '[{"name": "f"}]'},
        ),
    ],
)
def test_demonstrations_of_every_format_are_recognised(values, expected):
    assert demonstration(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ),
        (PAIR, PAIR),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, PAIR),
        (
            {"prompt": "hi", "chosen": [USER, YES], "rejected": [USER, NO]},
            PAIR,
        ),
        (
            {"chosen": shared_gpt(USER, YES), "rejected": shared_gpt(USER, NO)},
            PAIR,
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
            PAIR,
        ),
        (
            {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " yes", "rejected": " no"},
            PAIR,
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "2", "task": "sums", "solution": 4, "other": 1},
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2.0, "task": "sums", "solution": "4"},
        ),
    ],
)
def test_preferences_of_every_format_are_recognised(values, expected):
    assert preference(values) == expected


def test_sides_of_a_dialogue_that_part_early_share_the_turns_before():
    """hh-rlhf has rows with an answer more on one side."""
    values = {
        "chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nAssistant: sure",
        "rejected": "\n\nHuman: hi\n\nAssistant: no",
    }
    sure = {"role": "assistant", "content": "sure"}
    assert preference(values) == {"prompt": [USER], "chosen": [YES, sure], "rejected": [NO]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a", "solution": 4, "task": "sums"}, {"prompt": "a", "solution": "4", "task": "sums"}),
        ({"messages": [USER, YES]}, {"prompt": [USER]}),
        ({"conversations": shared_gpt(USER)}, {"prompt": [USER]}),
        (
            {"chosen": [USER, YES], "rejected": [USER, NO], "margin": 1},
            PAIR,
        ),
    ],
)
def test_questions_are_taken_from_every_format(values, expected):
    assert question(values) == expected


@pytest.mark.parametrize(
    ("convert", "values", "field", "reason"),
    [
        (demonstration, {"id": 1}, None, "has none of 'prompt', 'messages', 'conversations', 'text'; it has 'id'"),
        (demonstration, {"prompt": "a"}, "completion", "is missing; the row has 'prompt'"),
        (demonstration, {"prompt": "a", "completion": " "}, "completion", "is empty"),
        (demonstration, {"prompt": "a", "completion": [YES]}, "completion", "give both in one notation"),
        (demonstration, {"prompt": 3, "completion": "b"}, "prompt", "is a int and neither text nor"),
        (demonstration, {"messages": []}, "messages", "is an empty list"),
        (demonstration, {"messages": "hi"}, "messages", "is no list of messages"),
        (demonstration, {"messages": [USER, "yes"]}, "messages", "holds something that is no message"),
        (demonstration, {"messages": [USER]}, "messages", "has no turn of the assistant"),
        (
            demonstration,
            {"messages": [says("a", "bot")]},
            "messages",
            "has the role 'bot'; known are system",
        ),
        (
            demonstration,
            {"messages": [USER, says(None)]},
            "messages",
            "message 2 has no text",
        ),
        (
            demonstration,
            {"messages": [USER, says("")]},
            "messages",
            "message 2, of the assist",
        ),
        (
            demonstration,
            {"messages": [says([{"type": "image"}])]},
            "messages",
            "a part that is no text",
        ),
        (demonstration, {"messages": [USER, YES], "tools": "{"}, "tools", "is not JSON"),
        (
            demonstration,
            {"prompt": [says("a", "system")], "completion": "b"},
            "prompt",
            "nobody is asked",
        ),
        (preference, {"chosen": "a"}, "rejected", "is missing"),
        (preference, {"chosen": "a", "rejected": [USER, NO]}, "rejected", "is in another notation"),
        (preference, {"chosen": "ab", "rejected": "cd"}, "prompt", "begin with nothing in common"),
        (preference, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, "margin", "is no number"),
        (preference, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "margin", "not finite"),
        (preference, {"chosen": [USER, YES, USER], "rejected": [USER, NO]}, "chosen", "ends with the role 'user'"),
        (preference, {"chosen": [USER, YES, USER, YES], "rejected": [USER, NO]}, "chosen", "after a turn of the user"),
        (
            preference,
            {"chosen": "\n\nHuman: hi\n\nAssistant:", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
            "chosen",
            "empty",
        ),
        (question, {"completion": "a"}, "prompt", "is missing"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(convert, values, field, reason):
    with pytest.raises(UnfitError) as unfit:
        convert(values)
    assert unfit.value.field == field
    assert reason in unfit.value.reason


def test_the_rows_of_a_source_have_the_columns_of_its_first_row():
    check = Validator(preference)
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert check(SourceRow("f", 1, pair)) == pair
    assert check(SourceRow("f", 2, pair | {"task": "sums"})) == pair | {"task": "sums"}
    bad = check(SourceRow("f", 3, pair | {"margin": 1}))
    assert isinstance(bad, BadRow)
    assert bad.describe() == (
        "f, row 3: has 'prompt' (text), 'chosen' (text), 'rejected' (text), 'margin' (number), "
        "and the first row of its source 'prompt' (text), 'chosen' (text), 'rejected' (text)"
    )
    bad = check(SourceRow("f", 4, PAIR))
    assert isinstance(bad, BadRow)


def test_half_a_surrogate_pair_is_a_bad_row():
    bad = Validator(demonstration)(SourceRow("f", 1, {"text": "a\ud800"}))
    assert isinstance(bad, BadRow)
    assert bad.field == "text"


def test_the_real_dialogues_of_hh_rlhf_become_pairs():
    check = Validator(preference)
    checked = [check(row) for row in iter_source(real_data("hh-harmless.jsonl.gz"))]
    bad = [row for row in checked if isinstance(row, BadRow)]
    assert len(checked) == 1500
    assert {row.reason for row in bad} == {"message 1, of the assistant, is empty"}
    assert len(bad) == 4
    good = [row for row in checked if not isinstance(row, BadRow)]
    assert all(row["prompt"][0]["role"] == "user" for row in good)
    assert sum(len(row["chosen"]) > 1 for row in good) == 1


def test_the_real_problems_of_gsm8k_become_demonstrations():
    path = real_data("gsm8k-train.jsonl.gz")
    check = Validator(demonstration)
    rows = [check(row) for row in iter_source(path, columns={"prompt": "question", "completion": "answer"})]
    assert len(rows) == 7473
    assert all(set(row) == {"prompt", "completion"} for row in rows)
