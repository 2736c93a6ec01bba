"""Labels are kept once, stand until they are taken back, and pairs are dealt out."""

import sqlite3

import pytest

from tests.collection.pairs import some_pairs
from tuneline.collection.store import LEASE_SECONDS, LabelStore
from tuneline.errors import DataError


@pytest.fixture
def open_store(tmp_path):
    opened = []

    def open_one(**options):
        opened.append(LabelStore(tmp_path / "labels.db", **{"shared_share": 1.0, **options}))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def test_a_store_is_durable_by_its_settings(open_store):
    database = open_store()._database
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_pairs_are_taken_in_once(open_store):
    store = open_store()
    assert [store.add_pairs(some_pairs(3)), store.add_pairs(some_pairs(5))] == [3, 2]
    assert [pair.id for pair in store.pairs()] == [pair.id for pair in some_pairs(5)]


def test_a_label_that_is_sent_twice_counts_once_and_the_first_of_two_stands(open_store):
    store, (pair, *_) = open_store(), some_pairs()
    store.add_pairs([pair])
    sent = [("a", "act-1"), ("a", "act-1"), ("b", "act-2")]
    outcomes = [store.add_label(pair.id, "anna", choice, how="person", client=act) for choice, act in sent]
    assert outcomes == ["stored", "known", "other label stands"]
    assert [label.choice for label in store.labels()] == ["a"]


def test_a_label_taken_back_may_be_given_anew_and_does_not_come_back_when_it_is_sent_again(open_store):
    store, (pair, *_) = open_store(), some_pairs()
    store.add_pairs([pair])
    store.add_label(pair.id, "anna", "a", how="person", client="act-1")
    assert store.take_back(pair.id, "anna", "act-1")
    assert not store.take_back(pair.id, "anna", "act-1")
    assert store.add_label(pair.id, "anna", "a", how="person", client="act-1") == "known"
    assert store.labels() == []
    assert store.add_label(pair.id, "anna", "tie", how="person", client="act-2") == "stored"
    assert store.last_label("anna") == (pair.id, "act-2")


def test_shared_pairs_go_to_everyone_and_the_others_to_one(open_store):
    everyone = open_store()
    everyone.add_pairs(some_pairs(4))
    assert len(everyone.pairs_for("anna", 9)) == len(everyone.pairs_for("ben", 9)) == 4


def test_two_annotators_are_dealt_different_pairs_until_the_time_is_up_or_one_skips(open_store):
    now = [0.0]
    store = open_store(shared_share=0.0, clock=lambda: now[0])
    store.add_pairs(some_pairs(4))
    anna, ben = ({pair.id for pair in store.pairs_for(name, 2)} for name in ("anna", "ben"))
    assert len(anna) == len(ben) == 2
    assert not anna & ben
    assert store.num_left("carl") == 0
    now[0] = LEASE_SECONDS + 1
    assert store.num_left("carl") == 4
    skipped, labelled = sorted(anna)
    store.add_label(skipped, "anna", "skip", how="person", client="act-1")
    store.add_label(labelled, "anna", "b", how="person", client="act-2")
    assert {pair.id for pair in store.pairs_for("carl", 9)} == ben | {skipped}


def test_about_the_share_that_is_asked_for_is_shared(open_store):
    store = open_store(shared_share=0.2)
    store.add_pairs(some_pairs(500))
    store.pairs_for("anna", 500)
    assert 60 < store.num_left("ben") < 140  # of 500: what is shared, as anna was dealt all others


def test_sides_differ_between_annotators_and_files_and_are_the_same_when_asked_again(tmp_path, open_store):
    store = open_store()
    with LabelStore(tmp_path / "other.db") as other:
        sides = [
            "".join(of.left_side(pair.id, name) for pair in some_pairs(40))
            for of, name in ((store, "anna"), (store, "ben"), (other, "anna"), (store, "anna"))
        ]
    assert sides[0] == sides[3]
    assert len(set(sides)) == 3
    assert 8 < sides[0].count("a") < 32


def test_progress_is_of_a_round_or_of_all(open_store):
    store = open_store()
    store.add_pairs([*some_pairs(2), *some_pairs(4, round=2)[2:]])
    first, second, third, _ = store.pairs()
    store.add_label(first.id, "anna", "a", how="person", client="1")
    store.add_label(second.id, "anna", "skip", how="person", client="2")
    store.add_label(third.id, "verifier", "tie", how="verifier")
    of_first, of_all = store.progress(1), store.progress()
    assert (of_first.pairs, of_first.answered, of_first.decided) == (2, 2, 1)
    assert (of_all.pairs, of_all.answered, of_all.by_annotator) == (4, 3, {"anna": 2, "verifier": 1})


def test_a_transaction_that_cannot_be_ended_leaves_the_store_usable(open_store):
    store = open_store()
    transaction = store._transaction()
    transaction.__enter__()
    store._database.execute("PRAGMA defer_foreign_keys=ON")  # so that the commit fails, as on a full disk
    of_no_pair = "'none', 'anna', '', 'a', 'person', ''"
    store._database.execute(f"INSERT INTO labels (pair, annotator, client, choice, how, at) VALUES ({of_no_pair})")
    with pytest.raises(sqlite3.IntegrityError):
        transaction.__exit__(None, None, None)
    assert store.add_pairs(some_pairs(2)) == 2
    assert store.labels() == []


def test_what_cannot_be_kept_is_said(open_store, tmp_path):
    store = open_store()
    store.add_pairs(some_pairs(1))
    with pytest.raises(DataError, match="no pair 'none'"):
        store.add_label("none", "anna", "a", how="person")
    with pytest.raises(DataError, match="none of a, b, tie, skip"):
        store.add_label(some_pairs()[0].id, "anna", "left", how="person")
    (tmp_path / "text.db").write_text("this is no database, but a file of words that is long enough to be read as one")
    with pytest.raises(DataError, match="no store of labels"):
        LabelStore(tmp_path / "text.db")
    database = sqlite3.connect(tmp_path / "later.db")
    database.executescript("CREATE TABLE about (name PRIMARY KEY, value); INSERT INTO about VALUES ('version', '9')")
    database.close()
    with pytest.raises(DataError, match="version 9"):
        LabelStore(tmp_path / "later.db")
