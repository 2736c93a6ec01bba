"""Four roles on a base model of 4 or 8 bits, where bitsandbytes is installed."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from tests.models import tiny_causal_lm
from tests.trainers.ppo import build_ppo
from tests.trainers.rows import character_tokenizer
from tests.values.test_adapters import COMPLETIONS, PROMPTS, bytes_held
from tuneline.models.loading import add_adapter
from tuneline.rewards import RewardAdapter, RewardModel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
SIZES = dict(hidden_size=64, intermediate_size=128)


def load(auto_class, folder, bits, **options):
    given = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)
    model = auto_class.from_pretrained(folder, dtype=torch.float32, quantization_config=given, **options)
    return add_adapter(model, None)  # as for training: packed for generation, 4 bits cannot train


@pytest.mark.parametrize("bits", [4, 8])
def test_four_roles_train_on_a_quantised_base(bits, tmp_path):
    tiny_causal_lm(**SIZES).save_pretrained(tmp_path / "base")
    classifier = load(AutoModelForSequenceClassification, tmp_path / "base", bits, num_labels=1)
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    reward_model = get_peft_model(classifier, config)
    reward_model.save_pretrained(tmp_path / "reward")
    character_tokenizer().save_pretrained(tmp_path / "reward")

    reward = RewardAdapter(tmp_path / "reward")
    trainer = build_ppo(
        tmp_path / "run",
        model=load(AutoModelForCausalLM, tmp_path / "base", bits),
        reward_funcs=reward,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        value_function="adapter",
        gradient_checkpointing=True,
        max_steps=4,
        num_ppo_epochs=2,
        learning_rate=1e-3,
    )
    assert bytes_held(trainer.model) < 0.6 * bytes_held(tiny_causal_lm(**SIZES))
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        learns = ".default." in name or ".value." in name or name.startswith("value_head.")
        assert torch.equal(parameter, before[name]) != learns, name
    own = RewardModel(reward_model.eval(), character_tokenizer())
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(own(PROMPTS, COMPLETIONS), abs=1e-4)
