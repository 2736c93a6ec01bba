"""The process in which answers are parsed that nobody vouches for: mathematics, patterns, JSON.

Each line of its input is a question in JSON, each line of its output an answer. It may be killed at any time.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import sys
from functools import lru_cache
from typing import Any

_MEMORY = 4 * 2**30  # bytes of addresses; sympy takes a tenth
_PARSING_TIME, _VERIFYING_TIME = 10, 5  # seconds, as in TRL; what they do not end is killed from outside


def main() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    logging.disable(logging.CRITICAL)
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for line in sys.stdin:
        question = json.loads(line)
        match question["kind"]:
            case "mathematics":
                _verify_mathematics(question, say)
            case "pattern":
                found = re.compile(question["pattern"], question["flags"])
                match = found.fullmatch if question["whole"] else found.search
                say({"holds": match(question["text"]) is not None})
            case "schema":
                say(_check_schema(question["text"], question["schema"]))


def _verify_mathematics(question: dict[str, Any], say: Any) -> None:
    """Says the parsed solution first, so that it is known which of the two an endless parse is about."""
    gold = _parsed_gold(question["gold"])
    say({"gold": str(gold) if gold else None})
    if not gold:
        return
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # As TRL asks: correct LaTeX, the boxed answer first, units stripped.
    extraction = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )
    try:
        answer = parse(
            question["answer"],
            extraction_config=[extraction],
            extraction_mode="first_match",
            parsing_timeout=_PARSING_TIME,
        )
        is_right = bool(verify(gold, answer, timeout_seconds=_VERIFYING_TIME))
    except (MemoryError, RecursionError) as error:
        say({"answer": f"[{type(error).__name__}]", "holds": False})
        return
    say({"answer": str(answer) if answer else None, "holds": is_right})


@lru_cache(maxsize=1024)
def _parsed_gold(gold: str) -> Any:
    from math_verify import parse

    return parse(gold, parsing_timeout=_PARSING_TIME)


def _check_schema(text: str, schema: Any) -> dict[str, Any]:
    import jsonschema
    import referencing

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"holds": False, "reason": f"no JSON: {error}"}
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    # An empty registry: a reference to elsewhere is an error, and no call over the network.
    breach = next(kind(schema, registry=referencing.Registry()).iter_errors(value), None)
    if breach is None:
        return {"holds": True, "reason": ""}
    return {"holds": False, "reason": f"{breach.json_path}: {breach.message[:200]}"}


if __name__ == "__main__":
    main()
