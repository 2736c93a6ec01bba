"""PPO learns, with whole models and adapters, text and dialogues; and leaves a plain model behind."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from tests.data import tiny_tokenizers
from tests.models import tiny_causal_lm, tiny_reward_model
from tests.trainers.build import weights
from tests.trainers.online import num_letters, questions
from tests.trainers.ppo import build_ppo
from tuneline.rollout.scripted import ScriptedEngine

LORA = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "up_proj"], task_type="CAUSAL_LM")
SCHEDULE = {
    "max_steps": 60,
    "per_device_train_batch_size": 16,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "kl_coef": 0.01,
    "vf_coef": 0.5,
    "cliprange_value": None,
    "num_generations": 8,
}


def share_of_low_tokens(completion_ids, **columns):
    return [sum(token < 30 for token in ids) / len(ids) for ids in completion_ids]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="head"),
        pytest.param({"peft_config": LORA, "learning_rate": 3e-2}, marks=pytest.mark.slow, id="adapter"),
        pytest.param({"value_model": tiny_reward_model()}, marks=pytest.mark.slow, id="model"),
    ],
)
def test_the_policy_learns_to_write_what_is_rewarded(given, tmp_path):
    trainer = build_ppo(tmp_path, reward_funcs=share_of_low_tokens, **{**SCHEDULE, **given})
    trainer.train()
    scores = [line["objective/scores"] for line in trainer.state.log_history if "objective/scores" in line]
    assert scores[0] < 0.5
    assert sum(scores[-3:]) / 3 > 0.85, scores


def test_values_come_to_predict_what_is_rewarded(tmp_path):
    # the score is known from the first token on, and a value function alone learns
    engine = ScriptedEngine([[5, 6, 7, 1], [8, 6, 7, 1]])

    def reward(completion_ids, **columns):
        return [1.0 if ids[0] == 5 else -1.0 for ids in completion_ids]

    options = {**SCHEDULE, "max_steps": 40, "critic_warmup_steps": 40, "kl_coef": 0.0}
    trainer = build_ppo(
        tmp_path, reward_funcs=reward, rollout_engine=engine, value_model=tiny_reward_model(), **options
    )
    trainer.train()
    losses = [line["loss/value_avg"] for line in trainer.state.log_history if "loss" in line]
    # half of the tokens' returns are +1 and half -1; only before the first token is there nothing to know
    assert min(losses[-4:]) < 0.2 < 0.4 < losses[0]


def test_with_an_adapter_the_base_stays_and_the_adapter_alone_is_saved(tmp_path):
    trainer = build_ppo(tmp_path, peft_config=LORA, max_steps=2, learning_rate=1e-2)
    assert trainer.reference.model is None
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name, end in after.items() if not torch.equal(before[name], end)}
    assert any(".default." in name for name in moved)
    assert any(".value." in name for name in moved)
    assert "value_head.weight" in moved
    assert all("lora_" in name or name.startswith("value_head") for name in moved)
    trainer.save_model(str(tmp_path / "saved"))
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert not files & {"model.safetensors", "value", "online"}
    again = PeftModel.from_pretrained(tiny_causal_lm(), tmp_path / "saved")
    own = dict(again.named_parameters())
    assert all(torch.equal(own[n.removeprefix("policy.")], after[n]) for n in moved if ".default." in n)


def test_an_adapter_that_is_trained_on_is_its_own_reference(tmp_path):
    torch.manual_seed(0)
    started = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    policy = get_peft_model(tiny_causal_lm(), started)
    trainer = build_ppo(tmp_path, model=policy, max_steps=5, num_ppo_epochs=4, learning_rate=1e-2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "objective/kl" in line]
    assert lines[0]["objective/kl"] == 0
    assert lines[1]["objective/kl"] != 0


def test_what_is_saved_is_a_plain_model(tmp_path):
    trainer = build_ppo(tmp_path, reward_model=tiny_reward_model(), learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    found = AutoModelForCausalLM.from_pretrained(tmp_path)
    policy = trainer.module.policy
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), policy.parameters(), strict=True))
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training_args.bin",
    }  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<eos>"


def test_dialogues_are_asked_with_their_template_and_rewarded_as_messages(tmp_path):
    tokenizer = tiny_tokenizers.character_tokenizer()
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i}?"}]} for i in range(8)])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    model = tiny_causal_lm(vocab_size=128, eos_token_id=end)
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    engine = ScriptedEngine([[*tokenizer(" ok")["input_ids"], end]])
    trainer = build_ppo(
        tmp_path, model=model, processing_class=tokenizer, train_dataset=rows, reward_funcs=reward,
        reward_model=tiny_reward_model(vocab_size=128, seed=1), rollout_engine=engine, max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert tokenizer.decode(engine.requests[0].prompt_ids).endswith("?<|im_end|>\n<|im_start|>assistant\n")
    prompt, completion = seen[0]
    assert prompt[0]["role"] == "user"
    assert completion == [{"role": "assistant", "content": " ok"}]
    line = next(line for line in trainer.state.log_history if "objective/scores" in line)
    assert line["rewards/reward/mean"] == 3
    assert line["val/num_eos_tokens"] == 8
    assert line["objective/scores"] == pytest.approx(
        line["rewards/reward/mean"] + line["rewards/Qwen2ForSequenceClassification/mean"]
    )


def test_callbacks_see_the_steps(tmp_path):
    class Notes(TrainerCallback):
        def __init__(self):
            self.logged = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logged.append(logs)

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    notes = Notes()
    trainer = build_ppo(tmp_path, callbacks=[notes], max_steps=6, train_dataset=questions(), reward_funcs=num_letters)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "policy/approxkl_avg" in notes.logged[0]


@pytest.mark.parametrize("given", [{}, {"peft_config": LORA}], ids=["whole", "adapter"])
def test_the_best_policy_is_loaded_at_the_end(given, tmp_path):
    trainer = build_ppo(
        tmp_path, max_steps=3, learning_rate=1e-2, eval_dataset=questions(3), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, per_device_eval_batch_size=4,
        metric_for_best_model="eval_num_tokens", greater_is_better=False, **given,
    )  # fmt: skip
    after: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            after.append(weights(trainer))

    trainer.add_callback(Keep())
    trainer.train()  # the number of tokens rises, so that the first checkpoint is the best
    found = weights(trainer)
    trained = [name for name in found if name.startswith("policy.") and ".value." not in name]
    assert all(torch.equal(found[name], after[0][name]) for name in trained)
    assert any(not torch.equal(after[2][name], after[0][name]) for name in trained)
