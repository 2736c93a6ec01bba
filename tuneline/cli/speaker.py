"""A model in a conversation: what it has been told, what it answers, word by word, and what a reward model gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from tuneline.data.formats import Messages, as_reply, render_dialogue
from tuneline.errors import ConfigError, ModelError
from tuneline.models.loading import holds_model, load_causal_lm, load_tokenizer, resolve_model
from tuneline.rewards.models import RewardModel


@dataclass(frozen=True)
class ChatSettings:
    """How answers are drawn; what is None is left to the model's own generation settings.

    Raises:
        ConfigError: a value that nothing can be drawn with.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} leaves no room for an answer; use 1 or more.")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be at least 0, which takes the likeliest token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1].")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} is negative; 0 keeps every token.")

    def for_generate(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["do_sample"] = self.temperature > 0
        if self.temperature:
            options["temperature"] = self.temperature
        elif self.temperature == 0:  # said by the model's own settings perhaps, which do not go with greedy decoding
            options |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
            return options
        if self.top_p is not None:
            options |= {"top_p": self.top_p, "do_sample": True}
        if self.top_k is not None:
            options |= {"top_k": self.top_k, "do_sample": True}
        return options


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    num_tokens: int
    is_cut_off: bool  # it reached the limit without an end, or was interrupted
    score: float | None = None


class _Printing(TextStreamer):
    """Hands text over as soon as it is certain."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show = show
        self.token_ids: list[int] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self.token_ids += value.flatten().tolist()
        self._has_prompt = True
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._show(text)


@dataclass
class Speaker:
    """One model, and its side of the conversation.

    A model whose tokenizer has no chat template takes each message by itself, as plain text.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel | None = None
    messages: Messages = field(default_factory=list)

    @classmethod
    def load(cls, name: str, *, dtype: str = "auto", device: str | None = None) -> Speaker:
        """A model by its folder or name on a hub; a folder with an adapter brings its base along.

        Raises:
            ModelError: there is none, or it cannot be loaded.
        """
        folder = Path(name)
        if folder.is_dir() and not holds_model(folder):
            raise ModelError(f"{name} holds no model (no config.json or adapter_config.json in it).")
        place, revision = resolve_model(name)
        at = {} if revision is None else {"revision": revision}
        model = load_causal_lm(place, {"dtype": dtype}, **at)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return cls(folder.name if folder.is_dir() else name, model, load_tokenizer(place, revision=revision))

    @property
    def is_conversational(self) -> bool:
        return self.tokenizer.chat_template is not None

    def ask(self, text: str, settings: ChatSettings, show: Callable[[str], None] = lambda text: None) -> Answer:
        """Answer a message, and remember both.

        Args:
            show: gets the answer piece by piece while it is written.

        Raises:
            ConfigError: the conversation leaves no room for an answer.
        """
        prompt: Any = [*self.messages, {"role": "user", "content": text}] if self.is_conversational else text
        rendered = (
            render_dialogue(self.tokenizer, prompt, add_generation_prompt=True) if self.is_conversational else text
        )
        ids = self.tokenizer(rendered, add_special_tokens=not self.is_conversational, return_tensors="pt").input_ids
        answer = self._write(ids.to(self.model.device), settings, show)
        completion: Any = as_reply(prompt, answer.text)
        if self.reward_model is not None and answer.text:
            (score,) = self.reward_model([prompt], [completion])
            answer = replace(answer, score=score)
        if self.is_conversational:
            self.messages = [*prompt, *completion]
        return answer

    def undo(self) -> None:
        """Forget the last question and its answer; nothing where none is remembered."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if asked:
            del self.messages[asked[-1] :]

    def _write(self, ids: torch.Tensor, settings: ChatSettings, show: Callable[[str], None]) -> Answer:
        room = self._room(ids.shape[1])
        limit = settings.max_new_tokens if room is None else min(settings.max_new_tokens, room)
        printing, pad = _Printing(self.tokenizer, show), self.tokenizer.pad_token_id
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        interrupted = False
        try:
            with torch.inference_mode():
                self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=limit,
                    pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                    streamer=printing,
                    **settings.for_generate(),
                )
        except KeyboardInterrupt:  # the answer ends here, the conversation goes on
            printing.end()
            interrupted = True
        tokens = printing.token_ids
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, len(tokens), interrupted or not self._has_ended(tokens))

    def _has_ended(self, tokens: list[int]) -> bool:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return bool(tokens) and tokens[-1] in ends | {self.tokenizer.eos_token_id}

    def _room(self, num_tokens: int) -> int | None:
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is None:
            return None
        if num_tokens >= most:
            raise ConfigError(
                f"the conversation has {num_tokens} tokens, and {self.name} reads at most {most}; /clear begins anew, "
                "/undo takes the last message back."
            )
        return most - num_tokens
