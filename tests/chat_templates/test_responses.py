import pytest

from tests.chat_templates.dialogues import ASKS, CALL, RESULT, SAYS, TOOL, tokenizer_with
from tuneline import add_response_schema
from tuneline.chat_templates import FAMILIES
from tuneline.environments.parsing import reply_parser
from tuneline.errors import ModelError

CALLING = [family for family in FAMILIES if family.settings.get("has_tools") or family.file == "gpt_oss"]
CALLING += [family for family in FAMILIES if family.settings.get("has_header")]


def read_back(tokenizer, before, answer):
    """An answer rendered by a template, and read from its tokens."""
    prompt = tokenizer.apply_chat_template(before, tools=[TOOL], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*before, answer], tools=[TOOL])["input_ids"]
    return reply_parser(tokenizer)(tokenizer, prompt, whole[len(prompt) :], [TOOL])


@pytest.mark.parametrize("family", CALLING, ids=lambda family: family.name)
def test_calls_and_words_are_read_back_as_they_were_rendered(family):
    tokenizer = add_response_schema(tokenizer_with(family.training_template()))
    reply = read_back(tokenizer, [ASKS], CALL)
    assert [(call.name, call.arguments, call.error) for call in reply.calls] == [("look", {"at": "ä", "n": 2}, None)]
    assert reply.content == ""
    reply = read_back(tokenizer, [ASKS, CALL, RESULT], SAYS)
    assert (reply.content, reply.calls) == ("First.", [])


@pytest.mark.parametrize("name", ["Qwen 3", "DeepSeek R1", "GPT-OSS"])
def test_reasoning_is_told_from_the_answer(name):
    family = next(family for family in FAMILIES if family.name == name)
    tokenizer = add_response_schema(tokenizer_with(family.training_template()))
    thinks = {**SAYS, "reasoning_content": "Hm.", "thinking": "Hm."}
    reply = read_back(tokenizer, [ASKS], thinks)
    assert reply.content == "First."
    assert reply.reasoning == "Hm."
    reply = read_back(tokenizer, [ASKS], {**CALL, "reasoning_content": "Hm.", "thinking": "Hm."})
    assert [call.name for call in reply.calls] == ["look"]
    assert reply.reasoning == "Hm."


def test_a_family_that_calls_no_tools_is_refused():
    plain = next(family for family in FAMILIES if family.name == "Gemma 3").template()
    with pytest.raises(ModelError, match=r"that of Gemma 3, which calls no tools.*known of Qwen 2.5"):
        add_response_schema(tokenizer_with(plain))
    for template in (None, "{{ messages[0].content }}"):
        with pytest.raises(ModelError, match="is of no known family"):
            add_response_schema(tokenizer_with(template))
