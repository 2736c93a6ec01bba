import pytest

from tests.data.shared_files import real_data
from tuneline.data.preparation import prepare_rows
from tuneline.data.readers import BadRow, SourceRow, iter_source
from tuneline.data.splits import answered_keys, content_key, drop_duplicates, hold_out, prompt_key, without_answers_to
from tuneline.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def source(rows):
    return [SourceRow("f", number, row) for number, row in enumerate(rows, 1)]


def pairs(numbers):
    return [{"prompt": f"{i} + 1", "chosen": f"{i + 1}", "rejected": f"{i + 2}"} for i in numbers]


def prompts(rows):
    return [row["prompt"] for row in rows]


def test_rows_are_the_same_when_they_say_the_same():
    row = {"prompt": "a", "completion": "b"}
    assert content_key(row) == content_key(row | {"task": "sums"})
    assert content_key(row) != content_key({"prompt": "a", "completion": "c"})
    assert content_key(row) == content_key({"prompt": [user("a")], "completion": "b"})
    assert drop_duplicates([row | {"task": "x"}, row]) == [row | {"task": "x"}]


def test_a_dialogue_asks_with_all_before_its_last_answer_and_answers_at_every_turn():
    row = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    assert prompt_key(row) == prompt_key({"prompt": [user("a"), assistant("b"), user("c")]})
    assert prompt_key({"prompt": "a"}) in answered_keys(row)
    assert without_answers_to([row], {prompt_key({"prompt": "a"})}) == []
    assert without_answers_to([row], {prompt_key({"prompt": "c"})}) == [row]


def test_the_held_out_share_is_about_what_was_asked_for_and_the_order_is_kept():
    rows = pairs(range(4000))
    train, held_out = hold_out(rows, 0.1)
    assert 340 < len(held_out) < 460
    assert sorted(train + held_out, key=rows.index) == rows
    assert train == sorted(train, key=rows.index)


def test_a_prompt_stays_on_its_side_when_rows_come_or_go():
    rows = pairs(range(400))
    _, held_out = hold_out(rows, 0.2)
    _, of_fewer = hold_out(rows[100:][::-1], 0.2)
    assert {row["prompt"] for row in of_fewer} == {row["prompt"] for row in held_out} & set(prompts(rows[100:]))


def test_rows_with_one_prompt_stay_together():
    rows = [row | {"rejected": str(k)} for row in pairs(range(50)) for k in range(3)]
    train, held_out = hold_out(rows, 0.3)
    assert not set(prompts(train)) & set(prompts(held_out))


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty_when_there_are_two_prompts(fraction):
    train, held_out = hold_out(pairs(range(5)), fraction)
    assert min(len(train), len(held_out)) == 1


def test_duplicates_and_pairs_of_the_same_side_go_and_are_counted():
    rows = pairs(range(100))
    rows += [rows[7], rows[7], {"prompt": "a", "chosen": "b", "rejected": "b"}]
    prepared = prepare_rows(None, source(rows), None, 0.1)
    counts = prepared.counts["preferences"]
    assert (counts.read, counts.duplicates, counts.identical_sides) == (103, 2, 1)
    assert counts.train + counts.eval == 100


def test_without_demonstrations_the_chosen_answers_are_shown():
    prepared = prepare_rows(None, source(pairs(range(50))), None, 0.2)
    assert prepared.demonstrations.train[0] == {
        "prompt": prepared.preferences.train[0]["prompt"],
        "completion": prepared.preferences.train[0]["chosen"],
    }
    assert prompts(prepared.demonstrations.eval) == prompts(prepared.preferences.eval)


def test_without_a_test_set_the_held_out_prompts_are_asked_once_each():
    rows = [row | {"margin": 1, "task": "sums"} for row in pairs(range(50))]
    rows += [row | {"chosen": "another"} for row in rows]
    prepared = prepare_rows(None, source(rows), None, 0.2)
    assert prompts(prepared.test) == list(dict.fromkeys(prompts(prepared.preferences.eval)))
    assert set(prepared.test[0]) == {"prompt", "chosen", "rejected", "task"}


def test_nothing_to_train_on_answers_a_prompt_of_the_test_set():
    asked = [{"prompt": "3 + 1", "solution": "4"}, {"prompt": "3 + 1"}, {"prompt": "new"}]
    shown = [{"messages": [user(f"{i} + 1"), assistant("?"), user("Sure?"), assistant("yes")]} for i in range(50)]
    prepared = prepare_rows(source(shown), source(pairs(range(50))), source(asked), 0.1)
    assert prompts(prepared.test) == ["3 + 1", "new"]
    assert prepared.counts["test"].duplicates == 1
    assert "3 + 1" not in prompts(prepared.preferences.train + prepared.preferences.eval)
    assert all(row["messages"][0]["content"] != "3 + 1" for row in prepared.demonstrations.train)
    assert prepared.counts["demonstrations"].overlapping >= 1


def test_nothing_to_train_on_answers_a_held_out_prompt_of_another_source():
    shown = [{"messages": [user(f"{i} + 1"), assistant("?"), user("Sure?"), assistant("yes")]} for i in range(200)]
    prepared = prepare_rows(source(shown), source(pairs(range(200))), None, 0.3)
    held_out = set(prompts(prepared.preferences.eval))
    assert held_out
    assert not any(row["messages"][0]["content"] in held_out for row in prepared.demonstrations.train)


def test_bad_rows_are_an_error_or_are_left_out_and_counted():
    rows = source(pairs(range(50)))
    rows[3:3] = [SourceRow("f", 99, {"prompt": "a", "chosen": "b"}), BadRow("f", 100, None, "is not JSON", "{")]
    with pytest.raises(DataError, match="2 rows cannot be used") as error:
        prepare_rows(None, rows, None, 0.1)
    assert "f, row 99, field 'rejected': is missing" in str(error.value)
    assert "on_bad_rows: skip" in str(error.value)
    prepared = prepare_rows(None, rows, None, 0.1, "skip")
    assert prepared.counts["preferences"].skipped == 2
    assert [row.number for row in prepared.bad] == [99, 100]


def test_a_source_of_which_nothing_is_left_is_told():
    asked = [{"prompt": row["prompt"]} for row in pairs(range(5))]
    with pytest.raises(DataError, match=r"left of the preferences, to train on \(read: 5, .* overlapping: 5"):
        prepare_rows(None, source(pairs(range(5))), source(asked), 0.1)
    shown = [{"prompt": "one", "completion": "b"}]
    with pytest.raises(DataError, match="left of the demonstrations, to hold out"):
        prepare_rows(source(shown), source(pairs(range(5))), None, 1e-9)


def test_the_real_preferences_are_split_without_overlap():
    path = real_data("hh-harmless.jsonl.gz")
    prepared = prepare_rows(None, iter_source(path), None, 0.05, "skip")
    counts = prepared.counts["preferences"]
    assert (counts.read, counts.skipped, counts.duplicates) == (1500, 4, 0)
    assert counts.train + counts.eval + counts.overlapping == 1496
    held_out = {prompt_key(row) for row in prepared.preferences.eval}
    assert without_answers_to(prepared.preferences.train, held_out) == prepared.preferences.train


def test_without_preferences_demonstrations_give_prompts_and_test_set():
    shown = [{"prompt": f"{i} + 1", "completion": f"so {i + 1}", "solution": str(i + 1)} for i in range(200)]
    prepared = prepare_rows(source([*shown, shown[0] | {"completion": "1"}]), None, None, 0.2)
    assert prepared.preferences.train == prepared.preferences.eval == []
    assert "preferences" not in prepared.counts
    assert prompts(prepared.test) == list(dict.fromkeys(prompts(prepared.demonstrations.eval)))
    assert set(prepared.test[0]) == set(prepared.prompts[0]) == {"prompt", "solution"}
    assert prompts(prepared.prompts) == list(dict.fromkeys(prompts(prepared.demonstrations.train)))
    assert not set(prompts(prepared.prompts)) & set(prompts(prepared.test))


def test_prompts_to_explore_keep_their_columns_and_are_none_that_is_held_out():
    asked = [{"prompt": "3 + 1", "solution": "4"}]
    explored = [{"prompt": f"{i} + 1", "tests": [f"f({i})"], "entry": "f"} for i in range(300)]
    prepared = prepare_rows(
        None, source(pairs(range(100))), source(asked), 0.3, prompts=source([*explored, explored[5]])
    )
    held_out = {"3 + 1", *prompts(prepared.preferences.eval), *prompts(prepared.demonstrations.eval)}
    assert set(prompts(prepared.prompts)) == {row["prompt"] for row in explored} - held_out
    assert prepared.prompts[-1] == explored[-1]
    counts = prepared.counts["prompts"]
    assert (counts.read, counts.duplicates, counts.overlapping) == (301, 1, len(held_out))
    assert counts.train == len(prepared.prompts)


def test_a_column_named_like_an_argument_of_reward_functions_is_refused():
    with pytest.raises(DataError, match="field 'completions': is the name of what reward functions are given"):
        prepare_rows(None, source(pairs(range(9))), None, 0.3, prompts=source([{"prompt": "a", "completions": "b"}]))


def test_dialogues_are_explored_up_to_their_last_answer_and_text_is_not():
    shown = [{"messages": [user(f"{i} + 1"), assistant("?"), user("Sure?"), assistant("yes")]} for i in range(50)]
    prepared = prepare_rows(source(shown), None, None, 0.2)
    assert prepared.prompts[0]["prompt"] == prepared.demonstrations.train[0]["messages"][:-1]
    texts = [{"text": f"text number {i}"} for i in range(50)]
    assert prepare_rows(source(texts), source(pairs(range(50))), None, 0.2).prompts == []
