"""The programs of TRL's users: their imports and names changed, run in a folder, with tiny models for the hub's."""

import json
import re
import runpy
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from tests.models import VOCAB, tiny_causal_lm
from tests.trainers.rows import character_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT.parent / "shared" / "compat"

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def source_of(name):
    """The text of an example; the test is skipped, with the reason, where it is absent."""
    path = EXAMPLES / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {EXAMPLES}")
    return path.read_text()


def with_stand_ins(name, stand_ins):
    """A program with its imports changed, and each name of a model or data set replaced by a path."""
    code = re.sub(r"^(from|import) trl\b", r"\1 tuneline", source_of(name), flags=re.MULTILINE)
    for hub_name, stand_in in stand_ins.items():
        assert f'"{hub_name}"' in code
        code = code.replace(f'"{hub_name}"', repr(str(stand_in)))
    return code


def run_here(name, stand_ins, folder, monkeypatch):
    """The names that an example leaves behind, such as its trainer."""
    program = folder / name
    program.write_text(with_stand_ins(name, stand_ins))
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tuneline.trainers.older_names._said", set())
    return runpy.run_path(str(program))


def chat_model(folder, **sizes):
    """Stands for `Qwen/*`."""
    tiny_causal_lm("qwen2", max_position_embeddings=1024, **sizes).save_pretrained(folder)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def gpt2(folder):
    tiny_causal_lm("gpt2").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def encoder_of_two_labels(folder):
    """Stands for `bert-base-uncased`."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = BertConfig(vocab_size=VOCAB, max_position_embeddings=1024, pad_token_id=0, num_labels=2, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def data_set(folder, rows):
    """A folder that `load_dataset` reads as a split `train`."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def question(i):
    return [{"role": "user", "content": f"what is {i} and {i % 3}?"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def conversations(num_rows=8):
    return [{"messages": question(i) + answer(f"it is {i * i}."), "source": "tiny"} for i in range(num_rows)]


def chats_preferred(num_rows=8):
    return [
        {"prompt": question(i), "chosen": answer(f"it is {i * i}."), "rejected": answer(f"no idea {i}")}
        for i in range(num_rows)
    ]


def texts_preferred(num_rows=8):
    return [{"chosen": f"what is {i}? it is {i * i}.", "rejected": f"what is {i}? no idea"} for i in range(num_rows)]


def texts(num_rows=8):
    return [{"text": f"film {i} was {'very ' * (i % 3)}good.", "label": i % 2} for i in range(num_rows)]


def prompts(num_rows=2):
    return [{"prompt": f"sum up {i} and {i * 7}.", "completion": f" {i * 8}"} for i in range(num_rows)]


def problems(num_rows=2):
    return [{"prompt": question(i), "solution": f"${i}$"} for i in range(num_rows)]
