"""Reward modelling as a user of TRL writes it; for the other side only the import reads `from tuneline`."""

from trl import RewardConfig, RewardTrainer

from benchmarks.measure import Measurement

measurement = Measurement.begin()
trainer = RewardTrainer(
    model=measurement.model,
    args=RewardConfig(**measurement.training_arguments),
    train_dataset=measurement.dataset(),
    callbacks=[measurement],
)
trainer.train()
measurement.finish(trainer.state.log_history)
