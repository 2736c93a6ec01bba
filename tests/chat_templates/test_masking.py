import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.chat_templates.dialogues import ASKS, SAYS, SAYS_MORE, tokenizer_with
from tests.data.tiny_tokenizers import CHATML, CHATML_WITH_MARKS
from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tuneline import SFTConfig, SFTTrainer
from tuneline.chat_templates import (
    FAMILIES,
    has_generation_markers,
    is_chat_template_prefix_preserving,
    is_chat_template_stop_token_trained,
    masking_template,
    supports_tool_calling,
)
from tuneline.chat_templates.checks import marked_spans, masking_problems
from tuneline.errors import ModelError

STOPS_OUTSIDE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
LAST_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and (loop.last or loop.index == 2) "
    "and loop.index + 2 > messages | length %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
TOOLS_UNMARKED = CHATML_WITH_MARKS.replace(
    "{% for message in messages %}",
    "{% for message in messages %}"
    "{% if message.tool_calls %}{{ message.tool_calls | string }}{% continue %}{% endif %}",
)


def test_marks_are_seen_in_all_their_spellings():
    for mark in ("{% generation %}", "{%- generation -%}", "{%generation%}"):
        assert has_generation_markers(f"a{mark}b{{% endgeneration %}}")
    assert has_generation_markers({"default": "{% generation %}", "rag": ""})
    assert not has_generation_markers("{% if add_generation_prompt %}generation{% endif %}")


def test_the_token_that_ends_the_turn_is_in_the_loss_or_not():
    assert is_chat_template_stop_token_trained(tokenizer_with(CHATML_WITH_MARKS))
    assert not is_chat_template_stop_token_trained(tokenizer_with(STOPS_OUTSIDE))
    assert not is_chat_template_stop_token_trained(tokenizer_with(CHATML))
    assert is_chat_template_stop_token_trained(tokenizer_with(CHATML), CHATML_WITH_MARKS)
    assert not is_chat_template_stop_token_trained(
        tokenizer_with("{{ raise_exception('no') }}{% generation %}{% endgeneration %}")
    )


def test_tools_are_supported_where_call_and_result_show():
    assert not supports_tool_calling(tokenizer_with())
    assert not supports_tool_calling(tokenizer_with(CHATML))
    assert not supports_tool_calling(tokenizer_with("{{ raise_exception('no tools') }}"))
    assert supports_tool_calling(tokenizer_with(TOOLS_UNMARKED))
    only_text = (
        "{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.name + call.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert supports_tool_calling(tokenizer_with(only_text))
    assert is_chat_template_prefix_preserving(tokenizer_with(only_text))


def test_a_call_that_is_rendered_otherwise_when_its_result_follows_is_told():
    changing = "{% for m in messages %}{{ m.role if loop.last }}{{ m.content }}{% endfor %}"
    assert not is_chat_template_prefix_preserving(tokenizer_with(changing))
    assert is_chat_template_prefix_preserving(tokenizer_with(CHATML))


@pytest.mark.parametrize(
    ("template", "warning"),
    [
        (STOPS_OUTSIDE, "the token that ends the assistant's turn is not marked"),
        (LAST_ALONE, "of two answers in a dialogue 1 is marked"),
        (TOOLS_UNMARKED, "calls of tools are not marked"),
    ],
)
def test_what_marks_leave_out_is_warned_of(caplog, template, warning):
    assert masking_template(tokenizer_with(template)) is None
    assert len(caplog.messages) == 1
    assert warning in caplog.messages[0]


def test_the_checks_of_trl_agree():
    trl = pytest.importorskip("trl.chat_template_utils")
    for template in (CHATML, CHATML_WITH_MARKS, STOPS_OUTSIDE, TOOLS_UNMARKED):
        tokenizer = tokenizer_with(template)
        for ours in (is_chat_template_stop_token_trained, is_chat_template_prefix_preserving, supports_tool_calling):
            assert ours(tokenizer) == getattr(trl, ours.__name__)(tokenizer), (ours.__name__, template)


def trainer(folder, tokenizer, rows):
    args = SFTConfig(output_dir=str(folder), assistant_only_loss=True, max_length=None, **QUIET)
    model = tiny_causal_lm(vocab_size=len(tokenizer))
    return SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def test_the_trainer_marks_with_the_familys_template_where_the_tokenizers_own_has_no_marks(tmp_path, caplog):
    tokenizer = tokenizer_with(CHATML)
    caplog.set_level("INFO")
    trained = trainer(tmp_path, tokenizer, [{"messages": [ASKS, SAYS, ASKS, SAYS_MORE]}])
    row = trained.train_dataset[0]
    said = [token for token, counts in zip(row["input_ids"], row["is_target"], strict=True) if counts]
    assert "".join(tokenizer.convert_ids_to_tokens(said)) == "First.<|im_end|>Second.<|im_end|>"
    assert tokenizer.apply_chat_template([ASKS, SAYS, ASKS, SAYS_MORE])["input_ids"] == row["input_ids"]
    assert tokenizer.chat_template == CHATML
    assert any("that of ChatML" in message for message in caplog.messages)


def test_the_trainer_warns_at_its_start_of_a_turns_end_that_is_not_learned(tmp_path, caplog):
    trained = trainer(tmp_path, tokenizer_with(STOPS_OUTSIDE), [{"messages": [ASKS, SAYS]}])
    assert any("the token that ends the assistant's turn is not marked" in message for message in caplog.messages)
    assert sum(trained.train_dataset[0]["is_target"]) > 0


def test_the_trainer_refuses_dialogues_that_nothing_marks_and_takes_masks_of_ones_own(tmp_path):
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(ModelError, match="no such marks"):
        trainer(tmp_path, tokenizer, [{"messages": [ASKS, SAYS]}])
    masked = [{"input_ids": [5, 6, 7], "assistant_masks": [0, 0, 1]}]
    assert trainer(tmp_path, tokenizer, masked).train_dataset[0]["is_target"] == [0, 0, 1]
    assert trainer(tmp_path, tokenizer_with(), masked).train_dataset[0]["is_target"] == [0, 0, 1]


@pytest.mark.parametrize("spelling", ["normalizer", "always", "first"])
def test_a_space_that_an_answer_begins_with_is_marked_with_its_first_token(spelling):
    """Mistral's older formats write one, and tokenizers like SentencePiece make it a part of a token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if spelling == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spelling)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["question answer one two First. 1 2"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"extra_special_tokens": special[3:]})
    for name in ("Mistral V1", "Mistral V3"):
        tokenizer.chat_template = next(f for f in FAMILIES if f.name == name).training_template()
        spans = marked_spans(tokenizer, [ASKS, SAYS, ASKS, {"role": "assistant", "content": "1"}])
        said = ["".join(tokenizer.convert_ids_to_tokens(span)).lstrip("▁") for span in spans]
        assert said == ["First.</s>", "1</s>"]
        assert masking_problems(tokenizer) == []
