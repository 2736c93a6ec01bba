"""What both sides train on: one model, one tokenizer, one list of rows, made on the spot from a data file.

The rows are whole at `max_length`, so that neither side cuts or drops any, and are read in order. The first batch warms
up and is not measured.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneline.errors import DataError

VOCAB_SIZE = 32768
EOS, PAD = "<|endoftext|>", "<|pad|>"
KINDS = ("dpo", "sft", "reward")


@dataclass(frozen=True)
class Workload:
    """What is asked for."""

    kind: str
    data: str
    steps: int  # measured optimizer steps, after one that warms up
    batch_size: int  # rows a step
    max_length: int
    learning_rate: float
    gradient_checkpointing: bool
    seed: int


@dataclass(frozen=True)
class Work:
    """What the measured steps amount to, counted from the tokens, the same for both sides."""

    rows: int
    real_tokens: int  # of all sequences, prompts counted in each, padding not counted
    tree_tokens: int  # of the same sequences with each shared prompt counted once
    padded_tokens: int  # positions of the same sequences padded to the longest of their batch
    targets: int  # tokens whose log-probability the loss reads; for a reward model, scores
    flops: float  # the fewest: tree tokens, head at targets only, no recomputation


def prepare(workload: Workload, folder: Path) -> Work:
    """Write tokenizer, model and rows to `folder`, and count the work of the measured rows."""
    from transformers import AutoTokenizer

    rows = read_pairs(Path(workload.data))
    trained = make_tokenizer([row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")])
    model = make_model(workload.kind, workload.seed, trained)
    trained.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")  # what both sides load
    num_rows = workload.batch_size * (workload.steps + 1)
    kept: list[dict[str, str]] = []
    lengths: list[tuple[int, ...]] = []
    for row in rows:
        if len(kept) == num_rows:
            break
        prompt, *sequences = (len(tokenizer(text)["input_ids"]) for text in _texts(row, workload.kind))
        if max(sequences) <= workload.max_length and prompt < min(sequences):
            kept.append(_row(row, workload.kind))
            lengths.append((prompt, *sequences))
    if len(kept) < num_rows:
        raise DataError(
            f"{workload.data} has {len(kept)} rows of at most {workload.max_length} tokens; {num_rows} are needed "
            f"({workload.steps} steps and one that warms up, of {workload.batch_size} rows): lower --rows or --steps."
        )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    work = count_work(workload.kind, lengths[workload.batch_size :], workload.batch_size, model.config)
    (folder / "work.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
    return work


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected from JSONL (.gz or not) that holds them, or whole dialogues of hh-rlhf."""
    if not path.is_file():
        raise DataError(
            f"the data file {path} is absent; name another with --data: JSONL (.gz or not) with chosen and rejected, "
            "either beside a prompt or as whole dialogues of hh-rlhf."
        )
    pairs = []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt", "")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}, row {number}: not an object with chosen and rejected ({error!r}).") from None
            if not prompt:
                cut = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
                prompt, other = chosen[:cut], rejected[:cut]
                if prompt != other:
                    continue  # sides that share no prompt
                chosen, rejected = chosen[cut:], rejected[cut:]
            if chosen and rejected:
                pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def make_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def make_model(kind: str, seed: int, tokenizer: Any) -> Any:
    """A Qwen2 of 27 million parameters in float32 with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        num_labels=1,
    )
    torch.manual_seed(seed)
    return (Qwen2ForSequenceClassification if kind == "reward" else Qwen2ForCausalLM)(config)


def count_work(kind: str, lengths: list[tuple[int, ...]], batch_size: int, config: Any) -> Work:
    """`lengths` has a row's prompt and sequences, in tokens; a sequence includes its prompt."""
    real = padded = tree = targets = visible = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        sequences = [length for _, *ends in batch for length in ends]
        real += sum(sequences)
        padded += len(sequences) * max(sequences)
        for prompt, *ends in batch:
            tree += prompt + sum(end - prompt for end in ends)
            targets += len(ends) if kind == "reward" else sum(end - prompt for end in ends)
            # a token at position p attends to p + 1 tokens
            visible += _triangle(prompt) + sum(_triangle(end) - _triangle(prompt) for end in ends)
    hidden, head_size = config.hidden_size, config.hidden_size // config.num_attention_heads
    kv_width = head_size * config.num_key_value_heads
    layer = 2 * (2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * config.intermediate_size)
    attention = 4 * hidden * visible * config.num_hidden_layers
    head = 0 if kind == "reward" else 2 * hidden * config.vocab_size * targets
    forward = layer * config.num_hidden_layers * tree + attention + head
    passes = 4 if kind == "dpo" else 3  # a backward pass is two forward passes; DPO's reference is one more
    return Work(len(lengths), real, tree, padded, targets, float(forward * passes))


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _texts(row: dict[str, str], kind: str) -> list[str]:
    """The prompt and the sequences of a row as both libraries tokenise them: an EOS ends a completion."""
    completions = [row["chosen"]] if kind == "sft" else [row["chosen"], row["rejected"]]
    return [row["prompt"], *(row["prompt"] + completion + EOS for completion in completions)]


def _row(row: dict[str, str], kind: str) -> dict[str, str]:
    return {"prompt": row["prompt"], "completion": row["chosen"]} if kind == "sft" else row
