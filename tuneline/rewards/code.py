"""A reward for programs that pass their tests, run where they can do no harm."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tuneline.errors import RewardError
from tuneline.logging import get_logger
from tuneline.rewards.sandbox.jail import Limits
from tuneline.rewards.sandbox.pool import Case, Job, Sandboxes
from tuneline.rewards.texts import Completion, completion_text

logger = get_logger(__name__)

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def protections() -> dict[str, bool]:
    """For each of `tuneline.rewards.sandbox.jail.PROTECTIONS` whether this machine grants it to programs that are run.

    Raises:
        ConfigError: too little is granted to contain anything.
    """
    servers = Sandboxes(num_workers=1)
    try:
        return servers.protections()
    finally:
        servers.close()


@dataclass
class CodeExecutionReward:
    """See `get_code_execution_reward`."""

    limits: Limits
    num_workers: int | None = None
    sandboxes: Sandboxes = field(init=False, repr=False)
    __name__: ClassVar[str] = "code_execution_reward"

    def __post_init__(self) -> None:
        self.sandboxes = Sandboxes(self.limits, self.num_workers)

    def longest(self, num_samples: int) -> float:
        """Seconds that a batch takes where every program uses up its time."""
        return 10 + math.ceil(num_samples / self.sandboxes.num_workers) * (self.limits.wall_time + 1)

    def __call__(
        self,
        prompts: list,
        completions: list[Completion],
        test: list,
        entry_point: list[str | None] | None = None,
        context: list[str | None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        count = len(completions)
        jobs = [
            _job(*sample)
            for sample in zip(
                prompts, completions, test, entry_point or [None] * count, context or [None] * count, strict=True
            )
        ]
        verdicts = self.sandboxes.check(jobs)
        without = [verdict.reason for verdict in verdicts if verdict.passed is None]
        if without:
            logger.warning("%d of %d programs have no verdict: %s", len(without), len(verdicts), without[0])
        if log_extra is not None:
            log_extra("code_execution", [verdict.reason for verdict in verdicts])
        return [None if verdict.passed is None else float(verdict.passed) for verdict in verdicts]


def get_code_execution_reward(
    wall_time: float = 10.0, cpu_time: int = 8, memory: int = 512, files: int = 8, num_workers: int | None = None
) -> CodeExecutionReward:
    """1 for a program that passes its tests, 0 for one that does not, None where the tests themselves are at fault.

    The program is the last fenced block of the completion, or all of it; where there is no block and prompt and
    completion are text, it is the completion behind the prompt. Columns of the dataset:

    - `test`: Python's source, whose assertions call the program's functions, and whose `check`, if it defines one, is
      called with the entry point; or cases `{"input": ..., "output": ...}` for a script.
    - `entry_point` (for `check`): the name of the function.
    - `context`: trusted source that tests may use and programs are put behind; a prompt that is text by default.

    A program runs in a process of its own, without network, outside files, or new processes, and the tests in another,
    which is given plain data (see `tuneline.rewards.sandbox`): ending the process, printing, patching or comparing in
    odd ways do not pass. The reason of each verdict goes into the column `code_execution` of the completions table.

    Args:
        wall_time, cpu_time: seconds; memory, files: MiB, for one program.
        num_workers: programs at once, by default as many as there are processors.

    Raises:
        ConfigError: the machine grants too little to contain a program; see `protections`.
    """
    reward = CodeExecutionReward(Limits(wall_time, cpu_time, memory, files), num_workers)
    reward.sandboxes.protections()
    return reward


def extract_code(text: str) -> str | None:
    """The last fenced block behind the reasoning of a completion; None where there is none."""
    blocks = _BLOCK.findall(text.rpartition("</think>")[2])
    return blocks[-1] if blocks else None


def _job(prompt: Any, completion: Completion, test: Any, entry_point: str | None, context: str | None) -> Job:
    text = completion_text(completion)
    if context is None:
        context = prompt if isinstance(prompt, str) and isinstance(test, str) else ""
    block = extract_code(text)
    if block is not None:
        program = _closed(context) + block
    elif isinstance(completion, str):
        program = context + text
    else:
        program = text
    return Job(program, _tests(test), entry_point, context)


def _closed(context: str) -> str:
    """A context before a program that defines its function anew: what it leaves open is closed; text is left out."""
    for end in ("\n", "\n    pass\n"):
        try:
            compile(context + end, "<context>", "exec")
        except (SyntaxError, ValueError):
            continue
        return context + end
    return ""


def _tests(test: Any) -> str | list[Case]:
    if isinstance(test, str):
        return test
    try:
        return [Case(case["input"], case["output"]) for case in test]
    except (TypeError, KeyError):
        raise RewardError(f"test={test!r:.80} is neither source nor a list of cases with input and output") from None
