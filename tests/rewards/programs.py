"""A small task for programs, and what they may use in tests."""

from tuneline.rewards.sandbox.jail import Limits

SQUARE_TESTS = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
RIGHT = "def square(x):\n    return x * x\n"
LIMITS = Limits(wall_time=20, cpu_time=1, memory=256, files=1)
