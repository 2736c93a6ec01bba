"""What becomes of rows with images: token ids, targets, and the errors of rows that cannot be read."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, IterableDataset, List

from tests.models import tiny_causal_lm
from tests.trainers.rows import character_tokenizer
from tests.vision.build import build
from tests.vision.models import ARCHITECTURES, IMAGE_TOKEN, drawn_image, tiny_processor, tiny_vlm
from tests.vision.rows import asked, demonstrations, dialogues, images_of, preferences, said
from tuneline.data.images import image_inputs, open_image, row_images
from tuneline.data.tokenize import tokenize_for_preference, tokenize_for_sft
from tuneline.errors import ConfigError, DataError, ModelError
from tuneline.trainers.collators import WithImages, collate_preferences, collate_texts


def tokenized(rows, architecture="qwen", max_length=None, **options):
    return tokenize_for_sft(rows, tiny_processor(architecture), max_length=max_length, **options).dataset


def one_row(**columns):
    return Dataset.from_list([{"prompt": asked(3), "completion": said("it is"), **columns}])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_has_as_many_tokens_as_its_processor_says_and_none_is_a_target(architecture):
    processor, token = tiny_processor(architecture), IMAGE_TOKEN[architecture]
    rows = tokenized(dialogues(8), architecture)
    for i, row in enumerate(rows):
        ids, is_target = np.array(row["input_ids"]), np.array(row["is_target"])
        pixels = image_inputs(processor, row["images"])
        if architecture == "qwen":  # a token for each two by two patches
            expected = int(pixels["image_grid_thw"].prod(1).sum()) // 4 if pixels else 0
        else:
            expected = 4 * len(images_of(i))
        assert (ids == token).sum() == expected
        assert not is_target[ids == token].any()
        assert is_target[1:][ids[1:] != token].all()


def test_the_prompt_of_both_sides_is_one_and_holds_the_images():
    rows = tokenize_for_preference(preferences(4), tiny_processor("qwen"), max_length=None).dataset
    token = IMAGE_TOKEN["qwen"]
    assert [row["prompt_ids"].count(token) > 0 for row in rows] == [True, True, False, True]
    assert not any(token in row["chosen_ids"] + row["rejected_ids"] for row in rows)
    trees = WithImages(collate_preferences, tiny_processor("qwen"))([rows[1], rows[2]])
    assert [len(own.get("image_grid_thw", [])) for own in trees.images.by_tree] == [2, 0]
    assert len(trees.images.of_sequences(trees.tree_ids)["image_grid_thw"]) == 4  # two images, for both sides


def test_tiles_of_images_of_other_shapes_are_filled_up_to_one_batch():
    processor = tiny_processor("idefics", splits=True)
    rows = [
        {"input_ids": [5, 6], "is_target": [1, 1], "images": [drawn_image(k, *size)]}
        for k, size in enumerate([(32, 16), (64, 64)])
    ]
    trees = WithImages(collate_texts, processor)(rows)
    tiles = [own["pixel_values"].shape[1] for own in trees.images.by_tree]
    assert tiles[0] != tiles[1]
    pixels = trees.images.of_sequences(trees.tree_ids)["pixel_values"]
    assert pixels.shape[:2] == (2, max(tiles))
    fewer = int(np.argmin(tiles))
    assert not pixels[fewer, min(tiles) :].any()


@pytest.mark.parametrize("kind", ["column of one", "path", "bytes", "within messages", "plain text"])
def test_an_image_may_come_in_any_way(tmp_path, kind):
    image = drawn_image(7)
    image.save(tmp_path / "seven.png")
    expected = tokenized(Dataset.from_list([{"images": [image], "messages": asked(0) + said("yes")}]))[0]
    messages = asked(0) + said("yes")
    match kind:
        case "column of one":
            row = {"image": image, "messages": messages}
        case "path":
            row = {"images": [str(tmp_path / "seven.png")], "messages": messages}
        case "bytes":
            row = {"images": [{"bytes": (tmp_path / "seven.png").read_bytes(), "path": None}], "messages": messages}
        case "within messages":
            parts = [{"type": "image", "image": str(tmp_path / "seven.png")}, {"type": "text", "text": "what is 0?"}]
            row = {"messages": [{"role": "user", "content": parts}, *said("yes")]}
        case "plain text":
            template = tiny_processor("qwen").apply_chat_template
            row = {"images": [image], "text": template(messages, tokenize=False)}
    [found] = tokenized(Dataset.from_list([row]))
    assert (found["input_ids"], found["is_target"]) == (expected["input_ids"], expected["is_target"])
    [own] = WithImages(collate_texts, tiny_processor("qwen"))([found]).images.by_tree
    assert torch.equal(own["pixel_values"], image_inputs(tiny_processor("qwen"), [image])["pixel_values"])


def test_a_stream_and_a_file_of_rows_read_alike(tmp_path):
    whole = demonstrations(4)
    stream = IterableDataset.from_generator(lambda: iter(whole))
    assert [row["input_ids"] for row in tokenized(stream)] == tokenized(whole)["input_ids"]
    whole.to_parquet(tmp_path / "rows.parquet")
    read = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features["images"] == List(Image())
    assert tokenized(read)["input_ids"] == tokenized(whole)["input_ids"]


def test_images_within_messages_stand_between_those_of_the_column():
    parts = [{"type": "image"}, {"type": "image", "image": "own.png", "text": None}, {"type": "text", "text": "?"}]
    row = {"prompt": [{"role": "user", "content": parts}], "images": ["first.png"]}
    assert row_images(row) == ["first.png", "own.png"]


def half_a_picture():
    content = io.BytesIO()
    drawn_image(0).save(content, format="PNG")
    return content.getvalue()[: len(content.getvalue()) // 2]


HALF_A_PICTURE = half_a_picture()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"Row 0 .* have 1 places for images, and 0 images are given"),
        ([drawn_image(0), drawn_image(1)], r"Row 0 .* have 1 places for images, and 2 images are given"),
        (["no/such.png"], r"Row 0 of the dataset: the image 'no/such\.png' is not there; paths are read from"),
        ([{"bytes": b"no picture", "path": None}], r"Row 0 of the dataset: an image cannot be read"),
        ([{"bytes": HALF_A_PICTURE, "path": None}], r"Row 0 of the dataset: an image cannot be read .*truncated"),
        (["http://127.0.0.1:1/x.png"], r"Row 0 of the dataset: the image 'http.*x\.png' cannot be fetched"),
    ],
)
def test_images_that_do_not_fit_are_told_by_their_row(images, message):
    with pytest.raises(DataError, match=message):
        tokenized(one_row(images=images))


def test_places_in_plain_text_are_counted():
    rows = Dataset.from_list([{"images": [drawn_image(0)], "text": "what is it?"}])
    with pytest.raises(DataError, match=r"Row 0 .*'images' has 1 images, and the text has 0 places"):
        tokenized(rows)


def test_what_is_no_image_is_named():
    with pytest.raises(DataError, match="7 is no image; give a PIL image, an array, a path"):
        open_image(7)
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    assert open_image(array).size == (5, 4)
    content = io.BytesIO()
    drawn_image(0).save(content, format="PNG")
    assert open_image({"bytes": content.getvalue(), "path": "somewhere/else.png"}).size == (16, 16)


@pytest.mark.parametrize("truncation_mode", ["keep_start", "keep_end"])
def test_a_cut_through_an_image_is_an_error(truncation_mode):
    rows = dialogues(1)
    whole = tokenized(rows)[0]["input_ids"]
    first, last = whole.index(7), len(whole) - whole[::-1].index(7)
    fits = last if truncation_mode == "keep_start" else len(whole) - first
    options = {"truncation_mode": truncation_mode}
    assert len(tokenized(rows, max_length=fits + 1, **options)[0]["input_ids"]) == fits + 1
    with pytest.raises(DataError, match=rf"Row 0 .*max_length={fits - 2} would cut off 2 of its image tokens.*Raise"):
        tokenized(rows, max_length=fits - 2, **options)


def test_a_prompt_whose_images_are_too_long_is_an_error_too():
    with pytest.raises(DataError, match=r"max_length=10 would cut off .* of its image tokens"):
        tokenize_for_preference(preferences(1), tiny_processor("qwen"), max_length=10)


def test_what_goes_with_no_images_is_said_before_training(tmp_path):
    with pytest.raises(ConfigError, match="packing=True joins texts, and the data set has images"):
        build("sft", tmp_path, options={"packing": True, "max_length": 64})
    with pytest.raises(DataError, match="has images, and processing_class is a tokenizer; pass a vision-lang"):
        build("sft", tmp_path, model=tiny_causal_lm(), processing_class=character_tokenizer())
    with pytest.raises(ConfigError, match=r"whose image tokens are \[10\], and the model's image_token_id is 7"):
        build("dpo", tmp_path, model=tiny_vlm("qwen"), processing_class=tiny_processor("idefics"))
    with pytest.raises(ConfigError, match="use_vllm=True, and the data set has images"):
        build("grpo", tmp_path, options={"use_vllm": True})
    with pytest.raises(ConfigError, match="answer in text, and the data set has images"):
        build("grpo", tmp_path, tools=[lookup])


def test_a_template_without_marks_cannot_tell_what_the_assistant_says(tmp_path):
    processor = tiny_processor("qwen")
    for mark in ("{% generation %}", "{% endgeneration %}"):
        processor.chat_template = processor.chat_template.replace(mark, "")
    options = {"assistant_only_loss": True}
    with pytest.raises(ModelError, match="this one has no such marks"):
        build("sft", tmp_path, train_dataset=dialogues(2), processing_class=processor, options=options)


def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: The word.
    """
    return word


def test_text_alone_trains_a_vision_language_model_too(tmp_path):
    rows = Dataset.from_list([{"prompt": "two and two?", "completion": " four"}] * 4)
    trainer = build("sft", tmp_path, train_dataset=rows)
    trainer.train()
    assert trainer.train_dataset[0]["input_ids"][-1] == 1  # the end token, as for any model
