"""Questions to killable processes about text that a policy wrote: a few processes, started on first use, shared."""

from __future__ import annotations

import json
import os
import queue
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.logging import get_logger
from tuneline.rewards.workers import Worker, each

logger = get_logger(__name__)

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tuneline.rewards.verifier_process import main; main()"
)
_SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START_TIME = 60.0  # seconds that the first answer of a process may take beyond its own time: imports
Question = Mapping[str, Any]


class _Verifier:
    """One process, started when it is needed and again after it was killed."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.has_answered = False

    def ask(self, question: Question, num_answers: int, timeout: float) -> tuple[list[dict[str, Any]], str]:
        """The answers that came in time, and why there are no more."""
        if self.worker is None or not self.worker.is_alive():
            path = json.dumps([_SOURCES, *sys.path])
            environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
            self.worker = Worker(["-c", _START, path], environment)
            self.has_answered = False
        answers: list[dict[str, Any]] = []
        try:
            self.worker.send(json.dumps(question).encode() + b"\n")
            while len(answers) < num_answers:
                answers.append(self.worker.receive(timeout + (0 if self.has_answered else _START_TIME)))
                self.has_answered = True
                if answers[-1].get("gold", "") is None:
                    break
        except TimeoutError:
            self.worker.close()
            return answers, f"took longer than {timeout:g} s"
        except EOFError:
            self.worker.close()
            return answers, "ended the process that read it"
        return answers, ""


_free: queue.SimpleQueue[_Verifier] = queue.SimpleQueue()
_num_verifiers = 0
_owner = 0


def ask_all(questions: Sequence[Question], num_answers: int, timeout: float) -> list[tuple[list[dict[str, Any]], str]]:
    """Answers to each question, several processes at once; see `_Verifier.ask`.

    Args:
        timeout: seconds for one answer, after which its process is killed.
    """
    global _free, _num_verifiers, _owner
    if _owner != os.getpid():  # a fork has no right to its parent's processes
        _free, _owner = queue.SimpleQueue(), os.getpid()
        _num_verifiers = min(4, os.cpu_count() or 1)
        for _ in range(_num_verifiers):
            _free.put(_Verifier())

    def ask(verifier: _Verifier, question: Question) -> tuple[list[dict[str, Any]], str]:
        return verifier.ask(question, num_answers, timeout)

    answers = each(_free, ask, questions, _num_verifiers)
    stopped = [reason for _, reason in answers if reason]
    if stopped:
        logger.warning("%d of %d answers could not be verified: %s", len(stopped), len(answers), stopped[0])
    return answers
