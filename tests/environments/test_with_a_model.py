"""Conversations with a real policy and engine: the tokens and log-probabilities are the model's own."""

import torch
from torch.testing import assert_close

from tuneline.environments import Interaction, Responder
from tuneline.models.tiny import make_model
from tuneline.rollout.protocol import Sampling
from tuneline.rollout.transformers_engine import TransformersEngine

MODEL = dict(
    model_type="qwen2",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.25,
)


class Parrot(Responder):
    """Says how much it was told."""

    def reset(self, start, **row):
        self.heard = start

    def respond(self, text):
        self.heard += len(text)
        return f"{self.heard} characters"


def hold(starts, seeds):
    model, tokenizer = make_model(MODEL, seed=0)
    model.eval()
    # A model with random weights seldom draws one certain token: any of these ends its turn.
    sampling = Sampling(max_new_tokens=40, temperature=0.9, stop_token_ids=tuple(range(2, 40)))
    whole = Interaction(tokenizer, sampling.stop_token_ids, environment_factory=Parrot, max_tool_calling_iterations=3)
    rows = [{"prompt": [{"role": "user", "content": "Hello."}], "start": start} for start in starts]
    held = whole.run(TransformersEngine(model), rows, seeds, sampling, max_completion_length=150)
    whole.close()
    return model, held.rollouts


def test_log_probabilities_are_those_of_the_whole_conversation():
    model, rollouts = hold([0, 100, 0], [1, 2, 3])
    assert sum(rollout.is_target is not None for rollout in rollouts) >= 2  # these had turns
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            logprobs = (model(input_ids=ids).logits[0, :-1] / 0.9).log_softmax(-1)
        start = len(rollout.prompt_ids) - 1
        own = logprobs[start:].gather(-1, ids[0, start + 1 :, None])[:, 0]
        targets = torch.tensor(rollout.is_target or [1] * len(own)).bool()
        assert_close(torch.tensor(rollout.logprobs)[targets], own[targets], atol=1e-4, rtol=1e-4)
        assert not torch.tensor(rollout.logprobs)[~targets].any()


def test_a_conversation_is_the_same_alone_and_in_a_batch():
    _, together = hold([0, 100, 0], [1, 2, 3])
    _, (alone,) = hold([100], [2])
    assert alone.completion_ids == together[1].completion_ids
    assert alone.messages == together[1].messages
