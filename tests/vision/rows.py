"""Rows with images for the trainers' tests."""

from typing import Any

from datasets import Dataset

from tests.vision.models import drawn_image


def images_of(i: int) -> list[Any]:
    """Of row `i`: none, one or two images, of several shapes."""
    return [drawn_image(10 * i + k, 16 + 8 * (i % 3), 24) for k in range((1, 2, 0, 1)[i % 4])]


def asked(i: int) -> list[dict[str, Any]]:
    places = [{"type": "image"} for _ in images_of(i)]
    return [{"role": "user", "content": [*places, {"type": "text", "text": f"what is {i}?"}]}]


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def demonstrations(num_rows: int = 8) -> Dataset:
    return Dataset.from_list(
        [
            {"images": images_of(i), "prompt": asked(i), "completion": said(f"it is {i}" + " so" * (i % 3))}
            for i in range(num_rows)
        ]
    )


def dialogues(num_rows: int = 8) -> Dataset:
    return Dataset.from_list(
        [{"images": images_of(i), "messages": asked(i) + said(f"it is {i * i}")} for i in range(num_rows)]
    )


def preferences(num_rows: int = 8) -> Dataset:
    return Dataset.from_list(
        [
            {
                "images": images_of(i),
                "prompt": asked(i),
                "chosen": said(f"it is {i}" + " yes" * (i % 2)),
                "rejected": said("no idea" + " at all" * (i % 3)),
            }
            for i in range(num_rows)
        ]
    )


def questions(num_rows: int = 4) -> Dataset:
    return Dataset.from_list([{"images": images_of(i), "prompt": asked(i)} for i in range(num_rows)])


def judged(num_rows: int = 8) -> Dataset:
    rows = [
        {"images": images_of(i), "prompt": asked(i), "completion": said(f"it is {i}"), "label": i % 2 == 0}
        for i in range(num_rows)
    ]
    return Dataset.from_list(rows)
