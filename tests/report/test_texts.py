import pytest

from tasks.report_text import Limits, breakable, difference, size


def rebuilt(parts):
    """Both texts, from what is the same, gone and new."""
    sides = ("gone", "new")
    return tuple("".join(text for kind, text in parts if kind in ("same", side)) for side in sides)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("1382", "1378"),
        ("", "something"),
        ("something", ""),
        ("the cat sat on the mat", "the dog sat on a mat, purring"),
        ("a completely other sentence here", "42"),
        ("line one\nline two\nline three", "line one\nline 2\nline three\n"),
        ("über ☃ 日本 한국 mehr", "über ☃ 日本 mehr und mehr"),
    ],
)
def test_a_difference_holds_both_texts(reference, text):
    assert rebuilt(difference(reference, text)) == (reference, text)


def test_few_words_are_compared_by_character_and_many_by_word():
    assert difference("1382", "1378") == [("same", "13"), ("new", "7"), ("same", "8"), ("gone", "2")]
    assert ("gone", "cat") in difference("the cat sat on the mat", "the dog sat on the mat")


def test_texts_without_likeness_are_replaced_as_wholes():
    assert difference("abcdefgh", "12345") == [("gone", "abcdefgh"), ("new", "12345")]
    assert difference("same", "same") == [("same", "same")]


def test_what_is_cut_is_counted_in_words():
    limits = Limits(num_characters=10, num_block_characters=5)
    assert limits.text("0123456789abc") == "0123456789… (3 characters more)"
    assert limits.end("a log that ends badly") == "… (16 characters before)\nbadly"
    assert limits.rows("samples", list(range(7)), 4) == [0, 1, 2, 3]
    assert limits.left_out == {"characters of long texts": 3, "characters of logs": 16, "samples": 3}


def test_names_may_break_and_stay_escaped():
    assert breakable("train/mean_length<b>") == "train/<wbr>mean_<wbr>length&lt;b&gt;"


def test_sizes_are_written_for_readers():
    assert [size(n) for n in (17, 5 * 2**20, 3 * 2**30)] == ["17 bytes", "5 MiB", "3.0 GiB"]
