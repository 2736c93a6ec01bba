"""Reward models as reward functions: the scores of training, by whichever layout the model reads."""

import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification

from tests.models import tiny_reward_model
from tuneline.errors import ModelError
from tuneline.models.tiny import make_tokenizer
from tuneline.rewards import RewardFunctions, RewardModel

PROMPTS = ["one two", "one two", "three", "one two"]
COMPLETIONS = [" three", " four five six", " one", " three"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("characters", None, None)


def alone(model, tokenizer, texts):
    """The score of each text, a row of its own."""
    rows = [tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids for text in texts]
    with torch.no_grad():
        return [model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0].item() for row in rows]


def bert(tokenizer, num_labels=1):
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), num_labels=num_labels, pad_token_id=tokenizer.pad_token_id, **sizes)
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "bert", "bert of three labels"])
def test_scores_are_those_of_each_whole_sequence_alone(tokenizer, kind):
    if kind.startswith("bert"):
        model = bert(tokenizer, num_labels=3 if "three" in kind else 1)
    else:
        model = tiny_reward_model(kind, vocab_size=len(tokenizer)).eval()
        model.resize_token_embeddings(len(tokenizer))
    texts = [p + c + tokenizer.eos_token for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    wanted = alone(model, tokenizer, texts)
    reward = RewardModel(model, tokenizer)
    assert reward.reads_trees == (not kind.startswith("bert"))
    assert_close(reward(prompts=PROMPTS, completions=COMPLETIONS), wanted, atol=1e-5, rtol=1e-5)


def test_dialogues_end_as_their_template_has_them_end(tokenizer):
    model = tiny_reward_model(vocab_size=len(tokenizer)).eval()
    prompt = [{"role": "user", "content": "one"}]
    completion = [{"role": "assistant", "content": "two"}]
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    wanted = alone(model, tokenizer, [text])
    assert_close(RewardModel(model, tokenizer)(prompts=[prompt], completions=[completion]), wanted)


def test_batches_do_not_change_scores(tokenizer, monkeypatch):
    reward = RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)
    whole = reward(prompts=PROMPTS, completions=COMPLETIONS)
    monkeypatch.setattr("tuneline.rewards.models._TOKENS_AT_ONCE", 12)
    assert_close(reward(prompts=PROMPTS, completions=COMPLETIONS), whole, atol=1e-5, rtol=1e-5)


def test_a_model_is_taken_as_an_object_or_by_its_folder_and_named_after_it(tokenizer, tmp_path):
    folder = tmp_path / "judge"
    model = tiny_reward_model(vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rewards = RewardFunctions([model, str(folder)], tokenizers=[tokenizer, None])
    assert rewards.names == ["Qwen2ForSequenceClassification", "judge"]
    scores = rewards.start(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 4, columns={}).result()
    assert_close(scores.values[:, 0], scores.values[:, 1])
    assert scores.failures == {"Qwen2ForSequenceClassification": 0, "judge": 0}
    copy = pickle.loads(pickle.dumps(RewardModel.load(str(folder))))
    assert_close(torch.tensor(copy(prompts=PROMPTS, completions=COMPLETIONS)), scores.values[:, 1])


def test_a_sequence_that_the_model_cannot_read_costs_itself_alone(tokenizer):
    model = bert(tokenizer)  # of 512 positions
    scores = (
        RewardFunctions(model, tokenizers=tokenizer)
        .start(prompts=["a", "a"], completions=["b", "b" * 600], completion_ids=[[1], [1]], columns={})
        .result()
    )
    assert scores.values.isnan()[:, 0].tolist() == [False, True]


def test_a_model_without_tokenizer_or_configuration_is_refused():
    with pytest.raises(ModelError, match="needs its tokenizer"):
        RewardModel(tiny_reward_model())
    with pytest.raises(ModelError, match="no sequence classifier"):
        RewardModel(torch.nn.Linear(2, 1))
