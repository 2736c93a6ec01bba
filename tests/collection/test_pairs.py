"""Which completions become pairs, and what happens to the others."""

import json

import pytest

from tests.collection.pairs import HOSTILE, some_pairs
from tuneline.collection.pairs import Candidate, make_pairs, read_pairs, write_pairs
from tuneline.errors import DataError


def candidates(*texts, scores=None):
    return [Candidate(text, None if scores is None else scores[i]) for i, text in enumerate(texts)]


def test_duplicates_and_empty_completions_are_dropped_and_counted():
    groups = [candidates("a", "b", "a", " \n", "a"), candidates("c", "c"), candidates("", "d")]
    pairs, counts = make_pairs([{"prompt": str(i)} for i in range(3)], groups, pairs_per_prompt=9)
    assert [{pair.a, pair.b} for pair in pairs] == [{"a", "b"}]
    assert counts.as_dict() == {
        "prompts": 3,
        "completions": 9,
        "empty": 2,
        "duplicates": 3,
        "unscored": 0,
        "without_pair": 2,
        "pairs": 1,
    }


def test_scores_that_lie_furthest_apart_are_paired_first():
    group = candidates("bad", "good", "better", "unknown", scores=[0.0, 1.0, 1.5, None])
    pairs, counts = make_pairs([{"prompt": "?"}], [group], pairs_per_prompt=2)
    assert [{pair.a, pair.b} for pair in pairs] == [{"bad", "better"}, {"bad", "good"}]
    assert counts.unscored == 1
    for pair in pairs:
        scores = dict(zip((pair.a, pair.b), pair.scores, strict=True))
        assert scores["bad"] == 0


def test_the_same_seed_draws_the_same_pairs_and_another_seed_others():
    rows = [{"prompt": str(i)} for i in range(30)]
    groups = [candidates(*"abcdef") for _ in rows]
    drawn = [[pair.id for pair in make_pairs(rows, groups, seed=seed)[0]] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_neither_side_is_favoured_whatever_the_texts_and_scores():
    rows = [{"prompt": str(i)} for i in range(400)]
    groups = [candidates("a", "b", scores=[0.0, 1.0]) for _ in rows]
    share = sum(pair.scores[0] > pair.scores[1] for pair in make_pairs(rows, groups)[0]) / 400
    assert 0.4 < share < 0.6  # 4 standard deviations of 400 tosses


def test_the_columns_of_a_prompt_go_with_its_pairs_and_another_policy_makes_another_pair():
    (pair,), (other,) = (
        make_pairs([{"prompt": "?", "task": "add"}], [candidates("a", "b")], policy=policy)[0] for policy in "xy"
    )
    assert pair.columns == {"task": "add"}
    assert pair.id != other.id


def test_pairs_are_read_as_they_were_written(tmp_path):
    dialogue = [{"role": "user", "content": "line one\u2028line two\x85"}]
    hostile = make_pairs([{"prompt": dialogue}], [candidates(HOSTILE, "fine", scores=[0.5, 1])], round=3)[0]
    write_pairs(tmp_path / "pairs.jsonl", [*some_pairs(), *hostile])
    assert read_pairs(tmp_path / "pairs.jsonl") == [*some_pairs(), *hostile]
    text = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")
    (tmp_path / "pairs.jsonl").write_text(text.removesuffix("\n"), encoding="utf-8")  # as editors may leave it
    assert read_pairs(tmp_path / "pairs.jsonl") == [*some_pairs(), *hostile]


def test_a_line_that_is_no_pair_is_named(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"id": "x"}) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl, row 1"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl")
