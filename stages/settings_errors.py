"""One setting that is wrong, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MISSING: Any = object()
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_key|key)$", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a setting of this name may hold a secret, which never belongs in a config."""
    return bool(_SECRET.search(name.rsplit(".", 1)[-1]))


@dataclass(frozen=True)
class SettingError:
    """What is wrong with one setting."""

    path: str
    """Dotted, such as `dpo.training.beta`; empty for the whole file."""
    value: Any
    """MISSING where there is none to show."""
    reason: str
    nearest: str = ""
    """A known name that may have been meant."""

    def describe(self, overridden: Mapping[str, str]) -> str:
        """One line; what came from an override says so."""
        shown = "" if self.value is MISSING else f" = {'***' if is_secret(self.path) else _short(self.value)}"
        origin = " (from --set)" if self.path in overridden else ""
        hint = f"; did you mean `{self.nearest}`?" if self.nearest else ""
        return f"{self.path or 'the file'}{shown}{origin}: {self.reason}{hint}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {name: "***" if is_secret(str(name)) else below for name, below in value.items()}
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
