"""Tiny vision-language models made from a configuration, their processors, and rows with images drawn from a seed.

Image processors are those of PIL, which need no torchvision; so Qwen's processor is one without videos.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.models import spread

ARCHITECTURES = ("qwen", "idefics")
_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789.?:!\n"
_SPECIAL = [
    "<pad>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>",
]  # fmt: skip
TOKEN = {token: i for i, token in enumerate([*_SPECIAL, *_ALPHABET])}
IMAGE_TOKEN = {"qwen": TOKEN["<|image_pad|>"], "idefics": TOKEN["<image>"]}
_PLACE = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "idefics": "<image>"}

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>{% endgeneration %}\n"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT_SIZES: dict[str, Any] = dict(
    vocab_size=len(TOKEN),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor without its part for videos, which cannot be made without torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(tokenizer_models.WordLevel(TOKEN, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=_SPECIAL[3:],
        model_max_length=4096,
    )


def tiny_processor(architecture: str, *, splits: bool = False) -> ProcessorMixin:
    """`splits`: idefics cuts an image into tiles, whose number depends on its shape."""
    template = _TEMPLATE.replace("PLACE", _PLACE[architecture])
    match architecture:
        case "qwen":
            images = Qwen2VLImageProcessorPil(
                patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=768
            )
            return ImageProcessor(images, tiny_tokenizer(), chat_template=template)
        case "idefics":
            sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
            images = Idefics3ImageProcessorPil(do_image_splitting=splits, **sizes)
            return Idefics3Processor(images, tiny_tokenizer(), image_seq_len=4, chat_template=template)
    raise ValueError(architecture)


def tiny_vlm(architecture: str = "qwen", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel
    match architecture:
        case "qwen":
            vision = dict(
                depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, window_size=16,
                out_hidden_size=32, fullatt_block_indexes=[1], spatial_merge_size=2, temporal_patch_size=2,
            )  # fmt: skip
            rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
            tokens = {
                "image_token_id": TOKEN["<|image_pad|>"],
                "video_token_id": TOKEN["<|video_pad|>"],
                "vision_start_token_id": TOKEN["<|vision_start|>"],
                "vision_end_token_id": TOKEN["<|vision_end|>"],
            }
            config = Qwen2_5_VLConfig(
                text_config={**_TEXT_SIZES, "rope_parameters": rope}, vision_config=vision, **tokens
            )
            model = Qwen2_5_VLForConditionalGeneration(config)
        case "idefics":
            vision = dict(
                hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                patch_size=4,
            )  # fmt: skip
            config = Idefics3Config(
                text_config={"model_type": "llama", "head_dim": 8, **_TEXT_SIZES},
                vision_config=vision,
                scale_factor=2,
                image_token_id=TOKEN["<image>"],
                pad_token_id=0,
            )
            model = Idefics3ForConditionalGeneration(config)
        case _:
            raise ValueError(architecture)
    model.generation_config.eos_token_id = 1
    return spread(model)


def drawn_image(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Smooth patches of colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
