"""Images of a data set's rows: where they stand, how they are opened, and what a model is given of them.

A row has them in the column `images`, a list, or `image`, a single one; or within its messages, in parts
`{"type": "image", "image": ...}`. An image is a PIL image, an array, a file's path or address, or Arrow's
`{"bytes": ..., "path": ...}`. Pixels are made of them when a batch is put together and never stored.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import load_image

from tuneline.data.formats import Messages, is_messages, to_messages
from tuneline.data.multimodal import prepare_multimodal_messages
from tuneline.errors import DataError

IMAGE_COLUMNS = ("images", "image")
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_MAY_HOLD_IMAGES = ("prompt", "messages", "conversations", "chosen")  # the first of them that a row has


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or that of a processor."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def has_images(row: Mapping[str, Any]) -> bool:
    """Whether the rows of a data set that begins with this one bring images along."""
    return any(name in row for name in IMAGE_COLUMNS) or _within_messages(row) is not None


def column_images(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row's columns, in their order."""
    images = row.get("images")
    if images is None:
        image = row.get("image")
        return [] if image is None else [image]
    return list(images) if isinstance(images, list | tuple) else [images]


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """The images of a row in the order of their places, those of its columns and those within its messages.

    Raises:
        DataError: another number of images than of places.
    """
    images, name = column_images(row), _within_messages(row)
    if name is None:
        return images
    messages = prepare_multimodal_messages(to_messages(row[name]), images)
    return [part["image"] for part in _parts(messages)]


def drawn_from(row: Mapping[str, Any]) -> list[Any]:
    """The images of a prompt whose messages have them in their places; of a prompt of text those of the columns."""
    prompt = row["prompt"]
    return [part["image"] for part in _parts(prompt)] if is_messages(prompt) else column_images(row)


def with_places_alone(messages: Messages) -> Messages:
    """Messages without the images that stand within them, of which the places are left."""
    return [
        {**message, "content": [_place(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def with_image_column(dataset: Any, first: Mapping[str, Any]) -> Any:
    """A data set with images within its messages, given them in a column `images` too; any other as it is."""
    if _within_messages(first) is None:
        return dataset

    def gather(row: dict[str, Any]) -> dict[str, Any]:
        return {"images": [storable_image(image) for image in row_images(row)]}

    if isinstance(dataset, IterableDataset):
        return dataset.map(gather)
    stored = List({"bytes": Value("binary"), "path": Value("string")})
    return dataset.map(gather, features=Features({**dataset.features, "images": stored}), desc="Images")


def open_image(image: Any) -> Image.Image:
    """An image of whichever of the kinds above, with its pixels read.

    Raises:
        DataError: there is no such file, it is no image or a damaged one, or its address does not answer.
    """
    try:
        match image:
            case Image.Image():
                return image
            case {"bytes": bytes(content)} if content:
                return _read(io.BytesIO(content))
            case {"path": str(path)}:
                return open_image(path)
            case str() | Path() if not str(image).startswith(("http://", "https://", "data:")):
                return _read(image)
            case str():
                return _fetched(image)
            case np.ndarray() | list():
                return Image.fromarray(np.asarray(image, dtype=np.uint8))
    except FileNotFoundError:
        raise DataError(f"the image {str(image)!r} is not there; paths are read from {Path.cwd()}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, TypeError) as error:
        raise DataError(f"an image cannot be read ({_shown(image)}): {error}") from error
    raise DataError(f"{_shown(image)} is no image; give a PIL image, an array, a path, or {{'bytes', 'path'}}.")


def _read(source: Any) -> Image.Image:
    """From a path or a file; its pixels too, as a file that was cut off shows by them alone."""
    image = Image.open(source)
    image.load()
    return image


def _fetched(address: str) -> Image.Image:
    try:
        return load_image(address, timeout=60)
    except Exception as error:  # those of whichever client transformers fetches with
        raise DataError(f"the image {_shown(address)} cannot be fetched: {error}") from error


def image_inputs(processor: ProcessorMixin, images: Sequence[Any]) -> dict[str, Tensor]:
    """What a model's forward reads of a row's images, by name; nothing of none."""
    if not images:
        return {}
    places = processor.image_token * len(images)
    opened = [open_image(image) for image in images]
    found = processor(images=[opened], text=[places], add_special_tokens=False, return_tensors="pt")
    return {name: torch.as_tensor(value) for name, value in found.items() if name not in _OF_TEXT}


def image_token_ids(processing_class: Any) -> list[int]:
    """The tokens that stand for images; none of a tokenizer."""
    if not isinstance(processing_class, ProcessorMixin):
        return []
    return [i for i in processing_class.image_token_ids if i is not None]


def check_images_are_read(processing_class: Any, dataset: Dataset | IterableDataset | None, name: str) -> bool:
    """Whether a data set has images.

    Raises:
        DataError: it has, and a tokenizer alone is given.
    """
    first = None if dataset is None else next(iter(dataset), None)
    if first is None or not has_images(first):
        return False
    if not isinstance(processing_class, ProcessorMixin):
        raise DataError(
            f"{name} has images, and processing_class is a tokenizer; pass a vision-language model and its processor "
            "(AutoProcessor.from_pretrained), or remove the column with the images."
        )
    return True


def _within_messages(row: Mapping[str, Any]) -> str | None:
    """The column whose messages hold images themselves; None where none does."""
    for name in _MAY_HOLD_IMAGES:
        if is_messages(row.get(name)):
            return name if any(part.get("image") is not None for part in _parts(row[name])) else None
    return None


def _parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    contents = [message.get("content") for message in messages if message["role"] != "tool"]
    return [part for content in contents if isinstance(content, list) for part in content if part["type"] == "image"]


def _place(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else dict(part)


def storable_image(image: Any) -> dict[str, Any]:
    """An image as Arrow's `{"bytes": ..., "path": ...}`, without loss."""
    if isinstance(image, str):
        return {"bytes": None, "path": image}
    if isinstance(image, Mapping):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    content = io.BytesIO()
    open_image(image).save(content, format="PNG")  # which loses nothing
    return {"bytes": content.getvalue(), "path": None}


def _shown(image: Any) -> str:
    return f"{image!r}"[:80]
