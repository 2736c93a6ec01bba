"""Supervised fine-tuning as a user of TRL writes it; for the other side only the import reads `from tuneline`."""

from trl import SFTConfig, SFTTrainer

from benchmarks.measure import Measurement

measurement = Measurement.begin()
trainer = SFTTrainer(
    model=measurement.model,
    args=SFTConfig(**measurement.training_arguments),
    train_dataset=measurement.dataset(),
    callbacks=[measurement],
)
trainer.train()
measurement.finish(trainer.state.log_history)
