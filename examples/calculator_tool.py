"""A small model learns by GRPO to use a calculator.

    python examples/calculator_tool.py

It is asked for the likes of 7 * 8 + 5. A quarter of the dialogues that it sees first show how the calculator is called;
in the others the answer is guessed. So after this warm start it calls the calculator now and then, and seldom is right
else. GRPO rewards right answers, whatever way they came, and the model, of 0.2 million parameters, finds that calling
the tool gives them. All runs on two processor cores in one to two minutes; nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
from random import Random

from datasets import Dataset

from tuneline import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from tuneline.environments import Interaction
from tuneline.environments.tools import named_tools, tool_schemas
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.models.tiny import make_model
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine

SIZES = dict(hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
MODEL = dict(model_type="qwen2", tokenizer="bpe", vocab_size=420, initializer_range=0.05, tie_word_embeddings=True)
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool.function.name }}<|end|>{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def calculator(a: int, b: int, c: int) -> int:
    """Multiplies two numbers and adds a third.

    Args:
        a: the one factor
        b: the other
        c: what is added
    """
    return a * b + c


def is_correct(completions: list, solution: list[str], **columns) -> list[float]:
    """1 where the last thing said is the solution."""
    return [float(said[-1]["content"].strip() == right) for said, right in zip(completions, solution, strict=True)]


def problems(num_rows: int, *, for_test: bool = False) -> list[dict]:
    """A fifth of all problems is for the test, and never seen in training."""
    random, rows = Random(for_test), []
    while len(rows) < num_rows:
        a, b, c = (random.randrange(2, 10) for _ in range(3))
        if ((64 * a + 8 * b + c) % 5 == 0) == for_test:
            prompt = [{"role": "user", "content": f"{a} * {b} + {c}"}]
            rows.append({"prompt": prompt, "numbers": {"a": a, "b": b, "c": c}, "solution": str(a * b + c)})
    return rows


def demonstrations(num_rows: int) -> list[dict]:
    """Dialogues in which the calculator is called, and more in which the answer is a guess."""
    random, rows = Random(2), []
    tools = json.dumps(tool_schemas(named_tools([calculator])))
    for row in problems(num_rows):
        if random.random() < 0.25:
            call = json.dumps({"name": "calculator", "arguments": row["numbers"]})
            turns = [("assistant", f"<tool_call>{call}</tool_call>"), ("tool", row["solution"])]
            turns.append(("assistant", row["solution"]))
        else:
            turns = [("assistant", str(random.randrange(6, 91)))]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"messages": row["prompt"] + messages, "tools": tools})
    return rows


def accuracy(model, tokenizer, num_problems: int = 300) -> Interval:
    """The share of right answers to test problems, with its 95 % interval."""
    sampling = Sampling(max_new_tokens=64, stop_token_ids=(tokenizer.eos_token_id,))
    rows = problems(num_problems, for_test=True)
    interaction = Interaction(tokenizer, sampling.stop_token_ids, tools=[calculator])
    seeds = [rollout_seed("test", i) for i in range(num_problems)]
    rollouts, _, counts = interaction.run(TransformersEngine(model), rows, seeds, sampling)
    interaction.close()
    correct = is_correct([rollout.messages for rollout in rollouts], [row["solution"] for row in rows])
    share = wilson_interval(sum(correct), num_problems)
    print(f"accuracy {share.estimate:.3f} [{share.low:.3f}, {share.high:.3f}]; {counts.calls} calls")
    return share


def main(folder: str) -> tuple[Interval, Interval]:
    """Accuracy before and after GRPO."""
    shown = demonstrations(6000)
    texts = [message["content"] for row in shown[:400] for message in row["messages"]]
    model, tokenizer = make_model({**MODEL, **SIZES, "max_position_embeddings": 128}, seed=0, texts=texts)
    tokenizer.chat_template = CHAT_TEMPLATE
    common = dict(output_dir=folder, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True)
    common |= dict(gradient_checkpointing=False, adam_beta2=0.98, warmup_steps=10)

    sft = dict(num_train_epochs=3, per_device_train_batch_size=32, learning_rate=5e-3, lr_scheduler_type="cosine")
    warm_start = SFTConfig(**common, **sft, assistant_only_loss=True, logging_steps=100)
    SFTTrainer(model, warm_start, train_dataset=Dataset.from_list(shown), processing_class=tokenizer).train()
    before = accuracy(model, tokenizer)

    rollouts = dict(num_generations=8, per_device_train_batch_size=64, max_completion_length=64)
    grpo = GRPOConfig(**common, **rollouts, max_steps=60, learning_rate=5e-4, logging_steps=10)
    rows = Dataset.from_list(problems(2000))
    GRPOTrainer(model, is_correct, grpo, train_dataset=rows, processing_class=tokenizer, tools=[calculator]).train()
    return before, accuracy(model, tokenizer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as output_dir:
        main(output_dir)
