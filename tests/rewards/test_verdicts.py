"""What tests see of a program, and the servers that check programs."""

import gzip
import json
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.data.shared_files import real_data
from tests.rewards.programs import RIGHT
from tuneline.rewards.sandbox.pool import Case, Job


def test_a_right_program_passes_and_a_wrong_one_fails_with_the_assertion(verdict):
    assert verdict(RIGHT).passed is True
    wrong = verdict("def square(x):\n    return 4\n")
    assert wrong.passed is False
    assert wrong.reason == "AssertionError at 'assert candidate(3) == 9'"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def square(x): return return", "SyntaxError"),
        ("def cube(x): return x", "defines no 'square'"),
        ("square = 4", "TypeError"),
        ("def square(x): return undefined", "NameError"),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("def square(x): return square(x)", "RecursionError"),
        ("import numpy\ndef square(x): return x", "ModuleNotFoundError"),
    ],
)
def test_programs_that_fail_by_themselves_say_why(verdict, program, reason):
    result = verdict(program)
    assert result.passed is False
    assert reason in result.reason


def test_helpers_of_the_prompt_are_the_prompts_even_if_the_program_redefines_them(verdict):
    context = "import math\ndef poly(x):\n    return x - 3\ndef root():\n    '''Its root.'''\n"
    tests = "def check(candidate):\n    assert math.fabs(poly(candidate())) < 1e-6\n"
    assert verdict(context + "    return 3", tests, "root", context).passed is True
    cheat = context + "    return 5\ndef poly(x):\n    return 0\n"
    assert verdict(cheat, tests, "root", context).passed is False


def test_tests_see_arguments_changed_in_place_exceptions_by_class_and_objects(verdict):
    program = """
        class Stack:
            def __init__(self): self.items = []
            def push(self, item): self.items.append(item)
            def __len__(self): return len(self.items)
        def double(values):
            values[:] = [2 * v for v in values]
        def refuse(): raise KeyError('k')
        def count():
            yield from range(3)
    """
    tests = """
        values = [1, 2]
        double(values)
        assert values == [2, 4]
        try:
            refuse()
            assert False
        except KeyError:
            pass
        stack = Stack()
        stack.push((1, 'a'))
        assert len(stack) == 1 and stack.items == [(1, 'a')]
        assert list(count()) == [0, 1, 2]
    """
    result = verdict(program, tests, None)
    assert result.passed is True, result.reason


def test_tests_at_fault_cost_no_program_its_score(verdict):
    assert verdict(RIGHT, "assert square(2 == 4").passed is None
    assert verdict(RIGHT, "assert True", None).passed is None


def test_scripts_are_given_input_and_their_output_compared(sandboxes, hurried_sandboxes):
    adding = "a, b = map(int, input().split())\nif __name__ == '__main__':\n    print(a + b)\n"
    cases = [Case("1 2\n", "3\n"), Case("5 6", "11")]
    jobs = [
        Job(adding, cases),
        Job("print(3)", cases),
        Job("while True: print('x' * 10000)", cases),
        Job("import os\nos._exit(3)", cases),
        Job("raise ValueError", cases),
        Job("import sys\nprint(sys.stdin.read() and 3)\nsys.exit()", cases[:1]),
    ]
    verdicts = sandboxes.check(jobs)
    assert [v.passed for v in verdicts] == [True, False, False, False, False, True]
    assert hurried_sandboxes.check([Job("import time\ntime.sleep(100)", cases)])[0].passed is False
    assert verdicts[1].reason == "case 1: printed b'3\\n', not '11'"
    assert "more than 1 MiB" in verdicts[2].reason
    assert "status 3" in verdicts[3].reason


def test_a_server_that_was_killed_is_started_again(sandboxes, verdict):
    for _ in range(2):
        server = sandboxes._free.get()
        if server.worker is not None:
            server.worker.process.kill()
        sandboxes._free.put(server)
    assert verdict(RIGHT).reason == "passed"


def test_many_programs_at_once_keep_their_order(sandboxes):
    jobs = [Job(f"def f(): return {i}", f"assert f() == {i - i % 2}") for i in range(20)]
    assert [v.passed for v in sandboxes.check(jobs)] == [i % 2 == 0 for i in range(20)]


def test_servers_end_with_their_owner():
    code = """
        from tuneline.rewards.sandbox.pool import Job, Sandboxes
        pool = Sandboxes(num_workers=1)
        pool.check([Job("def f(): return 1", "assert f() == 1")])
        print(pool._free.get().worker.process.pid, flush=True)
        import os; os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    server = int(done.stdout)
    deadline = time.monotonic() + 5
    while _runs(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(server)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_pool_can_be_pickled(sandboxes):
    copy = pickle.loads(pickle.dumps(sandboxes))
    assert (copy.limits, copy.num_workers) == (sandboxes.limits, 2)


def test_humaneval_solutions_pass_and_emptied_bodies_fail(sandboxes):
    with gzip.open(real_data("humaneval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]

    def passed(body):
        jobs = [Job(r["prompt"] + body(r), r["test"], r["entry_point"], r["prompt"]) for r in rows]
        return [verdict.passed for verdict in sandboxes.check(jobs)]

    assert passed(lambda row: row["canonical_solution"]) == [True] * 164
    assert passed(lambda row: "    pass\n") == [False] * 164
