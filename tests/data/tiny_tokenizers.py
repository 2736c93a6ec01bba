"""Tiny tokenizers made in memory: one token a character, or merged pairs, and the chat template of the Qwen family."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_WITH_MARKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<eos>", "<|im_start|>", "<|im_end|>"]


def character_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a character; the special tokens are 0, 1 and 2."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL + characters)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return _finished(backend, chat_template)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs that merge `bc` before `ab`: the token `ab` is no beginning of the tokens of `abc`."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "a", "b", "c", "ab", "bc"])}
    return _finished(Tokenizer(models.BPE(vocabulary, [("b", "c"), ("a", "b")])), CHATML)


def _finished(backend: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL[1:]})
    tokenizer.chat_template = chat_template
    return tokenizer
