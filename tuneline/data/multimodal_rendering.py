"""Rows of text and messages as token ids by a tokenizer or, with their images, by a processor, as TRL 1.16 renders
them.

A processor puts as many image tokens in an image's place as the image takes. What stands beside images as plain text
is taken as it is, special tokens and end included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from tuneline.data.formats import Messages
from tuneline.data.images import IMAGE_COLUMNS, column_images, image_token_ids, open_image, with_places_alone
from tuneline.data.multimodal import prepare_multimodal_messages
from tuneline.data.rendering import (
    REFUSALS,
    Rows,
    has_generation_markers,
    no_generation_marks,
    no_template,
    refused,
    tokenize_texts,
    tokenize_values,
    tokenize_with_assistant_masks,
)
from tuneline.errors import DataError

ProcessingClass: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin


def tokenize_any(
    processing_class: ProcessingClass,
    rows: Rows,
    values: Sequence[str | Messages],
    *,
    eos_token: str | None = None,
    add_generation_prompt: bool = False,
    chat_template: str | None = None,
) -> list[list[int]]:
    """Token ids of strings and dialogues in any mixture; see `tokenize_values`.

    Raises:
        DataError: a row has another number of images than of places, or one that cannot be read.
    """
    if not isinstance(processing_class, ProcessorMixin):
        options: dict[str, Any] = {"eos_token": eos_token, "add_generation_prompt": add_generation_prompt}
        return tokenize_values(processing_class, rows, values, chat_template=chat_template, **options)
    arguments = rows.template_arguments(chat_template)
    has_columns = any(name in rows.columns for name in IMAGE_COLUMNS)
    ids: list[list[int]] = []
    for i, value in enumerate(values):
        images = _images(rows, i)
        if isinstance(value, str):
            ends = eos_token is None or value.endswith(eos_token)
            text, special = value if ends else f"{value}{eos_token}", not has_columns
        else:
            options = {"add_generation_prompt": add_generation_prompt, **arguments[i]}
            text, special = _rendered(processing_class, rows, i, value, images, options), False
        num_places = text.count(processing_class.image_token)
        if num_places != len(images):
            column = next((name for name in IMAGE_COLUMNS if name in rows.columns), "images")
            problem = f"has {len(images)} images, and the text has {num_places} places for them"
            raise rows.error(i, column, f"{problem} ({processing_class.image_token})")
        ids.append(_ids(processing_class, text, images, special))
    return ids


def tokenize_any_with_masks(
    processing_class: ProcessingClass,
    rows: Rows,
    values: Sequence[str | Messages],
    *,
    chat_template: str | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of dialogues, and 1 for each token that the template marks as the assistant's; see
    `tokenize_with_assistant_masks`."""
    if not isinstance(processing_class, ProcessorMixin):
        return tokenize_with_assistant_masks(processing_class, rows, values, chat_template=chat_template)
    template = chat_template or processing_class.chat_template
    if template is None:
        raise no_template()
    if not has_generation_markers(template):
        raise no_generation_marks()
    arguments = rows.template_arguments(chat_template)
    ids, masks = [], []
    for i, value in enumerate(values):
        if isinstance(value, str):
            raise rows.error(i, "text", "is plain text, and assistant_only_loss=True needs messages")
        messages = _placed(rows, i, value, _images(rows, i))
        options = {**arguments[i], "tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        try:
            found = processing_class.apply_chat_template(
                [messages], processor_kwargs={"add_special_tokens": False}, **options
            )
        except REFUSALS as error:
            raise refused(rows, i, error) from error
        ids.append(list(found["input_ids"][0]))
        masks.append(list(found["assistant_masks"][0]))
    return ids, masks


def check_images_are_whole(
    processing_class: ProcessingClass,
    rows: Rows,
    i: int,
    whole: Sequence[int],
    kept: Sequence[int],
    max_length: int | None,
) -> None:
    """Raises:
    DataError: what is kept of a row has lost some of its image tokens.
    """
    places = set(image_token_ids(processing_class))
    if not places:
        return
    num_lost = sum(token in places for token in whole) - sum(token in places for token in kept)
    if num_lost:
        raise DataError(
            f"Row {rows.numbers[i]} of the dataset: max_length={max_length} would cut off {num_lost} of its image "
            f"tokens, and the images would no longer fit the text ({len(whole)} tokens). Raise max_length, set it to "
            "None, or have the image processor make images smaller."
        )


def _rendered(
    processor: ProcessorMixin, rows: Rows, i: int, messages: Messages, images: Sequence[Any], options: Mapping[str, Any]
) -> str:
    if processor.chat_template is None and "chat_template" not in options:
        raise no_template()
    prepared = _placed(rows, i, messages, images)
    try:
        return processor.apply_chat_template(prepared, tokenize=False, **options)
    except REFUSALS as error:
        raise refused(rows, i, error) from error


def _placed(rows: Rows, i: int, messages: Messages, images: Sequence[Any]) -> Messages:
    try:
        return prepare_multimodal_messages(with_places_alone(messages), images)
    except DataError as error:
        raise DataError(f"Row {rows.numbers[i]} of the dataset: {error}") from error


def _images(rows: Rows, i: int) -> list[Any]:
    row = {name: rows.columns[name][i] for name in IMAGE_COLUMNS if name in rows.columns}
    try:
        return [open_image(image) for image in column_images(row)]
    except DataError as error:
        raise DataError(f"Row {rows.numbers[i]} of the dataset: {error}") from error


def _ids(processor: ProcessorMixin, text: str, images: Sequence[Any], special: bool) -> list[int]:
    if not images:
        return tokenize_texts(processor.tokenizer, [text], add_special_tokens=special)[0]
    return list(processor(images=[list(images)], text=[text], add_special_tokens=special)["input_ids"][0])
