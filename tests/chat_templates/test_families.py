from itertools import product
from pathlib import Path

import jinja2
import pytest

from tests.chat_templates.dialogues import (
    ASKS,
    CALL,
    DIALOGUES,
    GOES_ON,
    REASONED,
    RESULT,
    RICH_TOOL,
    SAYS,
    SAYS_MORE,
    SYSTEM,
    THOUGHT,
    TOOL,
    rendered,
    tokenizer_with,
)
from tuneline import get_training_chat_template
from tuneline.chat_templates import (
    FAMILIES,
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
    recognise,
    supports_tool_calling,
)
from tuneline.chat_templates.checks import marked_spans
from tuneline.data.rendering import REFUSALS
from tuneline.environments.chat import ChatFormat
from tuneline.errors import ModelError

FAMILY = {family.name: family for family in FAMILIES}
NAMES = list(FAMILY)

# The models' own templates as TRL 1.16 ships them, and the family that each has to be.
SHIPPED = {
    "qwen2_5": "Qwen 2.5",
    "qwen3": "Qwen 3",
    "qwen3_instruct_2507": "Qwen 3 Instruct 2507",
    "llama3": "Llama 3",
    "llama3_1": "Llama 3.1 and 3.3",
    "llama3_2": "Llama 3.2",
    "gemma": "Gemma and Gemma 2",
    "gemma3": "Gemma 3",
    "phi3": "Phi-3",
    "phi3_5": "Phi-3.5",
    "deepseekv3": "DeepSeek R1",
    "deepseek_r1_distill": "DeepSeek R1, distilled",
    "gptoss": "GPT-OSS",
}


def shipped(name):
    trl = pytest.importorskip("trl")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def or_refusal(template, messages, **options):
    try:
        return rendered(template, messages, **options)
    except REFUSALS:
        return None


@pytest.mark.parametrize("name", SHIPPED)
def test_a_family_renders_what_its_models_own_template_does(name):
    own, ours = shipped(name), FAMILY[SHIPPED[name]].template()
    options = [{}, {"tools": [TOOL]}, {"tools": [RICH_TOOL, TOOL]}, {"enable_thinking": False}]
    if "llama" in name:
        options += [{"date_string": "1 Jan 2020"}, {"tools": [TOOL], "tools_in_user_message": False}]
    if name == "gptoss":
        options += [{"reasoning_effort": "high", "model_identity": "Me."}]
    num_compared = 0
    for dialogue, start, option, asks in product(DIALOGUES, ([], [SYSTEM]), options, (False, True)):
        if name == "deepseek_r1_distill" and RESULT in dialogue:
            continue  # its own template loses calls of tools, and ours does not render them at all
        expected = or_refusal(own, start + dialogue, add_generation_prompt=asks, **option)
        if expected is not None:
            assert or_refusal(ours, start + dialogue, add_generation_prompt=asks, **option) == expected
            num_compared += 1
    assert num_compared >= 20


@pytest.mark.parametrize("name", SHIPPED)
def test_a_tokenizer_is_recognised_by_what_its_template_renders(name):
    family = FAMILY[SHIPPED[name]]
    for own in (shipped(name), "{#- an edit -#}" + shipped(name)):
        tokenizer = tokenizer_with(own)
        assert recognise(tokenizer)[0] is family
        template = get_training_chat_template(tokenizer)
        assert template == get_training_chat_template(tokenizer=tokenizer)
        assert get_training_chat_template(tokenizer_with(template)) is None
        assert rendered(template, [ASKS, SAYS]) == rendered(family.training_template(), [ASKS, SAYS])


PLAIN = {
    "ChatML, SmolLM and SmolLM2": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{{ '' }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{{ '' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}"
    ),
    "Phi-4": (
        "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
        "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
    ),
    "Mistral V1, first release": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}{{ raise_exception('role') }}"
        "{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_templates_that_trl_does_not_ship_are_recognised_too(name):
    assert recognise(tokenizer_with(PLAIN[name]))[0] is FAMILY[name]


def test_a_default_system_message_of_ones_own_is_taken_over():
    own = PLAIN["ChatML, SmolLM and SmolLM2"].replace("named SmolLM, trained by Hugging Face", 'of "ours"\\n\u00e4')
    for source in (own, shipped("qwen2_5").replace("You are Qwen, created by Alibaba Cloud.", 'Call me \\"Q\\".')):
        tokenizer = tokenizer_with(source)
        template = get_training_chat_template(tokenizer)
        for dialogue in ([ASKS, SAYS], [SYSTEM, ASKS, SAYS]):
            assert rendered(template, dialogue) == rendered(source, dialogue)


def test_what_is_of_no_family_is_refused_and_marks_of_ones_own_stay():
    with pytest.raises(ModelError, match=r"none of the families .*Llama 3.*chat_template_path"):
        get_training_chat_template(tokenizer_with("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))
    marked = "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration -%}{% endfor %}"
    assert get_training_chat_template(tokenizer_with(marked)) is None
    with pytest.raises(ModelError, match="has no chat template"):
        get_training_chat_template(tokenizer_with())
    with pytest.raises(ModelError, match="takes one tokenizer, as processing_class; it got 0"):
        get_training_chat_template()


@pytest.mark.parametrize("name", NAMES)
def test_training_renders_a_finished_dialogue_as_the_models_own_template_does(name):
    family = FAMILY[name]
    if family.file == "deepseek":  # their own template takes the thought out of every answer, and so cannot teach it
        assert "<think>\nHm.\n</think>\n\nThat." in rendered(family.training_template(), [ASKS, THOUGHT])
        assert "Hm." not in rendered(family.template(), [ASKS, THOUGHT])
        return
    for dialogue in ([ASKS, SAYS], [ASKS, REASONED]):
        assert rendered(family.training_template(), dialogue) == rendered(family.template(), dialogue)


@pytest.mark.parametrize("name", NAMES)
def test_marks_begin_where_the_prompt_ends_and_take_in_the_end_of_turn(name):
    tokenizer = tokenizer_with(FAMILY[name].training_template())
    assert is_chat_template_stop_token_trained(tokenizer)
    for before, answer in (([ASKS], SAYS), ([ASKS, SAYS, GOES_ON], SAYS_MORE), ([ASKS], THOUGHT)):
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*before, answer], tokenize=False)
        assert whole.startswith(prompt)
        spans = ["".join(tokenizer.convert_ids_to_tokens(s)) for s in marked_spans(tokenizer, [*before, answer])]
        said = [span for span in spans if span != "<eos>"]  # Phi writes it once more, after the last turn
        assert len(said) == len(before) // 2 + 1
        assert whole[len(prompt) :].startswith(said[-1])
        assert answer["content"].split("\n")[-1] in said[-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_exchange_with_a_tool_is_rendered_alike_before_and_after_the_result(name):
    family = FAMILY[name]
    tokenizer = tokenizer_with(family.training_template())
    if not supports_tool_calling(tokenizer):
        assert not family.settings.get("has_tools")
        assert name not in ("GPT-OSS", "Llama 3.1 and 3.3", "Llama 3.2")
        return
    assert is_chat_template_prefix_preserving(tokenizer)
    thinking = {**CALL, "reasoning_content": "Hm.", "thinking": "Hm."}
    dialogue = [SYSTEM, ASKS, thinking, RESULT, {**CALL, "content": "Again."}, RESULT]
    for end in (3, 5):
        before = tokenizer.apply_chat_template(dialogue[:end], tokenize=False, tools=[TOOL])
        after = tokenizer.apply_chat_template(
            dialogue[: end + 1], tokenize=False, tools=[TOOL], add_generation_prompt=True
        )
        assert after.startswith(before)
        assert marked_spans(tokenizer, dialogue[:end])
    if family.file != "mistral":  # which knows calls by ids, and environments give none
        ChatFormat(tokenizer, [tokenizer.eos_token_id]).check(has_tools=True)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_said_stays_as_it_is_when_more_is_said(name):
    tokenizer = tokenizer_with(FAMILY[name].training_template())
    dialogue = [ASKS, SAYS, GOES_ON, THOUGHT]
    short = tokenizer.apply_chat_template(dialogue[:2], tokenize=False)
    long = tokenizer.apply_chat_template(dialogue, tokenize=False)
    for end in ("<|return|>", "<eos>"):  # which only the last answer of a dialogue has, in GPT-OSS and Phi
        short = short.removesuffix(end)
    assert long.startswith(short)


TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "R"}]


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("Mistral V1", TURNS, "<bos> [INST] Q [/INST] A<eos> [INST] R [/INST]"),
        ("Mistral V1, first release", TURNS, "<bos>[INST] Q [/INST]A<eos>[INST] R [/INST]"),
        ("Mistral V3", TURNS, "<bos>[INST] Q[/INST] A<eos>[INST] R[/INST]"),
        ("Mistral V3-Tekken", TURNS, "<bos>[INST]Q[/INST]A<eos>[INST]R[/INST]"),
        (
            "Mistral V7",
            [SYSTEM, *TURNS],
            "<bos>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Q[/INST]A<eos>[INST]R[/INST]",
        ),
        ("Mistral V1", [SYSTEM, *TURNS], "<bos> [INST] Be brief.\n\nQ [/INST] A<eos> [INST] R [/INST]"),
        ("Mistral V3", [SYSTEM, *TURNS], "<bos>[INST] Q[/INST] A<eos>[INST] Be brief.\n\nR[/INST]"),
        (
            "Phi-4",
            TURNS,
            "<|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|>"
            "<|im_start|>user<|im_sep|>R<|im_end|>",
        ),
        ("Phi-4-mini", TURNS, "<|user|>Q<|end|><|assistant|>A<|end|><|user|>R<|end|><eos>"),
        ("DeepSeek V3", [SYSTEM, *TURNS], "<bos>Be brief.<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>R"),
    ],
)
def test_families_that_trl_does_not_ship_render_the_documented_text(name, messages, expected):
    assert rendered(FAMILY[name].template(), messages) == expected


def test_mistral_calls_tools_by_their_ids():
    text = rendered(FAMILY["Mistral V3"].template(), [ASKS, CALL, RESULT, SAYS], tools=[TOOL])
    assert text == (
        '<bos>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "look", "description": "Looks.", '
        '"parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "What."}, '
        '"n": {"type": "integer", "default": 1}}, "required": ["at"]}}}][/AVAILABLE_TOOLS][INST] One?[/INST]'
        '[TOOL_CALLS] [{"name": "look", "arguments": {"at": "ä", "n": 2}, "id": "call00001"}]<eos>'
        '[TOOL_RESULTS] {"content": seen, "call_id": "call00001"}[/TOOL_RESULTS] First.<eos>'
    )
    without_id = {**CALL, "tool_calls": [{"function": CALL["tool_calls"][0]["function"]}]}
    with pytest.raises(jinja2.TemplateError, match="an id of nine letters and digits"):
        rendered(FAMILY["Mistral V3"].template(), [ASKS, without_id])


def test_training_puts_what_goes_with_the_last_question_of_mistral_with_the_first():
    text = rendered(FAMILY["Mistral V3"].training_template(), [SYSTEM, *TURNS])
    assert text == "<bos>[INST] Be brief.\n\nQ[/INST] A<eos>[INST] R[/INST]"


def test_phi_4_mini_lists_its_tools_in_the_system_message():
    text = rendered(FAMILY["Phi-4-mini"].template(), [SYSTEM, ASKS, CALL, RESULT], tools=[TOOL])
    assert text.startswith('<|system|>Be brief.<|tool|>{"name": "look", "description": "Looks.", ')
    assert "<|/tool|>You are a helpful assistant with some tools.\nTo use a tool, respond in this format: " in text
    assert text.endswith(
        '<|end|><|user|>One?<|end|><|assistant|><|tool_call|>{"name": "look", "arguments": {"at": "ä", "n": 2}}'
        '<|/tool_call|><|end|><|tool_response|>"seen"<|end|><eos>'
    )


@pytest.mark.parametrize(("options", "mode"), [({}, "/think"), ({"enable_thinking": False}, "/no_think")])
def test_smollm3_tells_its_mode_and_date_in_the_system_message(options, mode):
    text = rendered(FAMILY["SmolLM3"].template(), [SYSTEM, ASKS, SAYS], **options)
    block = "" if mode == "/think" else "<think>\n\n</think>\n"
    assert text.startswith("<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ")
    assert text.endswith(
        f"Reasoning Mode: {mode}\n\n## Custom Instructions\n\nBe brief.\n\n<|im_start|>user\nOne?<|im_end|>\n"
        f"<|im_start|>assistant\n{block}First.<|im_end|>\n"
    )
    default = rendered(FAMILY["SmolLM3"].template(), [ASKS], add_generation_prompt=True, **options)
    assert "You are a helpful AI assistant named SmolLM, trained by Hugging Face." in default
    assert ("Thought section" in default) == (mode == "/think")
    assert default.endswith(f"<|im_start|>assistant\n{block}")


def test_smollm3_has_its_mode_changed_or_its_system_message_replaced_by_flags():
    template = FAMILY["SmolLM3"].template()
    flagged = rendered(template, [{"role": "system", "content": "Be brief. /no_think"}, ASKS])
    assert "Reasoning Mode: /no_think\n\n## Custom Instructions\n\nBe brief.\n\n<|im_start|>user" in flagged
    replaced = rendered(template, [{"role": "system", "content": "Only this. /system_override"}, ASKS])
    assert replaced.startswith("<|im_start|>system\nOnly this.<|im_end|>\n<|im_start|>user\n")
    offered = rendered(template, [ASKS], tools=[TOOL])
    assert "<tools>\n{'type': 'function', 'function': {'name': 'look'," in offered
    assert "</tool_call>\n\n<|im_end|>\n<|im_start|>user\n" in offered
