"""Completions drawn with images: those of the model's own generation, and of the images that they are scored with."""

import math

import pytest
import torch
from datasets import Dataset

from tests.vision.build import build
from tests.vision.models import ARCHITECTURES, IMAGE_TOKEN, drawn_image, tiny_processor, tiny_vlm
from tests.vision.rows import asked, images_of, questions
from tuneline.data.images import image_inputs, open_image
from tuneline.errors import DataError, RolloutError
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.images import refuse_images
from tuneline.rollout.protocol import Request, Rollout, Sampling
from tuneline.rollout.transformers_engine import TransformersEngine
from tuneline.trainers.drawing import draw, encode_images, encode_prompts
from tuneline.trainers.experience import lay_out_rollouts


def requests(architecture, seeds=(1, 2)):
    processor, rows = tiny_processor(architecture), list(questions(4))
    prompts = zip(encode_prompts(processor, rows), encode_images(processor, rows), strict=True)
    return [Request(ids, seeds, images=images) for ids, images in prompts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_likeliest_completions_are_those_of_generate(architecture):
    """Prompts with one image, two of another shape, and none, side by side."""
    model, processor = tiny_vlm(architecture).eval(), tiny_processor(architecture)
    sampling = Sampling(max_new_tokens=8, temperature=0, stop_token_ids=(1,))
    drawn = TransformersEngine(model).generate(requests(architecture, (0,)), sampling)
    for i, [completion] in enumerate(drawn):
        text = processor.apply_chat_template(asked(i), tokenize=False, add_generation_prompt=True)
        images = {"images": [images_of(i)]} if images_of(i) else {}
        inputs = processor(text=[text], return_tensors="pt", add_special_tokens=False, **images)
        written = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[IMAGE_TOKEN[architecture]], pad_token_id=0
        )
        assert completion.ids == written[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_samplers_probabilities_are_those_of_the_scoring_pass(architecture):
    model = tiny_vlm(architecture).eval()
    prepare_for_trees(model)
    asks = requests(architecture)
    drawn = TransformersEngine(model).generate(asks, Sampling(max_new_tokens=6))
    rollouts = [
        Rollout(list(ask.prompt_ids), one.ids, one.logprobs, one.is_finished, images=ask.images)
        for ask, group in zip(asks, drawn, strict=True)
        for one in group
    ]
    trees = lay_out_rollouts(rollouts)
    assert len(trees) == 4
    assert [bool(own) for own in trees.images.by_tree] == [True, True, False, True]
    found = token_logprobs(model, trees).logprobs
    sampled = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
    # the sampler leaves out the token that stands for an image; what it would have had is a small share
    assert (found - sampled).abs().max() < 0.2
    assert (found - sampled).abs().median() < 0.02


def test_an_image_is_never_written():
    model = tiny_vlm("qwen").eval()
    with torch.no_grad():  # of the tokens the image's is the likeliest by far
        model.lm_head.weight[IMAGE_TOKEN["qwen"]] = 50 * model.lm_head.weight[30]
    for temperature in (0, 1.0):
        drawn = TransformersEngine(model).generate(
            requests("qwen", (1, 2, 3)), Sampling(max_new_tokens=8, temperature=temperature)
        )
        for one in (one for group in drawn for one in group):
            assert IMAGE_TOKEN["qwen"] not in one.ids
            assert all(math.isfinite(logprob) for logprob in one.logprobs)


def test_a_completion_depends_on_its_images_and_its_seed_alone():
    model, asks = tiny_vlm("qwen").eval(), requests("qwen", (5, 6))
    sampling = Sampling(max_new_tokens=6)
    together = TransformersEngine(model).generate(asks, sampling)
    alone = [TransformersEngine(model, batch_size=1).generate([ask], sampling)[0] for ask in reversed(asks)]
    assert [[one.ids for one in group] for group in together] == [[one.ids for one in group] for group in alone[::-1]]
    # prompts of the same tokens with other images are other prompts
    images = image_inputs(tiny_processor("qwen"), [drawn_image(99, 16, 24)])
    assert images.keys() == asks[0].images.keys()
    first, other = TransformersEngine(model).generate(
        [asks[0], Request(asks[0].prompt_ids, (5, 6), images=images)], sampling
    )
    assert [one.ids for one in first] == [one.ids for one in together[0]]
    assert [one.ids for one in other] != [one.ids for one in first]


def test_generation_leaves_the_attention_of_images_and_text_as_it_was():
    model = tiny_vlm("qwen")
    before = [model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation]
    TransformersEngine(model).generate(requests("qwen"), Sampling(max_new_tokens=2))
    after = [model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation]
    assert after == before
    assert model.training


def test_a_prompt_that_ends_with_an_image_is_refused():
    ask = requests("qwen")[0]
    end = max(i for i, token in enumerate(ask.prompt_ids) if token == IMAGE_TOKEN["qwen"]) + 1
    with pytest.raises(DataError, match="a prompt ends with an image; let words follow it"):
        TransformersEngine(tiny_vlm("qwen")).generate(
            [Request(ask.prompt_ids[:end], (1,), images=ask.images)], Sampling(max_new_tokens=2)
        )


def test_vllm_is_sent_no_images():
    with pytest.raises(RolloutError, match="vLLM server: the prompts have images, which this engine does not send"):
        refuse_images(requests("qwen"), "vLLM server")
    refuse_images([Request([5], (1,))], "vLLM server")


def test_reward_functions_see_the_images_in_the_prompt_and_as_a_column(tmp_path):
    seen = []

    def reward(prompts, completions, images, **columns):
        seen.extend(zip(prompts, completions, images, strict=True))
        return [0.0] * len(prompts)

    trainer = build("rloo", tmp_path, reward_funcs=reward)
    trainer.train()
    for prompt, completion, images in seen:
        parts = prompt[0]["content"]
        assert [part["image"] for part in parts if part["type"] == "image"] == images
        assert completion[0]["role"] == "assistant"
        assert isinstance(completion[0]["content"], str)


def test_a_rollout_function_may_draw_for_prompts_with_images(tmp_path):
    def drawn(prompts, trainer):
        ids = encode_prompts(trainer.processing_class, [trainer.train_dataset[0]] * len(prompts))
        return {"prompt_ids": ids, "completion_ids": [[30, 1]] * len(ids), "logprobs": [[-1.0, -1.0]] * len(ids)}

    rows = Dataset.from_list([questions(1)[0]] * 2)
    trainer = build("grpo", tmp_path, train_dataset=rows, rollout_func=drawn)
    [batch] = trainer.micro_batches(trainer.collect([rows[0]] * 4, 4, (0,)), (0,))
    assert len(batch.trees) == 1
    assert batch.trees.images.by_tree[0]
    trainer.train()


def test_equal_rows_share_their_images():
    processor, row = tiny_processor("qwen"), questions(1)[0]
    engine = TransformersEngine(tiny_vlm("qwen"))
    drawn = draw(engine, processor, [row, dict(row)], [1, 2], Sampling(max_new_tokens=2))
    assert drawn.rollouts[0].images is drawn.rollouts[1].images


@pytest.mark.parametrize("log_multimodal", [True, False])
def test_the_log_of_completions_holds_the_images(tmp_path, log_multimodal):
    options = {"log_completions": True, "log_multimodal": log_multimodal}
    trainer = build("grpo", tmp_path, options=options)
    trainer.train()
    rows = Dataset.from_parquet(str(tmp_path / "completions" / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert all("<image>" in prompt for prompt in rows["prompt"] if "what is 2" not in prompt)
    assert ("images" in rows.column_names) is log_multimodal
    if log_multimodal:
        for row in rows:
            assert len(row["images"]) == row["prompt"].count("<image>")
            assert all(open_image(image).size[1] == 24 for image in row["images"])
