"""Speed and memory of the trainers, side by side with TRL: `python -m benchmarks --help`."""

FOLDER, RESULT = "BENCHMARK_FOLDER", "BENCHMARK_RESULT"
"""Variables of a measured process: where the work lies, and the file that it is to write."""
