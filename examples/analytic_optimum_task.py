"""A task small enough to enumerate, and the policy that is best on it.

A prompt is two letters, a completion at most three tokens, and every completion of every prompt has a reward of its
own, drawn once from a normal distribution: no structure helps. Where completions end by themselves, an end token is
among the tokens, so that they have one to three; otherwise all have the same number.

With every completion listed, all is exact: the policy that maximises reward less `beta` times the KL divergence from
the reference is the reference times exp(reward / beta), normalised (Ziebart et al. 2008; Rafailov et al. 2023,
arXiv:2305.18290, eq. 4), and how far a trained model is from it is a sum.
"""

# P prompts, C completions

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from tuneline.logprobs import sum_by_sequence, token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.trees import Branch, Tree, lay_out

END, PAD = "<end>", "<pad>"
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Prompts, the completions they can have, and a reward for each.

    Attributes:
        ends: whether the end token is one that the model can write; without it all completions have `max_tokens`.
        num_letters: that the model can write.
        beta: what a nat of divergence from the reference costs, in the unit of the reward.
        seed: of the rewards and of the reference.
    """

    ends: bool = True
    num_letters: int = 2
    max_tokens: int = 3
    beta: float = 1.5
    seed: int = 0
    prompts: tuple[str, ...] = ("aa", "ab", "ba", "bb")

    @property
    def letters(self) -> str:
        return ascii_lowercase[: self.num_letters]

    @property
    def vocab_size(self) -> int:
        """The letters, and the end token where there is one."""
        return self.num_letters + self.ends

    @property
    def end_id(self) -> int:
        """The last token; outside the model's vocabulary where completions do not end."""
        return self.num_letters

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*self.letters, END, PAD])}))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)

    @cached_property
    def prompt_ids(self) -> list[Ids]:
        return [tuple(self.tokenizer(prompt)["input_ids"]) for prompt in self.prompts]

    @cached_property
    def completions(self) -> list[Ids]:
        """All of them, in the order of their tokens."""
        return _continuations((), self)

    @cached_property
    def number_of(self) -> dict[Ids, int]:
        """The place of each completion among `completions`."""
        return {completion: i for i, completion in enumerate(self.completions)}

    @cached_property
    def rewards(self) -> Tensor:
        """(prompts, completions) float64."""
        generator = torch.Generator().manual_seed(self.seed)
        return 2 * torch.randn(len(self.prompts), len(self.completions), generator=generator, dtype=torch.float64)

    def reward(self, prompts: list[str], completion_ids: list[list[int]], **columns: object) -> list[float]:
        """The reward function that the trainers are given."""
        numbers = [
            (self.prompts.index(p), self.number_of[tuple(c)]) for p, c in zip(prompts, completion_ids, strict=True)
        ]
        return [self.rewards[place].item() for place in numbers]

    def text(self, completion: Ids) -> str:
        """Letters, and a stop where the end token is."""
        return "".join("." if token == self.end_id else self.letters[token] for token in completion)

    def make_reference(self) -> PreTrainedModel:
        """A model of 26,000 parameters with random weights, large enough that its distribution is far from even."""
        config = GPT2Config(
            vocab_size=self.vocab_size,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=8,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=self.end_id if self.ends else None,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return GPT2LMHeadModel(config)


def _continuations(start: Ids, task: Task) -> list[Ids]:
    if len(start) == task.max_tokens or task.end_id in start:
        return [start]
    return [longer for token in range(task.vocab_size) for longer in _continuations((*start, token), task)]


# One to three tokens; three; one.
ENDING, ONE_LENGTH, ONE_TOKEN = Task(), Task(ends=False, num_letters=3), Task(ends=False, num_letters=16, max_tokens=1)


@torch.no_grad()
def all_logps(model: PreTrainedModel, task: Task) -> Tensor:
    """(prompts, completions) float64: log-probability of every completion; the probabilities of a prompt sum to 1."""
    prepare_for_trees(model)
    was_training = model.training
    model.eval()
    branches = [Branch(completion) for completion in task.completions]
    trees = lay_out([Tree(prompt, branches) for prompt in task.prompt_ids])
    logps = sum_by_sequence(token_logprobs(model, trees).logprobs.double(), trees)
    model.train(was_training)
    return logps.view(len(task.prompts), len(task.completions))


def optimum(ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """(prompts, completions): log-probabilities of the policy that is best.

    Args:
        ref_logps, rewards: (prompts, completions)
    """
    return (ref_logps + rewards / beta).log_softmax(-1)


def objective(logps: Tensor, ref_logps: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """(prompts,): expected reward less `beta` times the KL divergence from the reference; at the optimum beta log Z.

    Args:
        logps, ref_logps, rewards: (prompts, completions)
    """
    return (logps.exp() * (rewards - beta * (logps - ref_logps))).sum(-1)


def total_variation(logps: Tensor, other_logps: Tensor) -> Tensor:
    """(prompts,): half the sum of the differences in probability, the most by which any event's can differ.

    Args:
        logps, other_logps: (prompts, completions)
    """
    return (logps.exp() - other_logps.exp()).abs().sum(-1) / 2
