"""Vision-language models against TRL on the same batch: loss and gradients, float32, 1e-5.

Rows are prompts with completions: of dialogues without masks TRL learns image tokens too, which here are no targets.
"""

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

import tuneline
from tests.parity.sides import Outcome, assert_same, evaluate_batch, make, nudged
from tests.trainers.build import QUIET
from tests.vision.models import ARCHITECTURES, TOKEN, tiny_processor, tiny_vlm
from tests.vision.rows import demonstrations, dialogues, judged, preferences, questions
from tuneline.rollout.protocol import Request, Sampling
from tuneline.rollout.scripted import ScriptedEngine
from tuneline.trainers.drawing import encode_prompts

trl = pytest.importorskip("trl", reason="parity is measured against TRL, which is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:trl")

EOS = TOKEN["<eos>"]


def both(method, architecture, folder, rows, **options):
    model = tiny_vlm(architecture)
    for library in (tuneline, trl):
        processor = tiny_processor(architecture)
        trainer = make(
            library, method, model, folder, rows, tokenizer=processor, per_device_train_batch_size=4, **options
        )
        trainer.model.train()
        yield evaluate_batch(trainer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_supervised_fine_tuning(tmp_path, architecture):
    """Rows with one image, with two of other shapes, and with none."""
    assert_same(*both("SFT", architecture, tmp_path, demonstrations(4)))


def test_what_the_assistant_says_alone(tmp_path):
    assert_same(*both("SFT", "qwen", tmp_path, dialogues(4), assistant_only_loss=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_preferences(tmp_path, architecture):
    reference = nudged(tiny_vlm(architecture))
    assert_same(*both("DPO", architecture, tmp_path, preferences(4), ref_model=reference))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labelled_completions(tmp_path, architecture):
    reference = nudged(tiny_vlm(architecture))
    assert_same(*both("KTO", architecture, tmp_path, judged(4), ref_model=reference))


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.last = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def num_letters(completion_ids, **columns):
    return [float(sum(token > 40 for token in ids)) for ids in completion_ids]


@pytest.mark.parametrize("architecture", ["qwen", pytest.param("idefics", marks=pytest.mark.slow)])
def test_groups_of_completions(tmp_path, architecture):
    """The second update is by a policy that has left the one that drew, so both are asked about the images."""
    rows, processor = questions(4).filter(lambda row: row["images"]), tiny_processor(architecture)
    processor.tokenizer.padding_side = "left"  # else TRL marks other places as an image's than have its tokens
    generator = torch.Generator().manual_seed(3)
    texts = encode_prompts(processor, list(rows))
    script = {
        tuple(ids): [[*torch.randint(20, 60, (n,), generator=generator).tolist(), EOS] for n in (3, 5, 2, 6)]
        for ids in texts
    }
    outcomes = []
    for library in (tuneline, trl):
        engine = ScriptedEngine(script)
        args = library.GRPOConfig(
            **QUIET, output_dir=str(tmp_path), per_device_train_batch_size=len(rows) * 4, num_generations=4, bf16=False,
            max_completion_length=8, num_iterations=2, max_steps=2, optim="sgd", learning_rate=0.05, max_grad_norm=0,
            lr_scheduler_type="constant", shuffle_dataset=False, gradient_checkpointing=False,
            vllm_importance_sampling_correction=False,
        )  # fmt: skip
        given = {"rollout_engine": engine} if library is tuneline else {}
        trainer = library.GRPOTrainer(
            tiny_vlm(architecture), num_letters, args=args, train_dataset=rows, processing_class=processor, **given
        )
        if library is trl:

            def generate(prompt_ids, *_, engine=engine):
                sampling = Sampling(max_new_tokens=8, stop_token_ids=(EOS,))
                return [engine.generate([Request(ids, [0])], sampling)[0][0].ids for ids in prompt_ids], None

            trainer._generate_single_turn = generate
        trainer.remove_callback(PrinterCallback)
        gradients = Gradients()
        trainer.add_callback(gradients)
        trainer.train()
        lines = [line for line in trainer.state.log_history if "loss" in line]
        outcomes.append(Outcome(lines[-1]["loss"], gradients.last))
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, abs=1e-5)
    assert_same(outcomes[0]._replace(loss=outcomes[1].loss), outcomes[1])
