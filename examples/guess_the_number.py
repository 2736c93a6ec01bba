"""A small model learns by GRPO to guess a number.

    python examples/guess_the_number.py

The game has a number from 1 to 7 in mind, and answers each of three guesses with "higher" or "lower"; three always do
if each halves what is left. It has `reset` and `step`, as environments of OpenEnv have; `StepEnvironment` turns it into
conversations. The model, of 0.1 million parameters, first sees games in which most guesses are at random: it learns
the form, and wins some. GRPO rewards what the game rewards, and the model learns to heed the answers. All runs on two
processor cores in one to two minutes; nothing is downloaded.
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
SIZES = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
MODEL = dict(model_type="qwen2", max_position_embeddings=128, initializer_range=0.05, tie_word_embeddings=True)


@dataclass(frozen=True)
class Seen:
    """What a step gives."""

    observation: str | None
    reward: float | None = None
    done: bool = False


class Game:
    """Has a number in mind. Guessing it is worth 1; a guess that the answers before rule out costs a half."""

    def reset(self, number: int) -> Seen:
        self.number, self.low, self.high, self.num_guesses, self.is_won = number, 1, LARGEST, 0, False
        return Seen(None)

    def step(self, guess: str) -> Seen:
        value = int(guess) if guess.isdecimal() else 0
        reward = 0.0 if self.low <= value <= self.high else -0.5
        self.num_guesses += 1
        self.is_won = value == self.number
        if self.is_won:
            return Seen(None, reward=1.0, done=True)
        self.low = max(self.low, value + 1) if value < self.number else self.low
        self.high = min(self.high, value - 1) if value > self.number else self.high
        return Seen("higher" if value < self.number else "lower", reward, done=self.num_guesses == MAX_GUESSES)


def make_environment() -> StepEnvironment:
    return StepEnvironment(Game(), reset_columns=["number"])


def demonstrations(num_rows: int) -> list[dict]:
    """Games in which a third of the guesses heed the answers before, and the others are any number."""
    random, rows = Random(0), []
    for _ in range(num_rows):
        game, messages = Game(), list(PROMPT)
        seen = game.reset(random.randint(1, LARGEST))
        while not seen.done:
            low, high = (game.low, game.high) if random.random() < 1 / 3 else (1, LARGEST)
            guess = str(random.randint(low, high))
            seen = game.step(guess)
            messages.append({"role": "assistant", "content": guess})
            if not seen.done:
                messages.append({"role": "user", "content": seen.observation})
        rows.append({"messages": messages})
    return rows


def share_won(model, tokenizer, num_games: int = 700) -> Interval:
    """The share of games that the model wins, with its 95 % interval."""
    sampling = Sampling(max_new_tokens=40, stop_token_ids=(tokenizer.eos_token_id,))
    interaction = Interaction(tokenizer, sampling.stop_token_ids, environment_factory=make_environment)
    rows = [{"prompt": PROMPT, "number": 1 + i % LARGEST} for i in range(num_games)]
    seeds = [rollout_seed("test", i) for i in range(num_games)]
    games = interaction.run(TransformersEngine(model), rows, seeds, sampling).environments
    interaction.close()
    share = wilson_interval(sum(game.stepping.is_won for game in games), num_games)
    print(f"games won {share.estimate:.3f} [{share.low:.3f}, {share.high:.3f}]")
    return share


def main(folder: str) -> tuple[Interval, Interval]:
    """The share of games won before and after GRPO."""
    model, tokenizer = make_model({**MODEL, **SIZES}, seed=0)
    common = dict(output_dir=folder, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True)
    common |= dict(gradient_checkpointing=False, adam_beta2=0.98, warmup_steps=10)

    sft = dict(num_train_epochs=1, per_device_train_batch_size=32, learning_rate=3e-3, lr_scheduler_type="cosine")
    warm_start = SFTConfig(**common, **sft, assistant_only_loss=True, logging_steps=50)
    rows = Dataset.from_list(demonstrations(4000))
    SFTTrainer(model, warm_start, train_dataset=rows, processing_class=tokenizer).train()
    before = share_won(model, tokenizer)

    rollouts = dict(num_generations=16, max_completion_length=40, per_device_train_batch_size=128, max_steps=100)
    grpo = GRPOConfig(**common, **rollouts, learning_rate=2e-3, lr_scheduler_type="constant", logging_steps=20)
    rows = Dataset.from_list([{"prompt": PROMPT, "number": 1 + i % LARGEST} for i in range(LARGEST * 100)])
    GRPOTrainer(
        model, args=grpo, train_dataset=rows, processing_class=tokenizer, environment_factory=make_environment
    ).train()
    return before, share_won(model, tokenizer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as output_dir:
        main(output_dir)
