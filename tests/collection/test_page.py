"""The labelling page in a real Chromium: by keyboard alone, with the server gone, and with hostile text."""

import pytest

from tests.collection.browser import CHROMIUM, browser
from tests.collection.pairs import HOSTILE, some_pairs
from tuneline.collection.pairs import Candidate, make_pairs
from tuneline.collection.store import LabelStore

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine"),
    pytest.mark.slow,
]


def begin(page, server, name="anna"):
    page.open(server.address)
    page.wait("!document.getElementById('welcome').hidden")
    page.type(name)
    page.press("Enter")
    page.wait("document.getElementById('left').textContent")
    assert page.run("location.search") == ""  # the token has left the address


def shown(page):
    return page.text("#prompt"), page.text("#left"), page.text("#right")


def press(page, key):
    """A key, and the next pair."""
    before = shown(page)
    page.press(key)
    page.wait(
        f"document.getElementById('prompt').textContent !== {before[0]!r} || !document.getElementById('done').hidden"
    )


def sent(page, name="anna"):
    page.wait(f"localStorage.getItem('queue:{name}') === '[]' && !document.getElementById('unsent').textContent")


def labels(tmp_path):
    with LabelStore(tmp_path / "labels.db") as store:
        return {store.pair(label.pair).prompt: label for label in store.labels()}


def test_pairs_are_labelled_by_keyboard_and_undone(serve, tmp_path):
    server = serve()
    with browser(tmp_path / "profile") as page:
        begin(page, server)
        chosen = {}
        for key, side in (("1", 1), ("ArrowRight", 2), ("0", None), ("s", None)):
            prompt, *sides = shown(page)
            chosen[prompt] = None if side is None else sides[side - 1]
            press(page, key)
        sent(page)
        kept = labels(tmp_path)
        assert [label.choice for label in kept.values()][2:] == ["tie", "skip"]
        with LabelStore(tmp_path / "labels.db") as store:
            for prompt, text in chosen.items():
                if text is not None:
                    assert vars(store.pair(kept[prompt].pair))[kept[prompt].choice] == text
        press(page, "u")
        assert shown(page)[0] == list(chosen)[-1]
        sent(page)
        assert len(labels(tmp_path)) == 3
        page.open(server.address)  # after a reload, the server is asked what was last
        page.wait("document.getElementById('left').textContent")
        press(page, "u")
        page.wait(f"document.getElementById('prompt').textContent === {list(chosen)[2]!r}")
        page.run("document.querySelector('[data-choice=left]').click()")
        page.wait("document.getElementById('counts').textContent.startsWith('3 labelled')")


def test_labels_wait_in_the_browser_while_the_server_is_gone_and_arrive_once(serve, tmp_path):
    server = serve()
    with browser(tmp_path / "profile") as page:
        begin(page, server)
        press(page, "1")
        sent(page)
        server.kill()
        for key in ("2", "0"):
            press(page, key)
        page.wait("document.getElementById('unsent').textContent === '2 not sent yet'")
        press(page, "u")  # an undo waits in its place, too
        press(page, "1")
        again = serve(port=server.port)
        sent(page)
        assert [label.choice in "ab" for label in labels(tmp_path).values()] == [True, True, True]
        again.kill()
        press(page, "0")
        page.wait("document.getElementById('unsent').textContent === '1 not sent yet'")
        page.call("Page.navigate", url="about:blank")
    with browser(tmp_path / "profile") as page:  # another browser of the same profile: the one before was killed
        last = serve(port=server.port)
        page.open(last.address)
        sent(page)
        page.wait("document.getElementById('left').textContent")
        assert len(labels(tmp_path)) == 4


def test_hostile_completions_are_text(serve, tmp_path):
    pairs = make_pairs([{"prompt": HOSTILE}], [[Candidate(HOSTILE), Candidate(HOSTILE.lower() + "<b>bold</b>")]])[0]
    server = serve(pairs)
    with browser(tmp_path / "profile") as page:
        begin(page, server)
        assert page.run("document.title") == "Which is better?"
        assert page.run("document.querySelectorAll('main img, main script, main b').length") == 0
        assert "<script>" in shown(page)[0]
        assert page.run("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')") == "refused"


def test_two_browsers_at_once_see_their_own_order_and_their_agreement(serve, tmp_path):
    server = serve(some_pairs(8))
    with browser(tmp_path / "anna") as anna, browser(tmp_path / "ben") as ben:
        begin(anna, server)
        begin(ben, server, "ben")
        for _ in range(8):
            for page in (anna, ben):
                press(page, "1" if "It is" in shown(page)[1] else "2")
        for page, name in ((anna, "anna"), (ben, "ben")):
            sent(page, name)
            page.wait("document.getElementById('summary').textContent.includes('Cohen')")
    with LabelStore(tmp_path / "labels.db") as store:
        assert store.progress().by_annotator == {"anna": 8, "ben": 8}


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(serve, tmp_path, width):
    long = "word" * 200
    server = serve(make_pairs([{"prompt": long}], [[Candidate(long), Candidate(long.upper())]])[0])
    with browser(tmp_path / "profile") as page:
        begin(page, server, "a name that is as long as a name can be.")
        page.screenshot(tmp_path / "page.png", width, 800)
        assert page.run("document.documentElement.scrollWidth") <= width
