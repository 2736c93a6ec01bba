"""What GRPO and RLOO have in common: collecting, rewards, evaluation, what is written."""

import threading

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.data import tiny_tokenizers
from tests.models import VOCAB, tiny_causal_lm
from tests.trainers.build import weights, with_plain_descent
from tests.trainers.online import EOS, MAX_LENGTH, build_online, num_letters, questions, written
from tuneline.errors import ConfigError, DataError, RewardError, RolloutError
from tuneline.logprobs import token_logprobs
from tuneline.models.layouts import prepare_for_trees
from tuneline.rollout.scripted import ScriptedEngine

CUT_OFF = [[5, 6, 7] * 4, [8] * 12, [9, 4] * 6, [3] * 12]


def is_unchanged(trainer, before):
    return all(torch.equal(before[name], end) for name, end in weights(trainer).items())


def last_line(trainer):
    return [line for line in trainer.state.log_history if "loss" in line][-1]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_at_the_first_update_old_policy_and_reference_are_the_policy_to_the_bit(method, tmp_path):
    trainer = build_online(method, tmp_path, beta=0.1, num_iterations=2)
    trainer.train()
    (waiting,) = trainer.queue  # of its two updates the second is to come
    policy = tiny_causal_lm()  # as it was
    prepare_for_trees(policy)
    with torch.no_grad():
        logprobs = token_logprobs(policy, waiting.trees).logprobs
    assert torch.equal(waiting.by_target["old_logprobs"], logprobs)
    assert torch.equal(waiting.by_target["ref_logprobs"], logprobs)
    line = last_line(trainer)
    assert line["kl"] == 0
    assert line["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize(
    ("method", "options"),
    [("grpo", {"loss_type": "dapo"}), ("grpo", {"loss_type": "grpo", "beta": 0.1}), ("rloo", {})],
    ids=str,
)
def test_completions_that_are_all_cut_off_and_masked_move_nothing(method, options, tmp_path):
    trainer = build_online(
        method, tmp_path, mask_truncated_completions=True, rollout_engine=ScriptedEngine(CUT_OFF), **options
    )
    before = weights(with_plain_descent(trainer))
    trainer.train()
    assert last_line(trainer)["completions/clipped_ratio"] == 1
    assert last_line(trainer)["loss"] == 0
    assert is_unchanged(trainer, before)


def test_an_end_at_the_last_token_allowed_is_no_cut(tmp_path):
    ends = [*[5, 6, 7, 8, 9, 4, 3][: MAX_LENGTH - 1], EOS]
    trainer = build_online("grpo", tmp_path, rollout_engine=ScriptedEngine([ends, [5, EOS]]))
    trainer.train()
    assert last_line(trainer)["completions/clipped_ratio"] == 0
    assert last_line(trainer)["completions/max_terminated_length"] == MAX_LENGTH


def test_rewards_run_while_the_reference_scores(tmp_path):
    reward_began, reference_began = threading.Event(), threading.Event()

    def reward(completion_ids, **columns):
        reward_began.set()
        assert reference_began.wait(20), "the reference waited for the rewards"
        return num_letters(completion_ids)

    trainer = build_online("grpo", tmp_path, reward_funcs=reward, beta=0.1, on_reward_error="raise")
    score = trainer.reference.logprobs

    def scoring(*arguments):
        assert reward_began.wait(20), "the rewards waited for the reference"
        reference_began.set()
        return score(*arguments)

    trainer.reference.logprobs = scoring
    trainer.train()
    assert trainer.state.global_step == 1


def fails_for_some(completion_ids, answer, **columns):
    if any(number % 2 for number in answer):
        raise ValueError("odd")
    return num_letters(completion_ids)


def test_a_reward_that_fails_costs_its_samples_and_is_counted(tmp_path):
    seen = []
    trainer = build_online("grpo", tmp_path, reward_funcs=fails_for_some, train_dataset=questions(2))
    trainer.add_rollout_listener(lambda step, table: seen.append(table))
    trainer.train()
    assert last_line(trainer)["reward_failures/fails_for_some"] == 4
    lost = [value != value for value in seen[0]["fails_for_some"]]
    assert lost == ["1" in prompt for prompt in seen[0]["prompt"]]
    assert all(advantage == 0 for advantage, is_lost in zip(seen[0]["advantage"], lost, strict=True) if is_lost)
    assert any(seen[0]["advantage"])


def test_a_reward_that_fails_ends_the_run_where_that_is_wanted(tmp_path):
    trainer = build_online("grpo", tmp_path, reward_funcs=fails_for_some, on_reward_error="raise")
    with pytest.raises(RewardError, match="odd"):
        trainer.train()


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_completions_that_nothing_rewards_move_nothing(method, tmp_path):
    def none(completion_ids, **columns):
        return [None] * len(completion_ids)

    trainer = build_online(method, tmp_path, reward_funcs=none)
    before = weights(with_plain_descent(trainer))
    trainer.train()
    assert last_line(trainer)["loss"] == 0
    assert is_unchanged(trainer, before)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_evaluation_of_several_sets(method, tmp_path):
    sets = {"easy": questions(2), "hard": questions(3)}
    trainer = build_online(
        method,
        tmp_path,
        eval_dataset=sets,
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=1,
    )
    asked = []
    trainer.add_rollout_listener(lambda step, table: asked.append(table))
    trainer.train()
    assert [len(table["prompt"]) for table in asked] == [8]  # listeners are told of training
    found = {name: value for line in trainer.state.log_history for name, value in line.items()}
    for name in ("loss", "reward", "rewards/num_letters/mean", "completions/mean_length", "entropy"):
        assert found[f"eval_easy_{name}"] == found[f"eval_easy_{name}"]
        assert f"eval_hard_{name}" in found
    engine = ScriptedEngine(written)
    trainer.collector.engine = engine
    trainer.evaluate()
    assert [len(seeds) for seeds in (request.seeds for request in engine.requests)] == [2] * 5


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path):
    def evaluated(batch_size):
        scripted = ScriptedEngine(lambda prompt, seed: written(prompt, len(prompt)))
        trainer = build_online("grpo", tmp_path, per_device_eval_batch_size=batch_size, rollout_engine=scripted)
        metrics = trainer.evaluate(eval_dataset=questions(5))
        drop = ("runtime", "second", "_time", "std")  # deviations are of a batch
        return {name: value for name, value in metrics.items() if not name.endswith(drop)}

    assert evaluated(4) == pytest.approx(evaluated(20), rel=1e-5, abs=1e-6)


def test_completions_are_written_as_parquet(tmp_path, capsys):
    def reward(completion_ids, answer, log_extra, log_metric, **columns):
        log_extra("doubled", [2 * number for number in answer])
        log_metric("share", 0.25)
        return num_letters(completion_ids)

    trainer = build_online(
        "grpo",
        tmp_path,
        reward_funcs=reward,
        log_completions=True,
        num_completions_to_print=2,
        log_unique_prompts=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=1,  # two generations a step
        max_steps=2,
    )
    trainer.train()
    files = sorted((tmp_path / "completions").iterdir())
    assert [file.name for file in files] == ["completions_00000.parquet", "completions_00001.parquet"]
    table = pq.read_table(files[1]).to_pydict()
    assert len(table["prompt"]) == 8
    assert set(table) == {
        "step", "prompt", "completion", "num_tokens", "is_finished", "doubled", "reward", "advantage",
    }  # fmt: skip
    assert set(table["step"]) == {1}
    assert last_line(trainer)["share"] == 0.25
    assert "completion" in capsys.readouterr().out


def test_dialogues_are_rewarded_as_messages_and_an_open_answer_is_continued(tmp_path):
    tokenizer = tiny_tokenizers.character_tokenizer()
    rows = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": "two?"}]},
            {"prompt": [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "It is"}]},
        ]
    )
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = [[*tokenizer(text)["input_ids"], end] for text in (" a", " bb", " ccc", " d")]
    engine = ScriptedEngine(answers)
    model = tiny_causal_lm(vocab_size=128, eos_token_id=end)
    tokenizer.eos_token = "<|im_end|>"
    trainer = build_online(
        "grpo", tmp_path, model=model, processing_class=tokenizer, train_dataset=rows, reward_funcs=reward,
        rollout_engine=engine, shuffle_dataset=False,
    )  # fmt: skip
    trainer.train()
    first, second = (tokenizer.decode(request.prompt_ids) for request in engine.requests)
    assert first.endswith("<|im_start|>assistant\n")
    assert second.endswith("<|im_start|>assistant\nIt is")
    assert len(seen) == 8
    assert all(completion[0]["role"] == "assistant" for _, completion in seen)
    assert [completion[0]["content"] for _, completion in seen[:2]] == [" a", " bb"]
    assert [completion[0]["content"] for _, completion in seen[4:6]] == ["It is a", "It is bb"]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_an_adapter_is_compared_with_its_base_which_stays_as_it_is(method, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    trainer = build_online(method, tmp_path, peft_config=lora, beta=0.5, num_iterations=2)
    assert trainer.reference.model is None
    before = weights(with_plain_descent(trainer))
    trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if "lora" not in name)
    assert any(not torch.equal(before[name], after[name]) for name in before if "lora" in name)
    waiting = trainer.queue[0]
    base = tiny_causal_lm()
    prepare_for_trees(base)
    with torch.no_grad():
        logprobs = token_logprobs(base, waiting.trees).logprobs
    torch.testing.assert_close(waiting.by_target["ref_logprobs"], logprobs, atol=1e-6, rtol=1e-6)
    assert (waiting.by_target["old_logprobs"] - logprobs).abs().max() > 1e-3  # the adapter is no identity


def test_an_adapter_that_is_trained_on_is_compared_with_how_it_came(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_lm(), lora)
    trainer = build_online("grpo", tmp_path, model=model, beta=0.5, max_steps=2, learning_rate=1e-2)
    trainer.train()
    first, second = (line["kl"] for line in trainer.state.log_history if "kl" in line)
    assert first == 0
    assert second > 0


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.7}], ids=str)
def test_sampler_and_trainer_agree_on_the_probabilities_of_what_was_drawn(options, tmp_path):
    trainer = build_online("grpo", tmp_path, num_iterations=2, **options)
    trainer.train()
    (waiting,) = trainer.queue
    known = waiting.by_target
    assert (waiting.support is not None) == ("temperature" not in options)
    torch.testing.assert_close(known["sampler_logprobs"], known["old_logprobs"], atol=1e-5, rtol=1e-5)
    assert last_line(trainer)["clip_ratio/region_mean"] == 0


def mixture_of_experts():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": False}
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=VOCAB, eos_token_id=EOS, pad_token_id=0, **sizes, **heads, **experts)
    )


@pytest.mark.parametrize(("method", "options"), [("grpo", {}), ("grpo", {"loss_type": "grpo"}), ("rloo", {})], ids=str)
def test_the_load_of_experts_is_balanced_by_its_coefficient(method, options, tmp_path):
    trainer = build_online(
        method,
        tmp_path,
        model=mixture_of_experts(),
        reward_funcs=lambda completion_ids, **columns: [1.0] * len(completion_ids),  # which teach nothing
        router_aux_loss_coef=0.25,
        beta=0.0,
        **options,
    )
    trainer.train()
    line = last_line(trainer)
    assert line["aux_loss"] > 0
    assert line["loss"] == pytest.approx(0.25 * line["aux_loss"], rel=1e-5)


def test_the_engine_takes_over_the_weights_once_a_step(tmp_path):
    engine = ScriptedEngine(written)
    trainer = build_online(
        "grpo", tmp_path, rollout_engine=engine, max_steps=3, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, steps_per_generation=1,
    )  # fmt: skip
    trainer.train()
    assert (len(engine.calls), engine.num_syncs) == (6, 3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_generations": 3}, ConfigError, r"num_generations=3 does not divide .* 8 completions .*use one of"),
        ({"num_generations": 1}, ConfigError, r"num_generations=1 must be at least 2; a group needs others"),
        ({"generation_batch_size": 16, "steps_per_generation": 4}, ConfigError, r"=16 and .*=4 contradict each other"),
        ({"generation_batch_size": 12}, ConfigError, r"generation_batch_size=12 is no multiple of 8"),
        ({"temperature": 0.0}, ConfigError, r"temperature=0.0 must be above 0"),
        ({"num_iterations": 0}, ConfigError, r"num_iterations=0 must be at least 1"),
        ({"auto_find_batch_size": True}, ConfigError, r"auto_find_batch_size=True would break up the groups.*lower"),
        ({"generation_kwargs": {"beams": 4}}, ConfigError, r"generation_kwargs has \['beams'\]; it can have"),
        ({"generation_kwargs": "top_k=4"}, ConfigError, r"generation_kwargs='top_k=4' is no JSON object; write"),
        ({"model_init_kwargs": "{dtype}"}, ConfigError, r"model_init_kwargs='\{dtype\}' is no JSON object"),
        ({"on_reward_error": "ignore"}, ConfigError, r"on_reward_error='ignore' is unknown; use skip or raise"),
        ({"vllm_mode": "remote"}, ConfigError, r"vllm_mode='remote' is unknown; use colocate or server"),
        ({"sync_ref_model": True, "beta": 0.0}, ConfigError, r"sync_ref_model=True .* needs beta above 0"),
        ({"reward_weights": [1.0, 2.0]}, ConfigError, r"reward_weights has 2 values for 1 reward_funcs"),
        ({"reward_funcs": []}, ConfigError, r"nothing to reward with; pass reward_funcs"),
        ({"train_dataset": Dataset.from_list([{"text": "a"}])}, DataError, r"columns \['text'\] and no 'prompt'"),
        ({"train_dataset": [{"prompt": "a"}]}, DataError, r"train_dataset is a list; pass a datasets.Dataset"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_what_cannot_be_is_refused_before_any_work(method, given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        build_online(method, tmp_path, **given)


def test_no_rows_or_too_few_and_an_engine_that_fails_are_told(tmp_path):
    with pytest.raises(DataError, match=r"1 rows, and a generation asks 2"):
        build_online("grpo", tmp_path, train_dataset=questions(1)).train()
    with pytest.raises(DataError, match="no train_dataset to learn from"):
        build_online("grpo", tmp_path, train_dataset=None).train()
    with pytest.raises(RolloutError, match="no completions for the prompt"):
        build_online("grpo", tmp_path, rollout_engine=ScriptedEngine({})).train()
    with pytest.raises(ConfigError, match=r"evaluation batch of 6 completions .* no multiple of the 4"):
        build_online("grpo", tmp_path, per_device_eval_batch_size=6).evaluate(eval_dataset=questions(2))
