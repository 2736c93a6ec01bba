"""`tuneline chat MODEL ...`: a conversation in the terminal with one model, or with several side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TextIO

import transformers
from rich.console import Console

from tuneline.cli.speaker import Answer, ChatSettings, Speaker
from tuneline.errors import ConfigError, ModelError, TunelineError
from tuneline.models.loading import holds_model
from tuneline.rewards.models import RewardModel

HELP = """\
/clear            begin anew
/undo             take the last message and its answer back
/retry            ask the last message again
/system TEXT      what the system says first; begins anew
/set NAME=VALUE   max_new_tokens, temperature, top_p, top_k, seed; no VALUE: the model's own; /set alone shows them
/save FILE        write the conversation, as rows of messages with scores (.jsonl)
/help, /quit      (or Ctrl-D); Ctrl-C ends an answer that is being written"""


def model_folder(name: str, checkout: Path | None) -> str:
    """What the user means by a name: a stage of the line (`dpo` for `models/dpo`), a folder, or a name on a hub.

    Raises:
        ModelError: a stage that made no model.
    """
    if checkout is None or Path(name).exists() or "/" in name or not (checkout / "models" / name).is_dir():
        return name
    folder = checkout / "models" / name
    if not holds_model(folder):
        raise ModelError(f"{folder} holds no model: that stage is off in the last run's config, or has not run.")
    return str(folder)


def chat(
    models: list[str],
    *,
    settings: ChatSettings,
    system: str | None = None,
    reward_model: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> None:
    """Load the models and talk until the input ends. Questions are lines of standard input.

    Args:
        reward_model: folder or name of a sequence classifier that scores each answer; None for none.

    Raises:
        ModelError, ConfigError: what cannot be loaded, or does not go together.
    """
    transformers.logging.disable_progress_bar()
    console = Console(highlight=False)
    speakers = []
    for name in models:
        with console.status(f"Loading {name} ..."):
            speakers.append(Speaker.load(name, dtype=dtype, device=device))
    if reward_model is not None:
        with console.status(f"Loading {reward_model} ..."):
            scorer = RewardModel.load(reward_model)
            scorer.model.to(speakers[0].model.device)
        for speaker in speakers:
            speaker.reward_model = scorer
    conversation = Conversation(speakers, settings, console)
    if system:
        conversation.set_system(system)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        conversation.introduce()
    conversation.talk(_lines(console, sys.stdin, is_terminal))


def _lines(console: Console, source: TextIO, is_terminal: bool) -> Iterator[str]:
    """What the user writes. A line that ends in a backslash goes on in the next."""
    if is_terminal:
        import readline  # noqa: F401  gives input() its history and editing

    parts: list[str] = []
    while True:
        try:
            line = input("… " if parts else "> ") if is_terminal else next(source).rstrip("\n")
        except (EOFError, StopIteration):
            if parts:
                yield "\n".join(parts)
            return
        except KeyboardInterrupt:
            console.print("\n/quit or Ctrl-D ends the conversation.")
            parts = []
            continue
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield "\n".join([*parts, line])
        parts = []


class Conversation:
    """Questions and commands in, answers out; the same questions go to each model."""

    def __init__(self, speakers: list[Speaker], settings: ChatSettings, console: Console):
        self.speakers = speakers
        self.settings = settings
        self._console = console
        self._system: str | None = None
        self._turns: list[tuple[str, list[Answer]]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(HELP),
            "clear": lambda _: self.clear(),
            "undo": lambda _: self.undo(),
            "retry": lambda _: self.retry(),
            "system": self.set_system,
            "set": self.change_setting,
            "save": self.save,
        }

    def introduce(self) -> None:
        self._say(", ".join(speaker.name for speaker in self.speakers) + ". /help lists what else can be said.")
        for speaker in self.speakers:
            if not speaker.is_conversational:
                self._say(f"{speaker.name} has no chat template: each message is a prompt of its own, as it stands.")

    def talk(self, lines: Iterator[str]) -> None:
        """Until the lines end, or one of them is /quit. What goes wrong is said, and the conversation goes on."""
        for line in lines:
            text = line.strip()
            if not text:
                continue
            if text in ("/quit", "/exit"):
                return
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self.command(text)
                else:
                    self.ask(text.removeprefix("/") if text.startswith("//") else line)
            except TunelineError as error:
                self._say(str(error), "yellow")

    def command(self, text: str) -> None:
        """ConfigError for one that is not known."""
        name, _, rest = text[1:].partition(" ")
        if name not in self._commands:
            raise ConfigError(f"/{name} is not known; /help lists what is, and //{name} says it to the model.")
        self._commands[name](rest.strip())

    def ask(self, text: str) -> None:
        """Each model's answer, as it is written. Where one cannot answer, none remembers the question."""
        answers: list[Answer] = []
        try:
            for speaker in self.speakers:
                if len(self.speakers) > 1:
                    self._say(speaker.name, "bold")
                answer = speaker.ask(text, self.settings, show=self._write)
                self._console.print()
                self._say(_note(answer), "dim")
                answers.append(answer)
        except TunelineError:
            for speaker in self.speakers[: len(answers)]:
                speaker.undo()
            raise
        self._turns.append((text, answers))

    def clear(self) -> None:
        self._turns.clear()
        for speaker in self.speakers:
            speaker.messages = [{"role": "system", "content": self._system}] if self._system else []

    def undo(self) -> None:
        """ConfigError where nothing was said yet."""
        if not self._turns:
            raise ConfigError("nothing was said yet, so nothing can be taken back.")
        self._turns.pop()
        for speaker in self.speakers:
            speaker.undo()

    def retry(self) -> None:
        text = self._turns[-1][0] if self._turns else ""
        self.undo()
        self.ask(text)

    def set_system(self, text: str) -> None:
        """ConfigError for a model that has no place for it."""
        for speaker in self.speakers:
            if not speaker.is_conversational:
                raise ConfigError(f"{speaker.name} has no chat template, and so no place for what the system says.")
        self._system = text or None
        self.clear()

    def change_setting(self, text: str) -> None:
        """`name=value`; without, the settings are shown."""
        known = {field.name for field in fields(ChatSettings)}
        if text:
            name, has_value, value = (part.strip() for part in text.partition("="))
            if name not in known or not has_value:
                names = ", ".join(sorted(known))
                raise ConfigError(f"/set {text}: write /set NAME=VALUE, where NAME is one of {names}.")
            changed: Any = {name: _number(name, value)}
            self.settings = replace(self.settings, **changed)
        shown = (f"{name}={getattr(self.settings, name)}" for name in sorted(known))
        self._say(" ".join(shown), "dim")

    def save(self, path: str) -> None:
        """One row a model; ConfigError for a file that is there."""
        if not path:
            raise ConfigError("/save FILE: name a file, such as talk.jsonl.")
        file = Path(path).expanduser()
        rows = []
        for i, speaker in enumerate(self.speakers):
            messages = [{"role": "system", "content": self._system}] if self._system else []
            for text, answers in self._turns:
                messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answers[i].text}]
            scores = [answers[i].score for _, answers in self._turns]
            rows.append({"model": speaker.name, "messages": messages, "scores": scores})
        try:
            with file.open("x", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise ConfigError(f"/save {path}: {error.strerror or error}; name another file.") from error
        self._say(f"{file}: {len(self._turns)} turns of {len(rows)} models", "dim")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)


def _number(name: str, text: str) -> float | int | None:
    if text in ("", "null") and name != "max_new_tokens":
        return None
    is_count = name in ("max_new_tokens", "top_k", "seed")
    try:
        return int(text) if is_count else float(text)
    except ValueError:
        raise ConfigError(f"/set {name}={text}: {text!r} is no {'whole ' if is_count else ''}number.") from None


def _note(answer: Answer) -> str:
    score = [] if answer.score is None else [f"score {answer.score:.3f}"]
    cut_off = ["without an end"] if answer.is_cut_off else []
    return "[" + ", ".join([*score, f"{answer.num_tokens} tokens", *cut_off]) + "]"
