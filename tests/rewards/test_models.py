"""Reward models as reward functions: the scores of training, by whichever layout the model reads."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification

from tests.models import tiny_reward_model
from tuneline.errors import ModelError
from tuneline.models.loading import load_tokenizer
from tuneline.models.tiny import make_model
from tuneline.rewards import RewardFunctions, RewardModel

PROMPTS = ["one two", "one two", "three", "one two"]
COMPLETIONS = [" three", " four five six", " one", " three"]


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["one two three four five six"] * 4
    return make_model({"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1}, seed=0, texts=texts)[1]


def test_scores_are_those_of_each_whole_sequence_alone(tokenizer):
    model = tiny_reward_model(vocab_size=len(tokenizer)).eval()
    wanted = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(prompt + completion + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            wanted.append(model(ids).logits[0, 0])
    reward = RewardModel(model, tokenizer)
    assert reward.reads_trees
    given = torch.tensor(reward(prompts=PROMPTS, completions=COMPLETIONS))
    assert_close(given, torch.stack(wanted), atol=1e-5, rtol=1e-5)
    assert given[0] == given[3]
