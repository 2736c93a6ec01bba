"""From rows of a dataset to rollouts: single completions, conversations with tools and environments, or what a user's
function makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tuneline.data.formats import common_prefix_length, is_messages, to_messages
from tuneline.data.images import column_images, has_images, image_inputs, row_images, tokenizer_of
from tuneline.data.multimodal import prepare_multimodal_messages
from tuneline.data.multimodal_rendering import ProcessingClass, tokenize_any
from tuneline.data.rendering import Rows, tokenize_values
from tuneline.environments import Counts, Interaction
from tuneline.errors import DataError, RolloutError
from tuneline.rollout.protocol import Request, Rollout, RolloutEngine, Sampling

RolloutFunction = Callable[[list[Any], Any], Mapping[str, Any]]


@dataclass
class Drawn:
    """Rollouts and what is known of them; one entry a row."""

    rows: list[dict[str, Any]]
    rollouts: list[Rollout]
    completions: list[Any]  # text, or messages where the prompt is messages
    environments: list[Any] | None = None
    counts: Counts | None = None  # of tool calls

    def replace(self, positions: Sequence[int], other: Drawn) -> None:
        """Put the entries of `other` at these positions."""
        for place, i in enumerate(positions):
            self.rows[i], self.rollouts[i] = other.rows[place], other.rollouts[place]
            self.completions[i] = other.completions[place]
            if self.environments is not None and other.environments is not None:
                self.environments[i] = other.environments[place]
        if self.counts is not None and other.counts is not None:
            self.counts = self.counts + other.counts


def encode_prompts(
    tokenizer: ProcessingClass,
    rows: Sequence[Mapping[str, Any]],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of the rows' `prompt`, text or messages, the latter with the mark that opens the answer, or open
    where they end in the beginning of one; or `prompt_input_ids`, where all rows have them. Images are in `images`,
    `image`, or the messages."""
    given = [row.get("prompt_input_ids") for row in rows]
    if all(ids is not None for ids in given):
        return [list(ids) for ids in given if ids is not None]
    columns: dict[str, list[Any]] = {"prompt": [row["prompt"] for row in rows]}
    if any(row.get("tools") for row in rows):
        columns["tools"] = [row.get("tools") for row in rows]
    columns["chat_template_kwargs"] = [
        {**(chat_template_kwargs or {}), **(row.get("chat_template_kwargs") or {}), **_turn(row["prompt"])}
        for row in rows
    ]
    if any(has_images(row) for row in rows):
        columns["images"] = [row_images(row) for row in rows]
    table = Rows(columns, range(len(rows)))
    return tokenize_any(tokenizer, table, table.texts_or_messages("prompt"), add_generation_prompt=True)


def encode_images(tokenizer: ProcessingClass, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Tensor] | None]:
    """The images of the rows' prompts, as a model reads them; one object for equal rows that follow one another."""
    images: list[Mapping[str, Tensor] | None] = []
    for i, row in enumerate(rows):
        if i and row == rows[i - 1]:
            images.append(images[-1])
        elif isinstance(tokenizer, ProcessorMixin) and has_images(row):
            images.append(image_inputs(tokenizer, row_images(row)) or None)
        else:
            images.append(None)
    return images


def with_images_in_place(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose prompt, if it is messages, holds its images in their places, which is what reward functions see."""
    if not has_images(row) or not is_messages(row["prompt"]):
        return row
    return {**row, "prompt": prepare_multimodal_messages(to_messages(row["prompt"]), column_images(row))}


def _turn(prompt: Any) -> dict[str, Any]:
    """What tells the chat template to go on with an answer that has begun."""
    is_begun = is_messages(prompt) and bool(prompt) and prompt[-1]["role"] == "assistant"
    return {"add_generation_prompt": False, "continue_final_message": True} if is_begun else {}


def draw(
    engine: RolloutEngine,
    tokenizer: ProcessingClass,
    rows: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    interaction: Interaction | None = None,
    max_length: int | None = None,
) -> Drawn:
    """A rollout for each row; equal rows that follow one another are one request.

    Raises:
        DataError: a row without a prompt, or with one that is neither text nor messages.
        RolloutError: the engine failed.
    """
    if interaction is not None:
        rollouts, environments, counts = interaction.run(
            engine, rows, seeds, sampling, max_completion_length=sampling.max_new_tokens, max_length=max_length
        )
        completions = [_completion(tokenizer, row, rollout) for row, rollout in zip(rows, rollouts, strict=True)]
        return Drawn(list(rows), rollouts, completions, environments, counts)
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
    firsts = [rows[i] for i in starts]
    prompts, images = encode_prompts(tokenizer, firsts, chat_template_kwargs), encode_images(tokenizer, firsts)
    bounds = [*starts, len(rows)]
    requests = [
        Request(ids, seeds[start:end], _room(ids, sampling, max_length), own)
        for ids, own, start, end in zip(prompts, images, bounds, bounds[1:], strict=False)
    ]
    drawn = engine.generate(requests, sampling)
    rollouts = [
        Rollout(
            list(request.prompt_ids),
            one.ids,
            one.logprobs,
            one.is_finished,
            support=one.support,
            images=request.images,
        )
        for request, group in zip(requests, drawn, strict=True)
        for one in group
    ]
    completions = [_completion(tokenizer, row, rollout) for row, rollout in zip(rows, rollouts, strict=True)]
    return Drawn([with_images_in_place(row) for row in rows], rollouts, completions)


def draw_with(function: RolloutFunction, rows: Sequence[dict[str, Any]], trainer: Any) -> Drawn:
    """Rollouts by a user's function: it takes the prompts and the trainer, and gives `prompt_ids`, `completion_ids`,
    `logprobs`, perhaps `env_mask` (1 where the policy wrote), and further columns for the reward functions.

    Raises:
        RolloutError: something is missing, or has another length.
    """
    given = dict(function([row["prompt"] for row in rows], trainer))
    columns = {}
    for name in ("prompt_ids", "completion_ids", "logprobs"):
        if name not in given:
            raise RolloutError(
                f"rollout_func gave {sorted(given)} and no {name!r}; it has to give a list, one a prompt."
            )
    for name, values in given.items():
        columns[name] = values if isinstance(values, list) else [values] * len(rows)
        if len(columns[name]) != len(rows):
            raise RolloutError(
                f"rollout_func gave {len(columns[name])} {name!r} for {len(rows)} prompts; give one each."
            )
    own = {"prompt_ids", "completion_ids", "logprobs", "env_mask"}
    tokenizer = trainer.processing_class
    stops = set(trainer.sampling.stop_token_ids)
    rollouts, filled = [], []
    images = encode_images(tokenizer, rows)
    for i, row in enumerate(rows):
        ids = list(columns["completion_ids"][i])
        logprobs = columns["logprobs"][i]
        logprobs = [float("nan")] * len(ids) if logprobs is None else list(logprobs)
        mask = list(columns["env_mask"][i]) if columns.get("env_mask", [None])[0] is not None else None
        if not ids or len(logprobs) != len(ids) or (mask is not None and len(mask) != len(ids)):
            masked = "" if mask is None else f" and {len(mask)} env_mask entries"
            raise RolloutError(
                f"rollout_func gave completion {i} with {len(ids)} ids, {len(logprobs)} logprobs{masked}; give at "
                "least one, and as many of each."
            )
        extra = {name: values[i] for name, values in columns.items() if name not in own}
        prompt_ids, is_finished = list(columns["prompt_ids"][i]), ids[-1] in stops
        rollouts.append(Rollout(prompt_ids, ids, logprobs, is_finished, mask, images=images[i]))
        filled.append(with_images_in_place({**row, **extra}))
    completions = [_completion(tokenizer, row, rollout) for row, rollout in zip(rows, rollouts, strict=True)]
    return Drawn(filled, rollouts, completions)


def _completion(tokenizer: ProcessingClass, row: Mapping[str, Any], rollout: Rollout) -> Any:
    """What the reward functions see: in the notation of the prompt, without special tokens."""
    if rollout.messages is not None:
        return rollout.messages
    text = tokenizer_of(tokenizer).decode(rollout.completion_ids, skip_special_tokens=True)
    prompt = row["prompt"]
    if not is_messages(prompt):
        return text
    begun = prompt[-1]["content"] if prompt and prompt[-1]["role"] == "assistant" else ""
    if isinstance(begun, list):
        begun = "".join(part["text"] for part in begun)
    return [{"role": "assistant", "content": f"{begun}{text}"}]


def _room(prompt_ids: Sequence[int], sampling: Sampling, max_length: int | None, most: int | None = None) -> int | None:
    """Tokens that a completion may have, of `most` or the sampling's; None for these."""
    if max_length is None:
        return None
    room = max_length - len(prompt_ids)
    if room < 1:
        raise DataError(
            f"A prompt has {len(prompt_ids)} tokens, which leaves no room for a completion within max_length="
            f"{max_length}; raise it, or leave such prompts out of the data."
        )
    return min(room, sampling.max_new_tokens if most is None else most)


def read_out(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_length: int | None = None,
) -> Drawn:
    """The rows' own `completion`s, text or messages, as if they had been drawn; no sampler gave them probabilities.

    Text ends with the tokenizer's end token. What does not fit `max_length` is cut off, and so not finished.

    Raises:
        DataError: a row that is neither text nor messages, or a prompt with no room for its completion.
    """
    prompts = encode_prompts(tokenizer, rows, chat_template_kwargs)
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("prompt", "completion")}
    columns["chat_template_kwargs"] = [
        {**(chat_template_kwargs or {}), **(row.get("chat_template_kwargs") or {})} for row in rows
    ]
    if any(row.get("tools") for row in rows):
        columns["tools"] = [row.get("tools") for row in rows]
    table = Rows(columns, range(len(rows)))
    whole = tokenize_values(tokenizer, table, table.joined("prompt", "completion"), eos_token=tokenizer.eos_token)
    rollouts = []
    for number, (prompt_ids, ids) in enumerate(zip(prompts, whole, strict=True)):
        begin = common_prefix_length(prompt_ids, ids)
        room = _room(ids[:begin], sampling, max_length, most=len(ids))
        completion = ids[begin:] if room is None else ids[begin:][:room]
        if not completion:
            raise DataError(f"row {number} of a batch has an empty completion; leave such rows out of the data.")
        is_finished = completion[-1] in sampling.stop_token_ids
        rollouts.append(Rollout(ids[:begin], completion, [float("nan")] * len(completion), is_finished))
    return Drawn(list(rows), rollouts, [row["completion"] for row in rows])


def woven(rows: Sequence[dict[str, Any]], parts: Sequence[tuple[Sequence[int], Drawn]]) -> Drawn:
    """One of several, each with the places of its entries."""
    rollouts = {i: one for places, drawn in parts for i, one in zip(places, drawn.rollouts, strict=True)}
    completions = {i: one for places, drawn in parts for i, one in zip(places, drawn.completions, strict=True)}
    every = range(len(rows))
    return Drawn(list(rows), [rollouts[i] for i in every], [completions[i] for i in every])
