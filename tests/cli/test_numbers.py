"""Numbers on the command line: what is none is told before anything is imported or run."""

import pytest

from tuneline.cli.parser import make_parser


@pytest.mark.parametrize(
    "words",
    [
        ["run", "x.yaml", "--retry-delay", "-1"],
        ["run", "x.yaml", "--retry-delay", "nan"],
        ["run", "x.yaml", "--retries", "-1"],
        ["notify", "http://x", "--dead-after", "inf"],
        ["gc", "--keep-days", "week"],
        ["sweep", "x.yaml", "--jobs", "0"],
        ["gpus", "0"],
        ["server", "--port", "0"],
        ["collect", "serve", "--port", "65536"],
        ["collect", "serve", "--shared", "1.5"],
        ["collect", "export", "x.jsonl", "--rounds", "1,0"],
    ],
)
def test_what_is_out_of_range_is_named(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(words)
    assert end.value.code == 2
    assert repr(words[-1].split(",")[-1]) in capsys.readouterr().err


def test_the_ends_of_the_ranges_are_in_them():
    parse = make_parser().parse_args
    assert parse(["run", "x.yaml", "--retries", "0", "--retry-delay", "0"]).retry_delay == 0.0
    assert parse(["collect", "serve", "--port", "0", "--shared", "1"]).port == 0
    assert parse(["server", "--port", "65535"]).port == 65535
