"""One step of PPO as TRL 0.11 documents it, written plainly: float64, padded rows, a loop over tokens, no clever part.

What is compared with it is the whole step: parameters after plain gradient descent with a learning rate of 1 differ by
the gradient.
"""

import copy

import torch
from torch import Tensor

# B rows, L tokens of a row, V vocabulary


def plain_step(model, ref_model, queries, responses, scores, masks=None, *, config, kl_coef, epochs=1, lr=1.0):
    """Returns the model after `epochs` passes over one batch, and the numbers of the first reading and of each pass."""
    model, ref_model = copy.deepcopy(model).double(), copy.deepcopy(ref_model).double()
    rows = [torch.cat([query, response]) for query, response in zip(queries, responses, strict=True)]
    width = max(len(row) for row in rows) + 2  # padding on the left, and more than is needed
    ids_BL = torch.stack([torch.cat([row.new_full((width - len(row),), 0), row]) for row in rows])
    attention_BL = torch.stack(
        [torch.cat([torch.zeros(width - len(row)), torch.ones(len(row))]).long() for row in rows]
    )
    counts_BL = torch.zeros(len(rows), width - 1, dtype=torch.float64)  # of the token that stands one to the right
    for b, (row, response) in enumerate(zip(rows, responses, strict=True)):
        written = torch.ones(len(response)) if masks is None else masks[b]
        counts_BL[b, width - 1 - len(response) :] = written.double()
        assert len(row) > len(response)

    def read(policy):
        positions = (attention_BL.cumsum(1) - 1).clamp(min=0)
        output = policy.pretrained_model(
            ids_BL, attention_mask=attention_BL, position_ids=positions, output_hidden_states=True
        )
        log_p = output.logits[:, :-1].log_softmax(-1)
        logprobs = log_p.gather(2, ids_BL[:, 1:, None])[..., 0]
        hidden = output.hidden_states[-1][:, :-1]
        values = (hidden @ policy.v_head.summary.weight[0]) + policy.v_head.summary.bias
        return logprobs, values, log_p

    with torch.no_grad():
        old_logprobs, old_values, log_p = read(model)
        ref_logprobs, _, ref_log_p = read(ref_model)
        difference = old_logprobs - ref_logprobs
        kl = {
            "kl": difference,
            "abs": difference.abs(),
            "mse": 0.5 * difference**2,
            "full": (log_p.exp() * (log_p - ref_log_p)).sum(-1),
        }[config.kl_penalty]
        rewards = -kl_coef * kl * counts_BL
        for b in range(len(rows)):
            rewards[b, counts_BL[b].nonzero()[-1]] += scores[b].double()
        if config.whiten_rewards:
            rewards = whitened(rewards, counts_BL, shift_mean=False) * counts_BL
        advantages = advantages_by_loop(rewards, old_values, counts_BL, config.gamma, config.lam)
        returns = (advantages + old_values) * counts_BL
        advantages = whitened(advantages, counts_BL) * counts_BL

    passes = []
    for _ in range(epochs):
        logprobs, values, log_p = read(model)
        ratio = (logprobs - old_logprobs).exp()
        low, high = 1 - config.cliprange, 1 + config.cliprange
        policy_losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
        near = torch.maximum(
            torch.minimum(values, old_values + config.cliprange_value), old_values - config.cliprange_value
        )
        value_losses = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        policy_loss, value_loss = mean(policy_losses, counts_BL), mean(value_losses, counts_BL)
        (policy_loss + config.vf_coef * value_loss).backward()
        passes.append(
            {
                "ppo/loss/policy": policy_loss.item(),
                "ppo/loss/value": value_loss.item(),
                "ppo/loss/total": (policy_loss + config.vf_coef * value_loss).item(),
                "ppo/policy/entropy": mean(-(log_p.exp() * log_p).sum(-1), counts_BL).item(),
                "ppo/policy/approxkl": mean(0.5 * (logprobs - old_logprobs) ** 2, counts_BL).item(),
                "ppo/policy/policykl": mean(old_logprobs - logprobs, counts_BL).item(),
                "ppo/policy/clipfrac": mean(
                    (-advantages * ratio.clamp(low, high) > -advantages * ratio).double(), counts_BL
                ).item(),
                "ppo/val/vpred": mean(values, counts_BL).item(),
                "ppo/val/error": mean((values - returns) ** 2, counts_BL).item(),
                "ppo/val/clipfrac": mean(((near - returns) ** 2 > (values - returns) ** 2).double(), counts_BL).item(),
            }
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
                    parameter.grad = None
    first = {
        "objective/kl": (kl * counts_BL).sum(1).mean().item(),
        "objective/entropy": (-old_logprobs * counts_BL).sum(1).mean().item(),
        "ppo/mean_non_score_reward": mean(-kl_coef * kl, counts_BL).item(),
        "ppo/mean_scores": scores.double().mean().item(),
        "ppo/std_scores": scores.double().std().item(),
        "ppo/returns/mean": mean(returns, counts_BL).item(),
        "ppo/returns/var": variance(returns, counts_BL).item(),
        "ppo/val/mean": mean(old_values, counts_BL).item(),
        "ppo/val/var": variance(old_values, counts_BL).item(),
    }
    averages = {name: sum(one[name] for one in passes) / len(passes) for name in passes[0]}
    return model, first | averages


def advantages_by_loop(rewards: Tensor, values: Tensor, counts: Tensor, gamma: float, lam: float) -> Tensor:
    """(B, L): tokens that do not count are passed over."""
    advantages = torch.zeros_like(values)
    for b in range(len(values)):
        running, next_value = 0.0, 0.0
        for t in reversed(counts[b].nonzero()[:, 0].tolist()):
            delta = rewards[b, t] + gamma * next_value - values[b, t]
            running = delta + gamma * lam * running
            advantages[b, t], next_value = running, values[b, t]
    return advantages


def mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum()


def variance(values: Tensor, counts: Tensor) -> Tensor:
    return mean((values - mean(values, counts)) ** 2, counts) * counts.sum() / (counts.sum() - 1)


def whitened(values: Tensor, counts: Tensor, shift_mean: bool = True) -> Tensor:
    centre = mean(values, counts)
    scaled = (values - centre) * torch.rsqrt(variance(values, counts) + 1e-8)
    return scaled if shift_mean else scaled + centre
