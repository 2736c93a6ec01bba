"""What the sections of the config have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[str, Field(min_length=1), AfterValidator(lambda path: str(Path(path).expanduser()))]

_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".gz", ".parquet", ".csv", ".jinja", ".yaml", ".yml")


def is_local(path: str) -> bool:
    """Whether a path means a file or folder, and not a name on the hub."""
    return path.startswith(("/", "./", "../")) or path.endswith(_FILE_SUFFIXES) or Path(path).exists()


class Section(BaseModel):
    """Base of all sections: nothing unknown, no conversion from one type to another, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
