"""Rewards for the form of a completion: reasoning in its tags, a pattern, JSON that follows a schema.

Patterns and schemas run in a process that can be killed: a pattern may take for ever on a text made for it, and holds
up the whole interpreter meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tuneline.errors import ConfigError
from tuneline.rewards.texts import Completion, completion_text
from tuneline.rewards.verifying import ask_all

_TIMEOUT = 5.0  # seconds for one completion
_BLOCK = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


def think_format_reward(completions: list[Completion], **columns: Any) -> list[float]:
    """1 for a completion that begins with `<think>`, closes it, and opens it no second time before; 0 for others."""
    return [float(_is_thought_out(completion_text(completion))) for completion in completions]


def _is_thought_out(text: str) -> bool:
    # TRL's pattern ^<think>(?!.*<think>)(.*?)</think>.*$ in linear time: one opening tag, in front, and a closing one.
    rest = text.removeprefix("<think>")
    return rest != text and "<think>" not in rest and "</think>" in rest


@dataclass(frozen=True)
class RegexReward:
    """See `get_regex_reward`."""

    pattern: str
    whole: bool
    flags: int
    __name__: ClassVar[str] = "regex_reward"

    def __call__(self, completions: list[Completion], **columns: Any) -> list[float]:
        question = {"kind": "pattern", "pattern": self.pattern, "flags": self.flags, "whole": self.whole}
        questions = [{**question, "text": completion_text(completion)} for completion in completions]
        return [float(bool(answers) and answers[0]["holds"]) for answers, _ in ask_all(questions, 1, _TIMEOUT)]


def get_regex_reward(pattern: str, whole: bool = False, ignore_case: bool = False) -> RegexReward:
    """1 for a completion in which a pattern is found, 0 for others, and for one that it takes over 5 s to search.

    Args:
        pattern: of Python's `re`; a dot also stands for a line break.
        whole: it must match the whole completion.

    Raises:
        ConfigError: the pattern is none.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else re.NOFLAG)
    try:
        re.compile(pattern, flags)
    except re.error as error:
        raise ConfigError(f"pattern={pattern!r} is no regular expression: {error}.") from error
    return RegexReward(pattern, whole, int(flags))


@dataclass(frozen=True)
class JsonSchemaReward:
    """See `get_json_schema_reward`."""

    schema: Mapping[str, Any] | None
    __name__: ClassVar[str] = "json_schema_reward"

    def __call__(
        self,
        completions: list[Completion],
        schema: list[Any] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if schema is None and self.schema is None:
            raise ConfigError(
                "json_schema_reward has no schema; give one as an option, or as the column 'schema' of the dataset."
            )
        schemas = [self.schema] * len(completions) if schema is None else [_read(one) or self.schema for one in schema]
        asked = [i for i, one in enumerate(schemas) if one is not None]
        questions = [
            {"kind": "schema", "text": json_part(completion_text(completions[i])), "schema": schemas[i]} for i in asked
        ]
        rewards: list[float | None] = [None] * len(completions)
        reasons = ["no schema"] * len(completions)
        for i, (answers, why) in zip(asked, ask_all(questions, 1, _TIMEOUT), strict=True):
            rewards[i] = float(bool(answers) and answers[0]["holds"])
            reasons[i] = answers[0]["reason"] if answers else why
        if log_extra is not None:
            log_extra("json_schema", reasons)
        return rewards


def get_json_schema_reward(schema: Mapping[str, Any] | str | None = None) -> JsonSchemaReward:
    """1 for a completion that is JSON and follows a schema, 0 for others, None where there is no schema.

    The JSON is the whole completion, or its last fenced block. The draft is that of the schema's `$schema`, 2020-12 by
    default; references to other documents are not followed. Why one fails goes into the column `json_schema` of the
    completions table.

    Args:
        schema: a schema, as JSON or a mapping; a column `schema` of the dataset goes before it, row by row.

    Raises:
        ConfigError: it is no schema, or jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError as error:
        raise ConfigError("json_schema_reward needs jsonschema: pip install 'tuneline[math]'.") from error
    try:
        known = _read(schema)
        if known is not None:
            jsonschema.validators.validator_for(known, default=jsonschema.Draft202012Validator).check_schema(known)
    except (ValueError, jsonschema.SchemaError) as error:
        raise ConfigError(f"schema={schema!r:.100} is no JSON schema: {str(error).splitlines()[0]}.") from error
    return JsonSchemaReward(known)


def json_part(text: str) -> str:
    """The last fenced block of a text, or all of it where it has none, behind the reasoning."""
    text = text.rpartition("</think>")[2].strip()
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


def _read(schema: Any) -> Any:
    return json.loads(schema) if isinstance(schema, str) else schema
