"""The labelling server as a process of its own, asked over a socket: what it keeps, and whom it refuses."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.collection.pairs import HOSTILE, some_pairs
from tuneline.collection.pairs import Candidate, make_pairs
from tuneline.collection.store import LabelStore
from tuneline.collection.web import LabelServer, open_server
from tuneline.errors import TunelineError


def stored(tmp_path):
    with LabelStore(tmp_path / "labels.db") as store:
        return store.labels()


def test_a_label_that_was_acknowledged_is_there_after_the_server_was_killed(serve, tmp_path):
    server = serve()
    pair, other, *_ = server.pairs()
    assert server.label(pair["pair"], "left") == "stored"
    server.kill()
    (label,) = stored(tmp_path)
    assert (label.pair, label.annotator, label.how, label.seconds) == (pair["pair"], "anna", "person", 1.5)
    again = serve(port=server.port)  # the browser does not know that it is another process, and sends again
    assert again.label(pair["pair"], "left") == "known"
    assert again.label(other["pair"], "tie", client="client-0002") == "stored"
    assert [pair["pair"] in {shown["pair"] for shown in again.pairs()}, len(stored(tmp_path))] == [False, 2]


def test_left_is_what_was_shown_on_the_left_and_is_written_down(serve, tmp_path):
    server = serve(some_pairs(20))
    shown = {name: {one["pair"]: one for one in server.pairs(name)} for name in ("anna", "ben")}
    pairs = {pair.id: pair for pair in some_pairs(20)}
    swapped = [pair for pair in pairs if shown["anna"][pair]["left"] != shown["ben"][pair]["left"]]
    assert swapped  # each annotator has an order of their own
    server.label(swapped[0], "left", "anna")
    server.label(swapped[0], "left", "ben")
    for label in stored(tmp_path):
        text = shown[label.annotator][swapped[0]]["left"]
        assert label.choice == label.shown_left == ("a" if text == pairs[swapped[0]].a else "b")
    assert {label.choice for label in stored(tmp_path)} == {"a", "b"}
    assert set(shown["anna"][swapped[0]]) == {"pair", "prompt", "left", "right"}  # nothing tells the sides apart


def test_undo_takes_back_by_name_or_the_newest_and_may_be_sent_twice(serve, tmp_path):
    server = serve()
    first, second, *_ = (one["pair"] for one in server.pairs())
    server.label(first, client="client-0001")
    server.label(second, client="client-0002")
    undo = {"annotator": "anna", "pair": second, "client": "client-0002"}
    for _ in range(2):
        status, _, answer = server.ask("POST", "/api/undo", undo)
        assert (status, answer["pair"]["pair"], answer["progress"]["mine"]) == (200, second, 1)
    _, _, answer = server.ask("POST", "/api/undo", {"annotator": "anna"})
    assert (answer["pair"]["pair"], stored(tmp_path)) == (first, [])
    assert server.ask("POST", "/api/undo", {"annotator": "anna"})[2]["pair"] is None


def test_two_annotators_at_once_lose_nothing(serve, tmp_path):
    server = serve(some_pairs(20))
    pairs = [one["pair"] for one in server.pairs()]

    def work(name):
        return [server.label(pair, "right", name, f"{name}-{pair}") for pair in pairs]

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(work, ["anna", "ben", "carl"]))
    assert {outcome for of_one in outcomes for outcome in of_one} == {"stored"}
    assert len(stored(tmp_path)) == 60
    told = server.ask("GET", "/api/summary")[2]
    assert told["annotators"] == {"anna": 20, "ben": 20, "carl": 20}
    assert (told["answered"], told["agreement"]["pairs"], len(told["agreement"]["kappa"])) == (20, 20, 3)


def test_the_token_becomes_a_cookie_and_without_it_nothing_is_told(serve):
    server = serve()
    for path in ("/", "/page.js", "/api/summary", "/?token=wrong"):
        assert server.ask("GET", path, cookie=False)[0] == 401
    assert server.ask("POST", "/api/labels", {"annotator": "anna"}, cookie=False)[0] == 401
    status, headers, _ = server.ask("GET", f"/?token={server.token}", cookie=False)
    assert (status, headers["Location"]) == (303, "/")
    assert headers["Set-Cookie"].startswith(f"tuneline_label_{server.port}={server.token}; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
    ],
    ids=str,
)
def test_what_another_page_sends_is_refused(serve, tmp_path, headers):
    server = serve()
    sent = {"pair": server.pairs()[0]["pair"], "choice": "left", "annotator": "anna", "client": "client-0001"}
    status, _, answer = server.ask("POST", "/api/labels", sent, **headers)
    assert (status, "error" in answer, stored(tmp_path)) == (403, True, [])


def test_a_name_that_was_bent_to_loopback_reads_nothing(serve):
    server = serve()
    for headers in ({"Host": f"evil.example:{server.port}"}, {"Origin": "http://evil.example"}):
        assert server.ask("GET", "/api/pairs?annotator=anna", **headers)[0] == 403
    assert server.ask("GET", "/api/summary", Host=f"localhost:{server.port}")[0] == 200


def test_answers_forbid_foreign_content_frames_and_caches(serve):
    server = serve()
    for path in ("/", "/page.js", "/page.css", "/favicon.ico", "/api/summary", "/none"):
        _, headers, _ = server.ask("GET", path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 9000, 400),
        (b"x" * 20_000, 413),
        ({"pair": "none", "choice": "left", "annotator": "anna", "client": "client-0001"}, 400),
        ({"pair": 1, "choice": "left", "annotator": "anna", "client": "client-0001"}, 400),
        ({"pair": "none", "choice": "a", "annotator": "anna", "client": "client-0001"}, 400),
        ({"pair": "none", "choice": "left", "annotator": "<b>", "client": "client-0001"}, 400),
        ({"pair": "none", "choice": "left", "annotator": "x" * 41, "client": "client-0001"}, 400),
        ({"pair": "none", "choice": "left", "annotator": "anna", "client": "short"}, 400),
    ],
)
def test_what_is_no_label_is_refused_with_a_reason(serve, tmp_path, sent, status):
    server = serve()
    answered, _, answer = server.ask("POST", "/api/labels", sent)
    assert (answered, bool(answer["error"]), stored(tmp_path)) == (status, True, [])
    assert server.ask("GET", "/api/summary")[0] == 200


def test_hostile_text_travels_as_data(serve):
    server = serve(make_pairs([{"prompt": HOSTILE}], [[Candidate(HOSTILE), Candidate("fine")]])[0])
    (shown,) = server.pairs()
    assert {shown["left"], shown["right"]} == {HOSTILE, "fine"}
    assert shown["prompt"] == [{"role": "", "content": HOSTILE}]
    assert HOSTILE not in server.ask("GET", "/")[2]


def test_a_store_keeps_its_address_and_a_port_that_is_taken_is_said(tmp_path):
    with LabelStore(tmp_path / "labels.db") as store:
        first = open_server(store)
        with pytest.raises(TunelineError, match=f"port {first.port} cannot be listened on"):
            LabelServer(store, port=first.port)
        beside = open_server(store)
        assert (beside.port != first.port, beside.token) == (True, first.token)
        for server in (first, beside):
            server.start()
            server.close()
        again = open_server(store)
        assert again.address == beside.address
        again._http.server_close()
    remembered = tmp_path / "labels.address"
    assert remembered.stat().st_mode & 0o077 == 0
