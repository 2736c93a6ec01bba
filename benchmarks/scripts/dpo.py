"""Preference optimization as a user of TRL writes it; for the other side only the import reads `from tuneline`."""

from trl import DPOConfig, DPOTrainer

from benchmarks.measure import Measurement

measurement = Measurement.begin()
trainer = DPOTrainer(
    model=measurement.model,
    args=DPOConfig(**measurement.training_arguments),
    train_dataset=measurement.dataset(),
    callbacks=[measurement],
)
trainer.train()
measurement.finish(trainer.state.log_history)
