"""A small vision-language model learns to name the colour that it is shown: SFT, then GRPO.

    python examples/name_the_colour.py

Model and processor are made from a configuration, and the images are drawn here: nothing is downloaded, and torchvision
is not needed. The demonstrations name another colour half of the time, so that the model comes to speak of colours and
is often wrong. GRPO rewards the right name, and the model learns to look. On two processor cores this takes a minute
or two. With a model of your own leave out `make_policy`, and give its name instead.
"""

from __future__ import annotations

import tempfile
from random import Random

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedModel
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tuneline import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from tuneline.evaluation.intervals import Interval, wilson_interval
from tuneline.models.tiny import make_tokenizer
from tuneline.rollout.protocol import Sampling, rollout_seed
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.drawing import draw

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 210), "grey": (128, 128, 128)}
PROMPT = [{"role": "user", "content": "Which?"}]  # the image goes in front
TEMPLATE = (
    "{% for message in messages %}{{ '<|' ~ message.role ~ '|>' }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
QUIET = {"report_to": "none", "save_strategy": "no", "bf16": False, "gradient_checkpointing": False}


def make_policy(seed: int = 0) -> tuple[PreTrainedModel, Idefics3Processor]:
    """A model of 0.1 million parameters that reads images of 16 by 16 pixels as four tokens each."""
    size = {"longest_edge": 16}
    pixels = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    processor = Idefics3Processor(pixels, make_tokenizer(), image_seq_len=4, chat_template=TEMPLATE)
    tokenizer = processor.tokenizer
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.1,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 4, "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=processor.image_token_id
    )
    return Idefics3ForConditionalGeneration(config), processor


def shown(colour: str, seed: int) -> Image.Image:
    """A square of a colour, with noise."""
    noise = np.random.default_rng(seed).normal(0, 25, (16, 16, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def rows(num_rows: int, seed: int) -> Dataset:
    """Images with the right name, and with the name that a demonstration says."""
    random = Random(seed)
    made = []
    for i in range(num_rows):
        colour = random.choice(list(COLOURS))
        said = colour if random.random() < 0.5 else random.choice(list(COLOURS))
        answer = [{"role": "assistant", "content": said}]
        image = shown(colour, 1_000_000 * seed + i)
        made.append({"images": [image], "prompt": PROMPT, "completion": answer, "colour": colour})
    return Dataset.from_list(made)


def names_it(completions: list, colour: list[str], **columns: object) -> list[float]:
    """The reward: 1 for the right name and nothing else."""
    return [float(one[0]["content"] == name) for one, name in zip(completions, colour, strict=True)]


def share_right(model: PreTrainedModel, processor: Idefics3Processor, num_images: int = 100) -> Interval:
    """How many of fresh images are named rightly, with a 95% interval."""
    asked = list(rows(num_images, seed=9).remove_columns("completion"))
    sampling = Sampling(max_new_tokens=8, stop_token_ids=(processor.tokenizer.eos_token_id,))
    seeds = [rollout_seed("asked", i) for i in range(num_images)]
    drawn = draw(TransformersEngine(model), processor, asked, seeds, sampling)
    num_right = sum(names_it(drawn.completions, [row["colour"] for row in asked]))
    return wilson_interval(int(num_right), num_images)


def main(output_dir: str) -> tuple[Interval, Interval]:
    """Train, and say how many images are named rightly before GRPO and after it."""
    model, processor = make_policy()
    sft = SFTTrainer(
        model,
        SFTConfig(
            output_dir=output_dir, max_steps=60, per_device_train_batch_size=16, learning_rate=5e-3, **QUIET
        ),
        train_dataset=rows(400, seed=1),
        processing_class=processor,
    )  # fmt: skip
    sft.train()
    before = share_right(model, processor)
    grpo = GRPOTrainer(
        model,
        names_it,
        GRPOConfig(
            output_dir=output_dir, max_steps=25, per_device_train_batch_size=64, num_generations=16,
            max_completion_length=8, learning_rate=2e-3, lr_scheduler_type="constant", **QUIET,
        ),
        train_dataset=rows(400, seed=2).remove_columns("completion"),
        processing_class=processor,
    )  # fmt: skip
    grpo.train()
    after = share_right(model, processor)
    print(f"named rightly: {before.estimate:.2f} before GRPO, {after.estimate:.2f} after it")
    return before, after


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
