"""Judges behind an address: a server of one's own, or one that speaks OpenAI's protocol."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tuneline.data.formats import is_messages
from tuneline.errors import ConfigError, RewardError
from tuneline.judges.base import ComparingJudge
from tuneline.logging import get_logger
from tuneline.rewards.texts import completion_text
from tuneline.rewards.urls import Endpoint, check_endpoint

logger = get_logger(__name__)

PAIRWISE_PROMPT = """You compare two answers to one instruction, and say which of them serves the user better.

What counts: that the answer does what was asked, that what it says is true, and that it is clear. Neither length nor
the order in which the two stand here counts.

[Instruction]
{prompt}

[Answer 0]
{response0}

[Answer 1]
{response1}

Reply with one character and nothing else: 0 if answer 0 is better, 1 if answer 1 is better."""


class UrlPairwiseJudge(ComparingJudge):
    """A judge that a server is.

    It is sent `{"prompts": [...], "completions": [[FIRST, SECOND], ...]}` by POST and answers `{"verdicts": [...]}`: 0
    or 1 a pair, the place of the better one, or null. A call that fails costs its pairs, which are counted.

    Args:
        timeout: seconds without an answer after which it is given up.
        token_variable: the environment variable that holds a token, sent as `Authorization: Bearer TOKEN`.

    Raises:
        ConfigError: no URL, one that holds a password, or a variable that is not set.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, token_variable: str | None = None):
        check_endpoint(url, token_variable)
        self.endpoint = Endpoint(url, timeout, token_variable)

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int | None]:
        try:
            answer = self.endpoint.post({"prompts": prompts, "completions": pairs})
        except (RewardError, OSError) as error:
            logger.warning("the judge failed: %s", error)
            return [None] * len(pairs)
        verdicts = answer.get("verdicts") if isinstance(answer, dict) else None
        if not isinstance(verdicts, list) or len(verdicts) != len(pairs):
            logger.warning('%s did not answer {"verdicts": [one a pair]}', self.endpoint.shown)
            return [None] * len(pairs)
        return verdicts


class OpenAIPairwiseJudge(ComparingJudge):
    """A chat model behind a server that speaks OpenAI's protocol: OpenAI, vLLM, llama.cpp and others.

    Args:
        model: its name on the server.
        system_prompt: what it is asked, with `{prompt}`, `{response0}` and `{response1}` where these go; None for
            `PAIRWISE_PROMPT`. It has to ask for 0 or 1.
        max_requests: pairs that are asked about at most, over the judge's life; None for no limit. Those beyond have
            no verdict, which is logged once.
        base_url: of the server, up to and with its version, such as http://127.0.0.1:8000/v1.
        token_variable: the environment variable that holds the key; None for a server that wants none.
        timeout: seconds that one answer may take.
        max_tokens: of an answer; more for a model that reasons, of whose answer the last word counts.
        concurrency: requests on the way at once.

    Raises:
        ConfigError: no URL, a variable that is not set, or a system prompt without its three places.
    """

    def __init__(
        self,
        model: str = "gpt-4-turbo-preview",
        system_prompt: str | None = None,
        max_requests: int | None = 1_000,
        *,
        base_url: str = "https://api.openai.com/v1",
        token_variable: str | None = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_tokens: int = 1,
        concurrency: int = 8,
    ):
        url = f"{base_url.rstrip('/')}/chat/completions"
        check_endpoint(url, token_variable)
        self.system_prompt = PAIRWISE_PROMPT if system_prompt is None else system_prompt
        missing = [name for name in ("{prompt}", "{response0}", "{response1}") if name not in self.system_prompt]
        if missing:
            raise ConfigError(f"system_prompt has no {', '.join(missing)}; say in it where these go.")
        self.endpoint = Endpoint(url, timeout, token_variable)
        self.model, self.max_requests, self.max_tokens = model, max_requests, max_tokens
        self.concurrency = concurrency
        self.num_requests = 0
        self._is_told = False

    def compare(self, prompts: list[Any], pairs: list[list[Any]]) -> list[int | None]:
        room = len(pairs) if self.max_requests is None else max(0, self.max_requests - self.num_requests)
        if room < len(pairs) and not self._is_told:
            logger.warning("max_requests=%d is used up; the judge gives no further verdicts", self.max_requests)
            self._is_told = True
        asked = list(zip(prompts, pairs, strict=True))[:room]
        self.num_requests += len(asked)
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            verdicts = list(pool.map(lambda one: self._ask(*one), asked))
        return verdicts + [None] * (len(pairs) - len(verdicts))

    def _ask(self, prompt: Any, pair: list[Any]) -> int | None:
        places = {"prompt": _prompt_text(prompt), "response0": pair[0], "response1": pair[1]}
        content = re.sub(
            r"\{(prompt|response0|response1)\}",  # at once: a completion may hold such marks itself
            lambda found: completion_text(places[found[1]]),
            self.system_prompt,
        )
        message = {"role": "user", "content": content}
        try:
            answer = self.endpoint.post({"model": self.model, "messages": [message], "max_tokens": self.max_tokens})
            said = answer["choices"][0]["message"]["content"]
        except (RewardError, OSError, KeyError, IndexError, TypeError) as error:
            logger.warning("the judge failed: %s", error)
            return None
        found = re.search(r"(?:^|\s)\W*([01])\W*$", said) if isinstance(said, str) else None
        return int(found[1]) if found else None


def _prompt_text(prompt: Any) -> str:
    """A prompt as a judge reads it: text as it is; of messages who said what, a lone user's message bare."""
    if not is_messages(prompt):
        return prompt
    if len(prompt) == 1:
        return completion_text([{**prompt[0], "role": "assistant"}])
    return "\n\n".join(f"{one['role']}: {completion_text([{**one, 'role': 'assistant'}])}" for one in prompt)
