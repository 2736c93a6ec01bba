"""MLflow's registry as the line uses it: versions that refer to DVC's content, the alias `champion` and its history.

Tags of a version: `dvc.md5`, `dvc.path`, `git.commit`, `git.dirty`, `lock.sha256` (of requirements.lock),
`tuneline.stage`, `evaluation.*` (which results it was judged by) and `promotion.*` (the decision). Tags of the model:
`champion.0001` and so on, one for each time that the alias moved: from where, to where, when, by whom and why.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.mlflow_store import connect, experiment_id, first_call_alone, register_by_reference
from stages.secrets import without_secrets
from stages.tracking import CHALLENGER
from tasks.tracking import tracking_uri
from tuneline.errors import TunelineError

CHAMPION = "champion"
_HISTORY = "champion."


class RegistryError(TunelineError):
    """MLflow's registry cannot be reached, or has not what was asked for."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and the content that it refers to."""

    model: str
    version: str
    md5: str
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class Move:
    """The alias moved once."""

    version: str
    before: str
    """The champion until then; empty where there was none."""
    at: str
    by: str
    why: str
    kind: str
    """`promotion` or `rollback`."""


class Registry:
    """The registry of a checkout's MLflow.

    Raises:
        RegistryError: from each method, where MLflow cannot be reached or refuses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = without_secrets(tracking_uri(root))
        self._client: Any = None

    @property
    def client(self) -> Any:
        if self._client is None:
            connect()
            import mlflow

            mlflow.set_tracking_uri(tracking_uri(self.root))
            self._client = mlflow.MlflowClient()
        return self._client

    def register(self, model: str, experiment: str, run_id: str, tags: Mapping[str, str]) -> Version:
        """The version that refers to this content, made where there is none; see `register_by_reference`."""
        with self._asked(f"register a version of {model}"):
            with first_call_alone():
                place = experiment_id(self.client, experiment)
            number = register_by_reference(self.client, model, place, run_id or None, tags)
            return _version(self.client.get_model_version(model, number))

    def version(self, model: str, number: str) -> Version:
        with self._asked(f"find {model}/{number}"):
            found = self._or_none(lambda: self.client.get_model_version(model, number))
        return self._known(found, model, f"version {number}")

    def by_alias(self, model: str, alias: str) -> Version:
        with self._asked(f"find {model}@{alias}"):
            found = self._or_none(lambda: self.client.get_model_version_by_alias(model, alias))
        return self._known(found, model, f"alias {alias}")

    def champion(self, model: str) -> Version | None:
        """Who has the alias; None where nobody has, or there is no such model."""
        with self._asked(f"find the champion of {model}"):
            found = self._or_none(lambda: self.client.get_model_version_by_alias(model, CHAMPION))
        return None if found is None else _version(found)

    def versions(self, model: str) -> list[Version]:
        """All of them, the oldest first."""
        with self._asked(f"list the versions of {model}"):
            found = self.client.search_model_versions(f"name = '{model}'")
        return sorted(map(_version, found), key=lambda version: int(version.version))

    def of_content(self, model: str, md5: str) -> Version | None:
        """The newest version that refers to this content."""
        with self._asked(f"look for the content {md5} among the versions of {model}"):
            found = self.client.search_model_versions(f"name = '{model}' and tags.`dvc.md5` = '{md5}'")
        return max(map(_version, found), key=lambda version: int(version.version), default=None)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        with self._asked(f"tag {version.uri}"):
            for name, value in tags.items():
                self.client.set_model_version_tag(version.model, version.version, name, value)

    def set_challenger(self, version: Version) -> None:
        with self._asked(f"set an alias of {version.model}"):
            self.client.set_registered_model_alias(version.model, CHALLENGER, version.version)

    def move_champion(self, version: Version, before: Version | None, *, by: str, why: str, kind: str) -> Move:
        """Give the alias to a version, and note it in the model's history.

        Args:
            before: who has it as far as the caller knows.

        Raises:
            RegistryError: somebody else moved it in the meantime.
        """
        now = self.champion(version.model)
        if (now and now.version) != (before and before.version):
            had, has = (one.version if one else "nobody" for one in (before, now))
            raise RegistryError(
                f"The champion of {version.model} was version {had} when this was decided, and is {has} now; somebody "
                "moved the alias. Decide again: `tuneline promote`."
            )
        move = Move(version.version, now.version if now else "", timestamp(), by, why, kind)
        number = 1 + max((int(name.removeprefix(_HISTORY)) for name in self._history_tags(version.model)), default=0)
        with self._asked(f"move the alias {CHAMPION} of {version.model}"):
            text = json.dumps(asdict(move), ensure_ascii=False)
            self.client.set_registered_model_tag(version.model, f"{_HISTORY}{number:04d}", text)
            challenger = self._or_none(lambda: self.client.get_model_version_by_alias(version.model, CHALLENGER))
            if challenger is not None and str(challenger.version) == version.version:
                self.client.delete_registered_model_alias(version.model, CHALLENGER)
            self.client.set_registered_model_alias(version.model, CHAMPION, version.version)  # last: an error means no
        return move

    def history(self, model: str) -> list[Move]:
        """Each time that the alias moved, the oldest first."""
        return [Move(**json.loads(text)) for _, text in sorted(self._history_tags(model).items())]

    def _history_tags(self, model: str) -> dict[str, str]:
        with self._asked(f"read the history of {model}"):
            found = self._or_none(lambda: self.client.get_registered_model(model))
        tags = {} if found is None else found.tags
        return {name: text for name, text in tags.items() if name.removeprefix(_HISTORY).isdecimal() and "." in name}

    def _known(self, found: Any, model: str, what: str) -> Version:
        if found is None:
            with self._asked("list models"):
                models = [one.name for one in self.client.search_registered_models()]
            known = self.versions(model) if model in models else []
            there = (
                f"versions {', '.join(one.version for one in known)}" if known else f"the models {', '.join(models)}"
            )
            raise RegistryError(f"The registry at {self.address} has no {what} of {model}; it has {there}.")
        version = _version(found)
        if not version.md5:
            raise RegistryError(
                f"{version.uri} refers to no content of DVC's (tag dvc.md5); the line did not register it."
            )
        return version

    @staticmethod
    def _or_none(call: Callable[[], Any]) -> Any:
        """What a look-up finds; None where it is not there."""
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except MlflowException as error:
            absent = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
            if error.error_code in absent and "not found" in str(error).lower():
                return None
            raise

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except TunelineError:
            raise
        except Exception as error:  # a tracking server may fail in any way
            reason = without_secrets((str(error).splitlines() or [""])[0])[:300]
            raise RegistryError(
                f"MLflow at {self.address} cannot {what} ({type(error).__name__}: {reason}). Start that server, or set "
                "MLFLOW_TRACKING_URI to one that runs."
            ) from error


def standing(moves: list[Move]) -> list[str]:
    """The champions that a rollback can go back through, the present one last.

    A promotion puts a version on top; a rollback takes off what is above the version that it goes to. What a move says
    was champion before it counts: a move may have been noted and then failed, or been made by other means.
    """
    stack: list[str] = []
    for move in moves:
        if move.before in stack:
            go_down(stack, move.before)
        elif move.before:
            stack.append(move.before)
        if move.kind == "rollback" and move.version in stack:
            go_down(stack, move.version)
        elif not stack or stack[-1] != move.version:
            stack.append(move.version)
    return stack


def go_down(stack: list[str], version: str) -> None:
    """Take off what is above a version that stands in the stack."""
    while stack[-1] != version:
        stack.pop()


def who() -> str:
    """The user, as on this machine."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container without a name for its user
        return f"uid {os.getuid()}@{socket.gethostname()}"


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(found: Any) -> Version:
    tags = dict(found.tags)
    return Version(found.name, str(found.version), tags.get("dvc.md5", ""), found.run_id or "", tags)
