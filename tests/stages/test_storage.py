"""Files that are whole or not there."""

import pytest

from stages.storage import publish_folder, read_metrics, write_whole


def test_a_line_of_metrics_that_was_cut_off_anywhere_is_left_out(tmp_path):
    whole, path = '{"step": 2, "metrics": {"loss": 1.5}}', tmp_path / "metrics.jsonl"
    for length in range(len(whole)):  # one of them ends in a brace
        path.write_text(f"{whole}\n{whole[:length]}")
        assert read_metrics(path) == [{"step": 2, "metrics": {"loss": 1.5}}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "below" / "state.json"
    write_whole(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "two\ud800")
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_published_as_a_whole(tmp_path):
    final = tmp_path / "final"
    for text in ("one", "two"):
        with publish_folder(final) as aside:
            (aside / f"{text}.txt").write_text(text)
    with pytest.raises(FileNotFoundError), publish_folder(final) as aside:
        (aside / "none" / "three.txt").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["final", "two.txt"]
    (tmp_path / "final.new").mkdir()
    (tmp_path / "final.new" / "of a killed process").touch()
    with publish_folder(final) as aside:
        assert not list(aside.iterdir())
