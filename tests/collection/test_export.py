"""From labels to preference data, and from there into the line."""

import json

import pytest

from tests.collection.pairs import HOSTILE, some_pairs
from tuneline.collection.export import preference_data, ties_file, write_rows
from tuneline.collection.labelling import agreement_with_scores, labels_from_judge, labels_from_scores
from tuneline.collection.pairs import Candidate, Pair, make_pairs
from tuneline.collection.store import LabelStore
from tuneline.data.preparation import prepare_rows
from tuneline.data.readers import SourceRow, iter_source
from tuneline.errors import DataError
from tuneline.judges import FunctionJudge


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.db") as opened:
        yield opened


def say(store, pair, **choices):
    for name, choice in choices.items():
        store.add_label(pair.id, name, choice, how="person", client=f"{name}-{choice}", shown_left="a")


def test_most_annotators_decide_and_ties_skips_and_disputes_are_counted(store):
    store.add_pairs(some_pairs(6))
    won, even, tied, skipped, mostly_tied, _ = store.pairs()
    say(store, won, anna="b", ben="b", carl="a")
    say(store, even, anna="a", ben="b")
    say(store, tied, anna="tie")
    say(store, skipped, anna="skip")
    say(store, mostly_tied, anna="a", ben="tie", carl="tie")
    exported = preference_data(store)
    (row,) = exported.preferences
    assert (row["prompt"], row["chosen"], row["rejected"]) == (won.prompt, won.b, won.a)
    assert (row["annotator"], row["how"], row["votes"], row["pair"]) == ("anna, ben, carl", "person", "2-1-0", won.id)
    assert (row["solution"], row["policy"], row["round"]) == (won.columns["solution"], "0" * 32, 1)
    assert row["at"].startswith("20")
    assert row["at"].endswith("+00:00")
    assert [tie["pair"] for tie in exported.ties] == [even.id, tied.id, mostly_tied.id]
    assert (exported.num_skipped, exported.num_unlabelled, exported.num_disputed) == (1, 1, 2)


def test_a_row_a_label_names_each_annotator(store):
    store.add_pairs(some_pairs(1))
    say(store, store.pairs()[0], anna="a", ben="b", carl="skip")
    rows = preference_data(store, one_row_a="label").preferences
    assert [(row["annotator"], row["chosen"]) for row in rows] == [
        ("anna", store.pairs()[0].a),
        ("ben", store.pairs()[0].b),
    ]


def test_rounds_and_kinds_of_labels_are_chosen(store):
    store.add_pairs([*some_pairs(1), *some_pairs(2, round=2)[1:]])
    for pair in store.pairs():
        store.add_label(pair.id, "verifier exact_match_reward", "a", how="verifier")
    say(store, store.pairs()[1], anna="b")
    assert [row["round"] for row in preference_data(store, rounds=[1]).preferences] == [1]
    assert [row["how"] for row in preference_data(store, how="person").preferences] == ["person"]


def test_an_export_is_a_source_of_preferences_whatever_was_said(store, tmp_path):
    dialogue = [{"role": "user", "content": "Hello"}]
    store.add_pairs(make_pairs([{"prompt": dialogue}], [[Candidate(HOSTILE), Candidate("fine\u2028so")]])[0])
    say(store, store.pairs()[0], anna="a")
    path = tmp_path / "out" / "labels.jsonl"
    assert write_rows(path, preference_data(store).preferences) == 1
    (row,) = iter_source(str(path))
    assert isinstance(row, SourceRow)
    assert row.values["chosen"][0]["content"] == store.pairs()[0].a
    assert ties_file(path).name == "labels.ties.jsonl"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_rows(tmp_path / "file" / "labels.jsonl", [])


def rows(name, values):
    return [SourceRow(name, number, value) for number, value in enumerate(values, 1)]


def test_collected_pairs_are_trained_on_and_never_held_out_nor_do_they_answer_what_is():
    base = [{"prompt": f"base {n}", "chosen": "yes", "rejected": "no"} for n in range(60)]
    test = [{"prompt": "asked in the test"}]
    collected = [
        *({"prompt": f"fresh {n}", "chosen": "yes", "rejected": "no", "annotator": "anna"} for n in range(40)),
        {"prompt": "asked in the test", "chosen": "yes", "rejected": "no"},
        {"prompt": "fresh 0", "chosen": "yes", "rejected": "no"},
    ]
    alone = prepare_rows(None, rows("base", base), rows("test", test), 0.2)
    together = prepare_rows(None, rows("base", base), rows("test", test), 0.2, collected=rows("collected", collected))
    assert together.preferences == alone.preferences
    assert together.demonstrations == alone.demonstrations
    assert [row["prompt"] for row in together.collected] == [f"fresh {n}" for n in range(40)]
    counts = together.counts["collected"]
    assert (counts.read, counts.duplicates, counts.overlapping, counts.train, counts.eval) == (42, 1, 1, 40, 0)
    assert set(together.collected[0]) == {"prompt", "chosen", "rejected"}


def test_scores_within_the_margin_are_a_tie():
    pairs = [Pair(str(i), "?", "x", "y", scores=scores) for i, scores in enumerate([(1, 0), (0, 0.3), (0, 0.2), None])]
    pairs[3] = Pair("3", "?", "x", "y")
    labels = labels_from_scores(pairs, annotator="v", how="verifier", margin=0.2)
    assert [(label.pair, label.choice) for label in labels] == [("0", "a"), ("1", "b"), ("2", "tie")]


def test_a_judge_is_asked_and_its_failures_are_no_labels():
    pairs = some_pairs(4)

    def right(prompt, first, second):
        number = int(prompt.split()[2])
        return None if number == 3 else int(second == f"It is {number + 1}.")

    labels = labels_from_judge(FunctionJudge(right), pairs, annotator="judge")
    chosen = [(pair.a if label.choice == "a" else pair.b) for pair, label in zip(pairs, labels, strict=False)]
    assert chosen == ["It is 1.", "It is 2.", "It is 3."]


def test_the_reward_model_is_measured_on_preferences_that_it_has_not_seen():
    pairs = [Pair(str(i), "?", "x", "y", reward_scores=s) for i, s in enumerate([(2.0, 1.0), (0.0, 1.0), (1.0, 1.0)])]
    pairs = [Pair(**{**vars(pair), "scores": (1.0, 0.0)}) for pair in pairs]
    labels = labels_from_scores(pairs, annotator="v", how="verifier")
    assert agreement_with_scores(pairs, labels) == pytest.approx((1 + 0 + 0.5) / 3)
    assert agreement_with_scores([], []) is None


def test_rows_are_json_lines(tmp_path):
    write_rows(tmp_path / "x.jsonl", [{"prompt": "a\nb"}, {"prompt": "ü"}])
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().split("\n")[:-1]] == [
        {"prompt": "a\nb"},
        {"prompt": "ü"},
    ]
