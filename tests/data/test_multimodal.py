import pytest

from tuneline.data import prepare_multimodal_messages
from tuneline.errors import DataError


def text(content):
    return {"type": "text", "text": content}


def test_images_go_before_the_first_question():
    messages = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    before = [dict(message) for message in messages]
    prepared = prepare_multimodal_messages(messages, images=["cat", "dog"])
    assert [message["content"] for message in prepared] == [
        [text("Look.")],
        [{"type": "image", "image": "cat"}, {"type": "image", "image": "dog"}, text("What?")],
        [text("A cat.")],
        [text("Sure?")],
    ]
    assert messages == before


def test_places_are_filled_in_their_order_and_images_that_are_there_stay():
    messages = [
        {"role": "user", "content": [text("a"), {"type": "image"}, {"type": "image", "image": "own"}]},
        {"role": "tool", "content": [{"type": "image"}]},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    prepared = prepare_multimodal_messages(messages, images=["cat", "dog"])
    assert prepared[0]["content"] == [text("a"), {"type": "image", "image": "cat"}, {"type": "image", "image": "own"}]
    assert prepared[1] == messages[1]
    assert prepared[2]["content"] == [{"type": "image", "image": "dog"}]


def test_a_call_without_content_stays_and_text_alone_needs_no_images():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    question = {"role": "user", "content": "a"}
    assert prepare_multimodal_messages([question, call]) == [{"role": "user", "content": [text("a")]}, call]


def test_other_numbers_of_images_and_unknown_roles_are_refused():
    with pytest.raises(DataError, match="have 1 places for images, and 0 images are given"):
        prepare_multimodal_messages([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(DataError, match="role 'model'; use one of system, user, assistant, tool"):
        prepare_multimodal_messages([{"role": "model", "content": "a"}])


def test_results_are_those_of_trl():
    trl = pytest.importorskip("trl")
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [text("Sure?")]},
        {"role": "tool", "name": "f", "content": "yes"},
    ]
    for images in ([], ["cat"], ["cat", "dog"]):
        assert prepare_multimodal_messages(messages, images) == trl.prepare_multimodal_messages(messages, images)
