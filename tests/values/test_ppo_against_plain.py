"""Two epochs of PPO, and the same by a plain program: a sequence at a time, loops over tokens, no shared code."""

import copy

import pytest
import torch
from torch.testing import assert_close

from tests.models import tiny_causal_lm
from tests.trainers.online import by_position, questions
from tests.trainers.ppo import build_ppo
from tests.trainers.rows import character_tokenizer
from tests.values.build import build

GAMMA, LAM, KL, CLIP, CLIP_VALUE, COEF, RATE, TEMPERATURE, PENALTY = 0.97, 0.9, 0.2, 0.05, 0.02, 0.3, 0.05, 0.8, 0.7
EOS = 1


def say(both, sequences):
    """For each sequence the log-probabilities of its completion, and the values of the states before its tokens."""
    said = []
    for prompt, completion in sequences:
        output = both.policy(input_ids=torch.tensor([prompt + completion]), output_hidden_states=True, use_cache=False)
        states = slice(len(prompt) - 1, -1)
        logprobs = (output.logits[0, states] / TEMPERATURE).log_softmax(-1)
        own = logprobs[torch.arange(len(completion)), torch.tensor(completion)]
        hidden = output.hidden_states[-1][0, states]
        said.append((own, hidden @ both.value_head.weight[0] + both.value_head.bias))
    return said


def credit(old, reference, scores):
    """Advantages, whitened over all tokens, and returns of each sequence."""
    advantages, returns = [], []
    for (logprobs, values), ref, score in zip(old, reference, scores, strict=True):
        rewards = [-KL * float(k) for k in logprobs - ref]
        rewards[-1] += score
        gathered, ahead, next_value = [], 0.0, 0.0
        for reward, value in zip(reversed(rewards), reversed(values.tolist()), strict=True):
            ahead = reward + GAMMA * next_value - value + GAMMA * LAM * ahead
            gathered.insert(0, ahead)
            next_value = value
        advantages.append(torch.tensor(gathered))
        returns.append(advantages[-1] + values)
    every = torch.cat(advantages)
    return [(a - every.mean()) / (every.var() + 1e-8).sqrt() for a in advantages], returns


def loss_of(said, old, advantages, returns):
    total, count = 0.0, 0
    for (logprobs, values), (old_logprobs, old_values), advantage, goal in zip(
        said, old, advantages, returns, strict=True
    ):
        ratio = (logprobs - old_logprobs).exp()
        policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
        near = torch.clamp(values, old_values - CLIP_VALUE, old_values + CLIP_VALUE)
        value = 0.5 * torch.maximum((values - goal) ** 2, (near - goal) ** 2)
        total, count = total + (policy + COEF * value).sum(), count + len(logprobs)
    return total / count


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_two_epochs_are_those_of_a_plain_program(num_micro_batches, tmp_path):
    seen = []

    def letters(prompts, completion_ids, **columns):
        seen.extend(zip(prompts, completion_ids, strict=True))
        return [0.25 * sum(token < 7 for token in ids) - 0.1 * len(ids) for ids in completion_ids]

    policy, reference = tiny_causal_lm(), tiny_causal_lm()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.98)
    trainer = build_ppo(
        tmp_path,
        model=policy,
        ref_model=copy.deepcopy(reference),
        reward_funcs=letters,
        train_dataset=questions(2),
        rollout_engine=by_position(),
        value_function="head",
        per_device_train_batch_size=8 // num_micro_batches,
        gradient_accumulation_steps=num_micro_batches,
        num_generations=4,
        max_steps=2,
        num_ppo_epochs=2,
        gamma=GAMMA,
        lam=LAM,
        kl_coef=KL,
        cliprange=CLIP,
        cliprange_value=CLIP_VALUE,
        vf_coef=COEF,
        temperature=TEMPERATURE,
        missing_eos_penalty=PENALTY,
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
    )
    with torch.no_grad():
        torch.manual_seed(3)
        trainer.model.value_head.weight.normal_(0, 0.3)
    plain = build("head")
    plain.load_state_dict(copy.deepcopy(trainer.model.state_dict()))
    trainer.train()

    tokenizer = character_tokenizer()
    sequences = [(tokenizer(prompt)["input_ids"], list(ids)) for prompt, ids in seen]
    assert len(sequences) == 8
    cut = [ids[-1] != EOS for _, ids in sequences]
    assert 0 < sum(cut) < 8
    scores = [
        0.25 * sum(token < 7 for token in ids) - 0.1 * len(ids) - PENALTY * is_cut
        for (_, ids), is_cut in zip(sequences, cut, strict=True)
    ]
    reference.eval(), plain.eval()
    with torch.no_grad():
        old = say(plain, sequences)
        twin = copy.deepcopy(plain)
        twin.policy = reference
        ref = [logprobs for logprobs, _ in say(twin, sequences)]
    advantages, returns = credit(old, ref, scores)
    clipped = []
    for _ in range(2):
        plain.zero_grad()
        said = say(plain, sequences)
        moves = [(now - before).abs() for (_, now), (_, before) in zip(said, old, strict=True)]
        clipped.append(int((torch.cat(moves) > CLIP_VALUE).sum()))
        loss_of(said, old, advantages, returns).backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= RATE * parameter.grad
    assert clipped[0] == 0 < clipped[1]  # the second epoch tries the clips
    expected = dict(plain.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert_close(parameter, expected[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
