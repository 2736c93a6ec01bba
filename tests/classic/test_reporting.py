"""The data loader and the trackers of a step trainer."""

import json
import logging

import pytest
import torch
from accelerate.tracking import GeneralTracker
from datasets import Dataset

from tests.classic.models import some_batch, step_trainer, with_value_head
from tests.trainers.rows import character_tokenizer
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.trainer import StepPPOTrainer
from tuneline.errors import ConfigError, DataError

SMALL = dict(batch_size=4, mini_batch_size=2, ppo_epochs=1)


class FileTracker(GeneralTracker):
    """A tracker of Accelerate that writes lines of JSON."""

    name = "file"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path):
        super().__init__()
        self.path = path

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self._write({"config": values})

    def log(self, values, step=None, **kwargs):
        self._write({"step": step, **values})

    def _write(self, values):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def rows(num=9):
    return Dataset.from_dict(
        {
            "query": [f"what {i}" for i in range(num)],
            "input_ids": [[4 + i, 5] for i in range(num)],
            "note": [str(i) for i in range(num)],
        }
    )


def collate(batch):
    return {name: [row[name] for row in batch] for name in batch[0]}


def trainer_with(dataset, **options):
    config = ClassicPPOConfig(accelerator_kwargs={"cpu": True}, **{**SMALL, **options})
    return StepPPOTrainer(
        config, with_value_head(), tokenizer=character_tokenizer(), dataset=dataset, data_collator=collate
    )


def test_the_data_loader_gives_whole_shuffled_batches_of_what_is_read(caplog):
    with caplog.at_level(logging.INFO):
        trainer = trainer_with(rows())
    batches = list(trainer.dataloader)
    assert [len(batch["query"]) for batch in batches] == [4, 4]
    assert set(batches[0]) == {"query", "input_ids"}
    assert "left out: note" in caplog.text
    assert batches == list(trainer_with(rows()).dataloader)
    assert [b["query"] for b in batches] != [b["query"] for b in trainer_with(rows(), seed=1).dataloader]
    kept = trainer_with(rows(), remove_unused_columns=False)
    assert "note" in next(iter(kept.dataloader))


def test_data_sets_of_the_wrong_kind_or_size_are_refused():
    with pytest.raises(DataError, match="dataset is a list"):
        trainer_with([1, 2])
    with pytest.raises(DataError, match="dataset has 3 rows, and batch_size=4"):
        trainer_with(rows(3))


def test_statistics_and_rewards_go_to_the_tracker_and_to_the_log(tmp_path, caplog):
    tracker = FileTracker(tmp_path / "log.jsonl")
    trainer = step_trainer(log_with=tracker, **SMALL)
    queries, responses, scores, _ = some_batch()
    stats = trainer.step(queries, responses, scores)
    batch = {"query": ["q"] * 4, "response": ["r"] * 4}
    with caplog.at_level(logging.INFO):
        trainer.log_stats(stats, batch, list(scores))
    config, line = [json.loads(line) for line in tracker.path.read_text().splitlines()]
    assert config["config"]["ppo_epochs"] == 1
    assert line["step"] == 1
    assert line["env/reward_mean"] == pytest.approx(scores.mean().item())
    assert line["env/reward_std"] == pytest.approx(scores.std().item())
    assert line["ppo/loss/total"] == stats["ppo/loss/total"]
    assert all(isinstance(value, float | int) for value in line.values())
    assert "step 1: reward" in caplog.text
    with pytest.raises(DataError, match=r"batch\['query'\] has 1 entries for 4 rewards"):
        trainer.log_stats(stats, {"query": ["q"]}, scores)


def test_a_tracker_that_is_not_installed_is_refused():
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="log_with='wandb' is not installed"):
            step_trainer(log_with="wandb", **SMALL)


def test_the_best_model_so_far_is_pushed(monkeypatch):
    trainer = step_trainer(push_to_hub_if_best_kwargs={"repo_id": "me/best"}, compare_steps=2, **SMALL)
    pushed = []
    monkeypatch.setattr(trainer, "push_to_hub", lambda **kwargs: pushed.append(kwargs))
    for reward in (1.0, 2.0, 9.0, 1.0, 0.0, 3.0):
        trainer.log_stats({}, {}, torch.tensor([reward]))
    assert pushed == [{"repo_id": "me/best"}] * 2  # at the second call and the sixth
