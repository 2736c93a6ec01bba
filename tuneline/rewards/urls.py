"""A reward that a server gives: completions go out as JSON, rewards come back."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tuneline.errors import ConfigError, RewardError
from tuneline.rewards.batch import Unavailable

_MOST_BYTES = 64 * 2**20


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Endpoint:
    """An address that takes JSON by POST and answers JSON; check it with `check_endpoint`."""

    url: str
    timeout: float
    token_variable: str | None = None

    @property
    def shown(self) -> str:
        """The URL without its query, where a secret may stand."""
        return self.url.partition("?")[0]

    def post(self, content: Any) -> Any:
        """The answer to `content`.

        Raises:
            RewardError: the answer is none; TimeoutError, Unavailable: there is none.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token_variable is not None:
            headers["Authorization"] = f"Bearer {_secret(self.token_variable)}"
        request = urllib.request.Request(self.url, json.dumps(content).encode(), headers, method="POST")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                text = response.read(_MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace")
            raise RewardError(f"{self.shown} answered {error.code} {error.reason}: {said}") from None
        except TimeoutError:
            raise TimeoutError(f"{self.shown} gave no answer in {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise TimeoutError(f"{self.shown} gave no answer in {self.timeout:g} s") from None
            raise Unavailable(
                f"{self.shown} cannot be reached ({reason}); start the server, or mend the address"
            ) from None
        if len(text) > _MOST_BYTES:
            raise RewardError(f"{self.shown} answered more than {_MOST_BYTES} bytes")
        try:
            return json.loads(text)
        except ValueError:
            raise RewardError(f"{self.shown} answered {text[:100]!r}, which is no JSON") from None


@dataclass(frozen=True)
class UrlReward(Endpoint):
    """See `url_reward`."""

    @property
    def __name__(self) -> str:
        parts = urlsplit(self.url)
        return "_".join([parts.hostname or "", *parts.path.strip("/").split("/")]).strip("_")

    def __call__(
        self,
        prompts: list,
        completions: list,
        completion_ids: list[list[int]],
        trainer_state: Any = None,
        log_extra: Any = None,
        log_metric: Any = None,
        environments: Any = None,
        **columns: list,
    ) -> list[Any]:
        content = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "columns": {name: _jsonable(name, values) for name, values in columns.items()},
        }
        answer = self.post(content)
        if not isinstance(answer, dict) or not isinstance(answer.get("rewards"), list):
            raise RewardError(f'{self.shown} answered {json.dumps(answer):.100}, and not {{"rewards": [...]}}')
        return answer["rewards"]


def url_reward(url: str, *, timeout: float = 60.0, token_variable: str | None = None) -> UrlReward:
    """A reward function that asks a server.

    It is sent `{"prompts": [...], "completions": [...], "completion_ids": [...], "columns": {NAME: [...]}}` by POST and
    answers `{"rewards": [...]}`, a number or null a completion.

    Args:
        timeout: seconds without an answer after which it is given up.
        token_variable: the environment variable that holds a token, sent as `Authorization: Bearer TOKEN`.

    Raises:
        ConfigError: no URL, one that holds a password, or a variable that is not set.
        RewardError: when called, and the answer is none; it names the URL, without its query.
    """
    check_endpoint(url, token_variable)
    return UrlReward(url, timeout, token_variable)


def check_endpoint(url: str, token_variable: str | None = None) -> None:
    """Raise ConfigError for what is no URL, one that holds a password, or a variable that is not set."""
    parts = urlsplit(url)
    if not is_url(url) or not parts.hostname:
        raise ConfigError(f"{url!r} is no address of a server; give one that begins with http:// or https://.")
    if parts.password or parts.username:
        raise ConfigError(
            f"the address at {parts.hostname} holds a password; set an environment variable and name "
            "it in token_variable."
        )
    if token_variable is not None:
        _secret(token_variable)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirected, a POST would become a GET without its content."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _secret(variable: str) -> str:
    try:
        return os.environ[variable]
    except KeyError:
        raise ConfigError(f"token_variable={variable!r} is not set in the environment; export it.") from None


def _jsonable(name: str, values: list) -> list:
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the column {name!r} cannot be sent to a reward server as JSON ({error}); take it out of the dataset."
        ) from None
    return values
