"""Data in and statistics out of a step trainer: its data loader, its tracker."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate.tracking import GeneralTracker, get_available_trackers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.statistics import moments, scalars
from tuneline.errors import ConfigError, DataError
from tuneline.logging import get_logger
from tuneline.models.layouts import base_model

if TYPE_CHECKING:
    from tuneline.classic.trainer import StepPPOTrainer

logger = get_logger(__name__)

# Columns that no model reads and a loop does.
_KEPT = ("label", "query", "response")


def make_dataloader(
    trainer: StepPPOTrainer, dataset: Any, data_collator: Callable[[list[Any]], Any] | None
) -> DataLoader:
    """See `StepPPOTrainer.prepare_dataloader`.

    Raises:
        DataError: no data set, or fewer rows than a batch has.
    """
    if not isinstance(dataset, datasets.Dataset | Dataset):
        raise DataError(
            f"dataset is a {type(dataset).__name__}; pass a datasets.Dataset or a torch Dataset with a length."
        )
    batch_size = trainer.config.batch_size
    if len(dataset) < batch_size:  # type: ignore[arg-type]
        raise DataError(f"dataset has {len(dataset)} rows, and batch_size={batch_size}; lower it.")  # type: ignore[arg-type]
    if isinstance(dataset, datasets.Dataset) and trainer.config.remove_unused_columns:
        model: Any = base_model(trainer.model.pretrained_model)
        read = {*inspect.signature(model.forward).parameters, *_KEPT}
        unread = [name for name in dataset.column_names if name not in read]
        if unread:
            logger.info("columns that the model does not read are left out: %s", ", ".join(unread))
            dataset = dataset.remove_columns(unread)
    order = torch.Generator().manual_seed(trainer.config.seed)
    loader = DataLoader(
        dataset, batch_size=batch_size, collate_fn=data_collator, shuffle=True, drop_last=True, generator=order
    )
    return trainer.accelerator.prepare(loader)


def check_tracker(config: ClassicPPOConfig) -> None:
    """Raises:
    ConfigError: a tracker that is not installed.
    """
    if isinstance(config.log_with, str) and config.log_with not in {str(one) for one in get_available_trackers()}:
        raise ConfigError(f"log_with={config.log_with!r} is not installed; install it, or leave log_with out.")


class Tracking:
    """The tracker of a step trainer, and the best mean reward that it has seen."""

    def __init__(self, trainer: StepPPOTrainer):
        self.trainer = trainer
        self.num_logged, self.best_reward = 0, -math.inf
        config, accelerator = trainer.config, trainer.accelerator
        if config.log_with is None:
            return
        options = {name: value for name, value in config.to_dict().items() if isinstance(value, str | int | float)}
        kwargs = config.tracker_kwargs
        if isinstance(config.log_with, str) and config.log_with not in kwargs:
            kwargs = {config.log_with: kwargs} if kwargs else {}
        accelerator.init_trackers(config.tracker_project_name, config=options, init_kwargs=kwargs)

    def log(
        self, stats: dict[str, Any], batch: Mapping[str, Any], rewards: Sequence[Any] | Tensor, columns: Sequence[str]
    ) -> None:
        """See `StepPPOTrainer.log_stats`."""
        trainer = self.trainer
        own = torch.tensor([float(reward) for reward in rewards])
        for name in columns:
            if name in batch and len(batch[name]) != len(own):
                raise DataError(f"batch[{name!r}] has {len(batch[name])} entries for {len(own)} rewards.")
        mean, std = moments(own, trainer.learning.sum)
        logged = {**stats, "env/reward_mean": mean, "env/reward_std": std, "env/reward_dist": own.numpy()}
        logger.info(
            "step %d: reward %.4f, KL %.4f, loss %.4f",
            trainer.learning.num_steps,
            mean,
            stats.get("objective/kl", math.nan),
            stats.get("ppo/loss/total", math.nan),
        )
        accelerator = trainer.accelerator
        if trainer.config.log_with is not None:
            table = {name: list(batch[name]) for name in columns if name in batch}
            accelerator.log(scalars(logged), step=trainer.learning.num_steps)
            for tracker in accelerator.trackers:
                _log_the_rest(tracker, logged, table, own.tolist(), trainer.learning.num_steps)
        self.num_logged += 1
        if trainer.config.push_to_hub_if_best_kwargs and self.num_logged % trainer.config.compare_steps == 0:
            if mean > self.best_reward:
                trainer.push_to_hub(**trainer.config.push_to_hub_if_best_kwargs)
            self.best_reward = max(self.best_reward, mean)

    def state_dict(self) -> dict[str, Any]:
        return {"num_logged": self.num_logged, "best_reward": self.best_reward}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_logged, self.best_reward = state["num_logged"], state["best_reward"]


def _log_the_rest(
    tracker: GeneralTracker, stats: Mapping[str, Any], table: dict[str, list[Any]], rewards: list[float], step: int
) -> None:
    """Distributions as histograms and texts as a table, where the tracker has such."""
    arrays = {name: value for name, value in stats.items() if name not in scalars(stats)}
    match tracker.name:
        case "wandb":
            import wandb

            tracker.tracker.log({name: wandb.Histogram(value) for name, value in arrays.items()}, step=step)
            rows = [list(row) for row in zip(*table.values(), rewards, strict=True)]
            tracker.tracker.log({"game_log": wandb.Table(columns=[*table, "reward"], rows=rows)}, step=step)
        case "tensorboard":
            for name, value in arrays.items():
                tracker.tracker.add_histogram(name, value, step)
