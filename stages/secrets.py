"""What looks like a secret: kept out of what is recorded, and taken out of what is shown."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(?:_|$)", re.IGNORECASE)
_SECRETS = re.compile(
    rb"AKIA[0-9A-Z]{16}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rb"|\b(?:hf|ghp|gho|github_pat|sk|xox[bp])[_-][A-Za-z0-9_-]{20,}"
    rb"|(?i:secret|token|passw(?:or)?d|api_?key|access_?key)[\"']?\s*[:=]\s*[\"'](?=[^\"']*\d)[A-Za-z0-9+/_=.-]{16,}[\"']"
    rb"|://[^\s/@:]+:[^\s/@]+@"
)
_IN_URL = re.compile(r"(://)[^\s/@]+:[^\s/@]+@")
_SHORTEST = 8
"""Characters; a shorter value would be found in any text."""


def holds_secret(text: bytes) -> bool:
    """Whether a text has the form of a key in it, or the value of an environment variable named as one."""
    return bool(_SECRETS.search(text)) or any(value.encode() in text for value in _values())


def without_secrets(text: str) -> str:
    """A message with such values, and names and passwords in addresses, replaced by stars."""
    for value in _values():
        text = text.replace(value, "***")
    return _IN_URL.sub(r"\1***@", text)


def _values() -> list[str]:
    """The longest first: one may begin with another, and what is left of it would be shown."""
    values = {value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
