import pytest

from tests.data.shared_files import real_data
from tuneline.data.readers import iter_source
from tuneline.data.validation import UnfitError
from tuneline.data.worked import as_chat, split_worked, with_solution

ANSWER = "She sold 48/2 = <<48/2=24>>24 clips.\nThat is 48+24 = <<48+24=72>>72 in all.\n#### 72"


def test_the_solution_stands_behind_the_last_mark():
    assert split_worked("a #### b\n#### 1,234 ") == ("a #### b", "1234")
    assert split_worked("so\n=> -3.5", mark="=>") == ("so", "-3.5")


@pytest.mark.parametrize("answer", [None, 72, "72", "#### ", "72 ####"])
def test_an_answer_without_a_solution_is_unfit(answer):
    with pytest.raises(UnfitError):
        split_worked(answer)


def test_calculator_marks_go_or_stay():
    stripped = with_solution({"prompt": "How many?", "completion": ANSWER})
    assert stripped["completion"] == "She sold 48/2 = 24 clips.\nThat is 48+24 = 72 in all.\n#### 72"
    assert stripped["solution"] == "72"
    assert with_solution({"completion": ANSWER}, calculator_marks="keep")["completion"] == ANSWER


def test_another_ending_takes_the_place_of_mark_and_solution():
    row = with_solution({"completion": ANSWER}, ending="The answer is \\boxed{{solution}}.")
    assert row["completion"].endswith(" = 72 in all.\nThe answer is \\boxed{72}.")


def test_text_becomes_turns_and_dialogues_stay():
    assert as_chat({"prompt": "a", "completion": "b", "solution": "c"}, "s") == {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
        "solution": "c",
    }
    dialogue = {"prompt": [{"role": "user", "content": "a"}]}
    assert as_chat(dialogue, "s") == dialogue


def test_every_solution_of_gsm8k_is_a_number():
    rows = [
        with_solution({"completion": row.values["answer"]}) for row in iter_source(real_data("gsm8k-train.jsonl.gz"))
    ]
    assert len(rows) == 7473
    assert all(float(row["solution"]) is not None and "<<" not in row["completion"] for row in rows)
