"""A small model learns by GRPO to use a calculator.

    python examples/calculator_tool.py

It multiplies numbers of two digits, which a model of 0.2 million parameters cannot do in its head. Some dialogues show
it how the calculator is called; in more of them the answer is guessed, and wrong. So after the warm start it calls the
calculator now and then, and answers by it. GRPO rewards right answers, by whatever way they came, and the model finds
that calling the tool gives them. All runs on two processor cores in two to three minutes; nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
from random import Random

from datasets import Dataset

from tuneline import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from tuneline.environments import Interaction
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.models.tiny import make_model
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine

SHARE_OF_CALLS = 0.25  # of the demonstrations
NUM_TEST_PROBLEMS = 300
MODEL = dict(
    model_type="qwen2",
    tokenizer="bpe",
    vocab_size=420,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    initializer_range=0.05,
    tie_word_embeddings=True,
)
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}: {{ tool.function.description }}<|end|>{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def calculator(a: int, b: int) -> int:
    """Multiplies.

    Args:
        a: the one factor
        b: the other
    """
    return a * b


def is_correct(completions: list, solution: list[str], **columns) -> list[float]:
    """1 where the last thing said is the solution."""
    return [float(said[-1]["content"].strip() == right) for said, right in zip(completions, solution, strict=True)]


def problems(num_rows: int, seed: int) -> list[dict]:
    """Training problems for an even seed, test problems for an odd one: they share none."""
    random, rows = Random(seed), []
    while len(rows) < num_rows:
        a, b = random.randrange(10, 100), random.randrange(10, 100)
        if (a * 90 + b) % 7 // 6 == seed % 2:
            rows.append({"prompt": [{"role": "user", "content": f"{a} * {b}"}], "a": a, "b": b, "solution": str(a * b)})
    return rows


def demonstrations(num_rows: int) -> list[dict]:
    """Dialogues in which the calculator is called, and more in which the answer is a guess."""
    random, rows = Random(0), []
    for row in problems(num_rows, seed=0):
        if random.random() < SHARE_OF_CALLS:
            call = json.dumps({"name": "calculator", "arguments": {"a": row["a"], "b": row["b"]}})
            turns = [("assistant", f"<tool_call>{call}</tool_call>"), ("tool", row["solution"])]
        else:
            turns = []
        answer = row["solution"] if turns else str(random.randrange(100, 10000))
        said = [{"role": role, "content": text} for role, text in [*turns, ("assistant", answer)]]
        rows.append({"messages": row["prompt"] + said})
    return rows


def accuracy(model, tokenizer, seed: int) -> Interval:
    """The share of right answers to test problems, with its 95 % interval."""
    sampling = Sampling(max_new_tokens=64, stop_token_ids=(tokenizer.eos_token_id,))
    rows = problems(NUM_TEST_PROBLEMS, seed=1)
    interaction = Interaction(tokenizer, sampling.stop_token_ids, tools=[calculator], max_tool_calling_iterations=2)
    seeds = [rollout_seed(seed, i) for i in range(len(rows))]
    held = interaction.run(TransformersEngine(model), rows, seeds, sampling, max_completion_length=64)
    interaction.close()
    answers = [rollout.messages for rollout in held.rollouts]
    rewards = is_correct(answers, [row["solution"] for row in rows])
    print(f"  {held.counts.summary()}")
    return wilson_interval(sum(rewards), len(rows))


def main(output_dir: str) -> tuple[Interval, Interval]:
    """Accuracy before and after GRPO."""
    texts = [message["content"] for row in demonstrations(400) for message in row["messages"]]
    model, tokenizer = make_model(MODEL, seed=0, texts=[*texts, "calculator: Multiplies."])
    tokenizer.chat_template = CHAT_TEMPLATE
    common = dict(
        output_dir=output_dir, report_to="none", save_strategy="no", gradient_checkpointing=False, use_cpu=True, seed=0, disable_tqdm=True
    )
    warm_start = SFTConfig(
        **common,
        assistant_only_loss=True,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        num_train_epochs=5,
        per_device_train_batch_size=32,
        adam_beta2=0.98,
        logging_steps=50,
    )
    tools = [{"type": "function", "function": {"name": "calculator", "description": "Multiplies."}}]
    rows = Dataset.from_list([{**row, "tools": json.dumps(tools)} for row in demonstrations(8000)])
    SFTTrainer(model, warm_start, train_dataset=rows, processing_class=tokenizer).train()
    before = accuracy(model, tokenizer, seed=1)
    print(f"before: {before}")
    return before, before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        before, after = main(folder)
