"""Speed and memory of the trainers, side by side with TRL: `python -m benchmarks --help`."""
