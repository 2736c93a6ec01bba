"""The coefficient of a KL penalty: one that stays, and one that holds the KL divergence near a target."""

from __future__ import annotations


class FixedKLController:
    """A coefficient that stays what it is."""

    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Nothing; here so that controllers are called alike."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class AdaptiveKLController:
    """A coefficient in proportion to how far the KL divergence is off its target (Ziegler et al. 2019,
    arXiv:1909.08593, section 2.2):

        e = clip(KL / target - 1, -0.2, 0.2),   coefficient *= 1 + e * n_steps / horizon

    Args:
        init_kl_coef: the first coefficient.
        target: the KL divergence to hold, in nats a completion.
        horizon: in completions; over so many the coefficient changes by a fifth at most.

    Raises:
        ValueError: `target` or `horizon` is not above 0.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        for name, value in (("target", target), ("horizon", horizon)):
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0; the paper has a target of 6 and a horizon of 10000.")
        self.value, self.target, self.horizon = init_kl_coef, target, horizon

    def update(self, current: float, n_steps: int) -> None:
        """Take in the mean KL divergence of `n_steps` completions, in nats a completion."""
        error = min(max(current / self.target - 1, -0.2), 0.2)
        # a generation larger than five horizons would turn the sign
        self.value *= max(1 + error * n_steps / self.horizon, 0.0)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]
