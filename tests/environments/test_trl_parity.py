"""What goes behind a turn is what TRL puts there."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneline.environments.chat import ChatFormat
from tuneline.models.tiny import make_tokenizer

trl = pytest.importorskip("trl", reason="the peer")

ANSWERS = [{"role": "tool", "name": "a", "content": "one"}, {"role": "tool", "name": "b", "content": "two"}]


@pytest.mark.slow  # for the time that the peer takes to import
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3_training", "qwen3_5_think", "llama3_1", "gptoss", "lfm2"])
def test_the_suffix_is_that_of_trl(family):
    from trl import GRPOTrainer

    path = Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja"
    tokenizer = make_tokenizer()
    end = {"llama3_1": "<|eot_id|>", "gptoss": "<|call|>"}.get(family, "<|im_end|>")
    tokenizer.add_tokens([end], special_tokens=True)
    tokenizer.eos_token = end
    tokenizer.chat_template = path.read_text()
    peer = SimpleNamespace(
        _is_vlm=False,
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        chat_template=None,
        chat_template_kwargs={},
    )
    theirs = GRPOTrainer._get_tool_suffix_ids(peer, ANSWERS)
    ours = ChatFormat(tokenizer, [tokenizer.eos_token_id]).suffix_ids(ANSWERS, ["a", "b"])
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)
    assert ours == theirs
