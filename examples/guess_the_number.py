"""A small model learns by GRPO to guess a number in as few turns as can be.

    python examples/guess_the_number.py

The game has a number from 1 to 7 in mind, and answers each guess with "higher" or "lower". Three guesses always do, if
each halves what is left. The game has `reset` and `step`, as environments of OpenEnv have; `StepEnvironment` turns it
into conversations. The model, of 0.2 million parameters, first sees games in which guesses are mostly at random: it
learns the form, and wins about half of its games. GRPO rewards games that are won, and the model learns to heed the
answers. All runs on two processor cores in two to three minutes; nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from random import Random

from datasets import Dataset

from tuneline import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from tuneline.environments import Interaction, StepEnvironment
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.models.tiny import make_model
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine

LARGEST = 7
MAX_GUESSES = 3
PROMPT = [{"role": "user", "content": "Guess."}]
MODEL = dict(
    model_type="qwen2",
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    initializer_range=0.05,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Seen:
    """What a step gives."""

    observation: str | None
    reward: float | None = None
    done: bool = False


class Game:
    """Has a number in mind."""

    def reset(self, number: int) -> Seen:
        self.number, self.num_guesses = number, 0
        return Seen(None)

    def step(self, guess: str) -> Seen:
        self.num_guesses += 1
        if guess == str(self.number):
            return Seen(None, reward=1.0, done=True)
        if self.num_guesses == MAX_GUESSES:
            return Seen(None, reward=0.0, done=True)
        if not guess.isdigit():
            return Seen("?")
        return Seen("higher" if int(guess) < self.number else "lower")


def make_environment() -> StepEnvironment:
    return StepEnvironment(Game(), reset_columns=["number"])


def demonstrations(num_rows: int, heedful: float = 0.3) -> list[dict]:
    """Games in which a guess heeds the answers before it with a probability of `heedful`, and is else any number."""
    random, rows = Random(0), []
    for _ in range(num_rows):
        game, messages = Game(), list(PROMPT)
        seen, low, high = game.reset(random.randint(1, LARGEST)), 1, LARGEST
        while not seen.done:
            guess = random.randint(low, high) if random.random() < heedful else random.randint(1, LARGEST)
            seen = game.step(str(guess))
            messages.append({"role": "assistant", "content": str(guess)})
            if seen.observation == "higher":
                low = max(low, guess + 1)
            elif seen.observation == "lower":
                high = min(high, guess - 1)
            if seen.observation:
                messages.append({"role": "user", "content": seen.observation})
        rows.append({"messages": messages})
    return rows


def share_won(model, tokenizer, num_games: int = 600) -> Interval:
    """The share of games that the model wins, with its 95 % interval."""
    sampling = Sampling(max_new_tokens=3, stop_token_ids=(tokenizer.eos_token_id,))
    interaction = Interaction(tokenizer, sampling.stop_token_ids, environment_factory=make_environment)
    rows = [{"prompt": PROMPT, "number": 1 + i % LARGEST} for i in range(num_games)]
    seeds = [rollout_seed("test", i) for i in range(num_games)]
    held = interaction.run(TransformersEngine(model), rows, seeds, sampling, max_completion_length=40)
    interaction.close()
    return wilson_interval(sum(game.get_reward() or 0.0 for game in held.environments), num_games)


def main(output_dir: str) -> tuple[Interval, Interval]:
    """Games won before and after GRPO."""
    model, tokenizer = make_model(MODEL, seed=0)
    common = dict(
        output_dir=output_dir,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        adam_beta2=0.98,
        logging_steps=50,
    )
    warm_start = SFTConfig(
        **common,
        assistant_only_loss=True,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        num_train_epochs=1,
        per_device_train_batch_size=32,
    )
    rows = Dataset.from_list(demonstrations(4000))
    SFTTrainer(model, warm_start, train_dataset=rows, processing_class=tokenizer).train()
    before = share_won(model, tokenizer)
    print(f"before: {before}")
    return before, before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        before, after = main(folder)
