"""Small data sets and a tokenizer for trainer tests."""

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import VOCAB

_ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789.?"


def character_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *_ALPHABET])}
    assert len(vocabulary) <= VOCAB
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=4096
    )


def preferences(num_rows: int = 16, margin: bool = False) -> Dataset:
    rows = [
        {
            "prompt": f"what is {i} and {'very ' * (i % 4)}long?",
            "chosen": f" it is {i * i}." + " yes" * (i % 3),
            "rejected": f" no idea {i}" + " at all" * (i % 5),
        }
        for i in range(num_rows)
    ]
    if margin:
        rows = [row | {"margin": 0.1 * i} for i, row in enumerate(rows)]
    return Dataset.from_list(rows)


def demonstrations(num_rows: int = 16) -> Dataset:
    return preferences(num_rows).rename_column("chosen", "completion").remove_columns("rejected")


def judged(num_rows: int = 16) -> Dataset:
    """Single completions with labels, a third of them desirable."""
    pairs = preferences(num_rows)
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": row["rejected" if i % 3 else "chosen"], "label": i % 3 == 0}
            for i, row in enumerate(pairs)
        ]
    )


def triples(num_rows: int = 16) -> Dataset:
    """Pairs with a gold response."""
    rows = preferences(num_rows)
    return rows.add_column("reference", [f" exactly {i * i}" + " or so" * (i % 3) for i in range(num_rows)])


def solutions(num_rows: int = 16) -> Dataset:
    """Solutions in steps, each right or wrong."""
    return Dataset.from_list(
        [
            {
                "prompt": f"what is {i} times {i}?",
                "completions": [f" it is {j + i}" + " so" * (j % 2) for j in range(1 + i % 3)],
                "labels": [(i + j) % 3 > 0 for j in range(1 + i % 3)],
            }
            for i in range(num_rows)
        ]
    )
