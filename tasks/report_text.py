"""How a report writes numbers and texts: for readers, bounded in length, and with what is left out counted."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from markupsafe import Markup, escape

Item = TypeVar("Item")
Change = Literal["same", "new", "gone"]
Difference = list[tuple[Change, str]]
_TOKENS = re.compile(r"\w+|\s+|[^\w\s]")
_FEW_WORDS = 4
_LEAST_ALIKE = 0.3


@dataclass
class Limits:
    """How much of what may be long is shown; `left_out` counts, in words, what is not."""

    num_samples: int = 48
    num_rows: int = 400
    num_characters: int = 2000
    """Of one text of a prompt, an answer or a message."""
    num_block_characters: int = 40_000
    """Of a log or a configuration."""
    num_figure_characters: int = 400_000
    left_out: Counter[str] = field(default_factory=Counter)

    def smaller(self, times: int) -> Limits:
        """For a page that has become too large."""
        return Limits(
            max(1, self.num_samples // times),
            max(20, self.num_rows // times),
            max(200, self.num_characters // times),
            max(2000, self.num_block_characters // times),
            self.num_figure_characters // times,
        )

    def text(self, value: Any) -> str:
        """The beginning of a text, with the number of characters that follow."""
        return self._cut(str(value), self.num_characters)

    def block(self, value: Any) -> str:
        """The beginning of a configuration."""
        return self._cut(str(value), self.num_block_characters)

    def end(self, value: str) -> str:
        """The end of a log."""
        if len(value) <= self.num_block_characters:
            return value
        self.left_out["characters of logs"] += len(value) - self.num_block_characters
        return (
            f"… ({len(value) - self.num_block_characters:,} characters before)\n{value[-self.num_block_characters :]}"
        )

    def rows(self, what: str, values: Sequence[Item], most: int | None = None) -> list[Item]:
        """The first of many; `what` names them in the plural."""
        most = self.num_rows if most is None else most
        if len(values) > most:
            self.left_out[what] += len(values) - most
        return list(values[:most])

    def _cut(self, text: str, most: int) -> str:
        if len(text) <= most:
            return text
        self.left_out["characters of long texts"] += len(text) - most
        return f"{text[:most]}… ({len(text) - most:,} characters more)"


def difference(reference: str, text: str) -> Difference:
    """What to take from `reference` and add to it for `text`: by words, or by characters where there are few words.

    Texts that share next to nothing are `gone` and `new` as wholes: a patchwork of chance matches helps nobody.
    """
    if reference == text:
        return [("same", text)] if text else []
    by_character = any(len(side.split()) < _FEW_WORDS for side in (reference, text))
    old, new = (list(side) if by_character else _TOKENS.findall(side) for side in (reference, text))
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < _LEAST_ALIKE:
        whole: Difference = [("gone", reference), ("new", text)]
        return [part for part in whole if part[1]]
    parts: Difference = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(new[c:d])))
            continue
        if a < b:
            parts.append(("gone", "".join(old[a:b])))
        if c < d:
            parts.append(("new", "".join(new[c:d])))
    return parts


def number(value: Any) -> str:
    """A number as a reader wants it: whole ones with separators, others with three decimals; `–` for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"


def breakable(name: str) -> Markup:
    """The names of metrics, which a narrow column may break after a slash or an underscore."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))


def command(text: str) -> Markup:
    """A command whose words stay whole where they fit on a line."""
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(word) for word in text.split(" "))


def share(value: float) -> str:
    """Such as `12.3 %`."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Such as `4.2 s`, `3:07` or `2:03:07`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """Such as `512 MiB` or `1.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def prompt_parts(prompt: Any) -> list[tuple[str, str]]:
    """(role, text) of each message; a plain prompt has no role."""
    if isinstance(prompt, list):
        return [(str(m.get("role", "")), str(m.get("content", ""))) for m in prompt if isinstance(m, dict)]
    return [("", str(prompt))]
