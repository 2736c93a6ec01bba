"""The step interface: what it learns from, what it reports, what it refuses."""

import logging
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from tests.classic.models import some_batch, step_trainer, t5_with_value_head, tiny_t5, with_value_head
from tests.models import VOCAB, tiny_causal_lm, tiny_reward_model
from tests.trainers.rows import character_tokenizer
from tuneline.classic.config import ClassicPPOConfig
from tuneline.classic.trainer import StepPPOTrainer
from tuneline.errors import ConfigError, DataError, ModelError
from tuneline.models.value_head import AutoModelForCausalLMWithValueHead

SMALL = dict(batch_size=4, mini_batch_size=2, ppo_epochs=1, learning_rate=1e-3)
STATS = {
    *(f"objective/{name}" for name in ("kl", "kl_dist", "logprobs", "ref_logprobs", "kl_coef", "entropy")),
    *(f"ppo/{name}" for name in ("mean_non_score_reward", "mean_scores", "std_scores", "learning_rate")),
    *(f"ppo/loss/{name}" for name in ("policy", "value", "total")),
    *(
        f"ppo/policy/{name}"
        for name in ("entropy", "approxkl", "policykl", "clipfrac", "advantages", "advantages_mean", "ratio")
    ),
    *(f"ppo/returns/{name}" for name in ("mean", "var")),
    *(f"ppo/val/{name}" for name in ("vpred", "error", "clipfrac", "mean", "var", "var_explained")),
    *(f"tokens/{what}_{name}" for what in ("queries", "responses") for name in ("len_mean", "len_std", "dist")),
    *(
        f"time/ppo/{name}"
        for name in ("forward_pass", "compute_rewards", "compute_advantages", "optimize_step", "calc_stats", "total")
    ),
}


def lora(model):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config)


def test_the_statistics_have_the_older_names_and_one_entry_for_what_they_describe():
    batch = some_batch()
    stats = step_trainer(**SMALL).step(*batch[:3], batch[3])
    num_targets = sum(int(mask.sum()) for mask in batch[3])
    assert set(stats) == STATS
    assert stats["objective/kl_dist"].shape == (4,)
    for name in ("objective/logprobs", "objective/ref_logprobs", "ppo/policy/advantages", "ppo/policy/ratio"):
        assert stats[name].shape == (num_targets,), name
    assert stats["tokens/queries_dist"].tolist() == [len(query) for query in batch[0]]
    assert stats["tokens/responses_len_mean"] == np.mean([len(response) for response in batch[1]])
    assert all(math.isfinite(value) for value in stats.values() if isinstance(value, float))


@pytest.mark.parametrize("make", [with_value_head, t5_with_value_head, lambda: lora(tiny_causal_lm())])
def test_the_first_ratio_is_exactly_one_and_the_first_kl_exactly_zero(make):
    model = make()
    trainer = step_trainer(model, **{**SMALL, "gradient_accumulation_steps": 2})
    if trainer.is_peft_model:  # an adapter that is not trivial: its base is the reference
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    stats = trainer.step(*some_batch()[:3])
    if trainer.is_encoder_decoder:  # torch multiplies padded rows otherwise where gradients are wanted
        assert_close(torch.from_numpy(stats["ppo/policy/ratio"]), torch.ones(21), rtol=0, atol=1e-5)
    else:
        assert (stats["ppo/policy/ratio"] == 1).all()
    assert stats["objective/kl"] == 0
    assert (stats["objective/logprobs"] == stats["objective/ref_logprobs"]).all()
    assert stats["ppo/policy/approxkl"] < 1e-9
    assert stats["ppo/policy/clipfrac"] == 0


@pytest.mark.parametrize("make", [with_value_head, t5_with_value_head])
def test_the_policy_learns_what_is_rewarded(make):
    """A reward for the first third of the vocabulary: its share rises."""
    options = {"ppo_epochs": 2, "learning_rate": 0.02, "init_kl_coef": 0.0, "adap_kl_ctrl": False}
    trainer = step_trainer(make(), batch_size=32, mini_batch_size=32, **options)
    queries = [torch.tensor([5, 6]) for _ in range(32)]
    shares = []
    for _ in range(10):
        responses = trainer.generate(
            queries, batch_size=32, return_prompt=False, do_sample=True, top_k=0, max_new_tokens=4, eos_token_id=-1
        )
        share = torch.stack([(response < VOCAB // 3).float().mean() for response in responses])
        trainer.step(queries, responses, list(share))
        shares.append(share.mean().item())
    assert np.mean(shares[-3:]) > np.mean(shares[:3]) + 0.15


def test_a_plain_model_gets_a_value_head_that_says_zero_at_first():
    trainer = step_trainer(tiny_causal_lm(), **SMALL)
    assert isinstance(trainer.model, AutoModelForCausalLMWithValueHead)
    stats = trainer.step(*some_batch()[:3])
    assert stats["ppo/val/mean"] == stats["ppo/val/var"] == 0
    assert trainer.model.v_head.summary.weight.abs().max() > 0
    assert type(step_trainer(tiny_t5(), **SMALL).model).__name__ == "AutoModelForSeq2SeqLMWithValueHead"


def test_an_adapter_alone_learns_and_its_base_is_the_reference():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(lora(tiny_causal_lm()))
    trainer = step_trainer(model, **SMALL)
    assert trainer.ref_model is None
    before = {name: p.clone() for name, p in model.named_parameters()}
    stats = trainer.step(*some_batch()[:3])
    with model.pretrained_model.disable_adapter():
        base = step_trainer(tiny_causal_lm(), **SMALL).step(*some_batch()[:3])
    assert_close(stats["objective/ref_logprobs"], base["objective/logprobs"], rtol=1e-5, atol=1e-5)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora" in name or "v_head" in name}
    assert trainer.config.is_peft_model


def test_padding_and_what_else_is_in_the_batch_change_nothing_of_a_sequence():
    queries, responses, _, _ = some_batch()
    together = step_trainer(with_value_head(), ref_model=with_value_head(seed=5), **SMALL)
    alone = step_trainer(with_value_head(), ref_model=with_value_head(seed=5), **SMALL)
    whole = together.step(queries, responses, torch.zeros(4))["objective/logprobs"]
    first = alone.step(queries[:1], responses[:1], torch.zeros(1))["objective/logprobs"]
    assert_close(whole[: len(first)], first, rtol=1e-5, atol=1e-5)


def test_masked_tokens_are_read_and_not_learned():
    queries, responses, scores, masks = some_batch()
    other = [response.clone() for response in responses]
    other[1][1] = (other[1][1] + 1) % 90 + 2  # masked: what an environment wrote
    one, two = (step_trainer(with_value_head(), **SMALL) for _ in range(2))
    stats, changed = one.step(queries, responses, scores, masks), two.step(queries, other, scores, masks)
    targets = [int(mask.sum()) for mask in masks]
    assert stats["objective/logprobs"][targets[0]] == changed["objective/logprobs"][targets[0]]  # before it
    assert stats["objective/logprobs"][targets[0] + 1] != changed["objective/logprobs"][targets[0] + 1]  # after it


@pytest.mark.parametrize("make", [with_value_head, t5_with_value_head])
@pytest.mark.parametrize("kl_penalty", ["kl", "full"])
def test_a_response_that_is_masked_as_a_whole_is_told_and_teaches_nothing(make, kl_penalty, caplog):
    queries, responses, scores, masks = some_batch()
    masks[0] = torch.zeros_like(masks[0])
    options = {**SMALL, "mini_batch_size": 1, "gradient_accumulation_steps": 4, "kl_penalty": kl_penalty}
    one, other = (step_trainer(make(), **options) for _ in range(2))
    one.step(queries, responses, scores, masks)
    assert "1 of 4 responses are masked as a whole" in caplog.text
    other.step(queries[1:], responses[1:], scores[1:], masks[1:])
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert_close(a, b)


def test_the_kl_coefficient_adapts_to_its_target():
    trainer = step_trainer(ref_model=with_value_head(seed=5), target=1.0, horizon=100, **SMALL)
    stats = trainer.step(*some_batch()[:3])
    error = min(max(stats["objective/kl"] / 1.0 - 1, -0.2), 0.2)
    assert stats["objective/kl_coef"] == 0.2
    assert trainer.kl_ctl.value == pytest.approx(0.2 * (1 + error * 4 / 100))
    fixed = step_trainer(ref_model=with_value_head(seed=5), adap_kl_ctrl=False, **SMALL)
    fixed.step(*some_batch()[:3])
    assert fixed.kl_ctl.value == 0.2


def test_passes_end_early_once_the_policy_has_moved_far():
    options = {**SMALL, "ppo_epochs": 4, "mini_batch_size": 4}
    num_targets = sum(len(response) for response in some_batch()[1])
    whole = step_trainer(**options).step(*some_batch()[:3])
    short = step_trainer(early_stopping=True, target_kl=1e-9, **options).step(*some_batch()[:3])
    assert len(whole["ppo/policy/ratio"]) == 4 * num_targets
    assert len(short["ppo/policy/ratio"]) == 2 * num_targets  # the first pass has not moved yet


def test_mini_batches_with_wild_ratios_teach_nothing(caplog):
    options = {**SMALL, "ppo_epochs": 2, "mini_batch_size": 4}
    trainer = step_trainer(ratio_threshold=1e-3, lr=1.0, **options)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.step(*some_batch()[:3])
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert "2 mini-batches taught nothing" in caplog.text


def test_gradients_are_clipped_to_the_norm_asked():
    trainer = step_trainer(lr=1.0, max_grad_norm=1e-3, **{**SMALL, "mini_batch_size": 4})
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.step(*some_batch()[:3])
    changes = [p.detach() - q for p, q in zip(trainer.model.parameters(), before, strict=True)]
    assert torch.stack([change.norm() for change in changes]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_gradient_checkpointing_changes_nothing():
    plain, checkpointed = step_trainer(**SMALL), step_trainer(gradient_checkpointing=True, **SMALL)
    assert checkpointed.model.is_gradient_checkpointing
    plain.step(*some_batch()[:3])
    checkpointed.step(*some_batch()[:3])
    for one, other in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        assert_close(one, other)


def test_negative_kl_says_what_to_look_at(caplog):
    trainer = step_trainer(with_value_head(), ref_model=with_value_head(seed=5), **SMALL)
    queries = some_batch()[0]
    with torch.no_grad():  # responses of the reference: the policy finds them less likely
        reference = step_trainer(with_value_head(seed=5), **SMALL)
        responses = reference.generate(queries, return_prompt=False, do_sample=True, top_k=0, max_new_tokens=8)
    stats = trainer.step(queries, responses, torch.zeros(4))
    assert stats["objective/kl"] < -1
    assert "it cannot be negative" in caplog.text
    assert "top_k" in caplog.text


def test_a_schedule_goes_on_by_one_a_step():
    model = with_value_head()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e-3 * 0.5**step)
    trainer = StepPPOTrainer(
        ClassicPPOConfig(accelerator_kwargs={"cpu": True}, **{**SMALL, "ppo_epochs": 2}),
        model, tokenizer=character_tokenizer(), optimizer=optimizer, lr_scheduler=schedule,
    )  # fmt: skip
    rates = [trainer.step(*some_batch()[:3])["ppo/learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_an_optimizer_for_the_plain_model_gets_the_value_head_too():
    model = tiny_causal_lm()
    trainer = StepPPOTrainer(
        ClassicPPOConfig(accelerator_kwargs={"cpu": True}, **SMALL),
        model, tokenizer=character_tokenizer(), optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
    )  # fmt: skip
    trainer.step(*some_batch()[:3])
    assert trainer.model.v_head.summary.weight.abs().max() > 0
    with pytest.raises(ConfigError, match="knows no parameter"):
        step_trainer(optimizer=torch.optim.Adam(tiny_causal_lm().parameters(), lr=1e-3), **SMALL)


def test_what_was_learned_is_saved_and_read(tmp_path):
    trainer = step_trainer(**SMALL)
    trainer.step(*some_batch()[:3])
    trainer.save_pretrained(tmp_path)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    assert (tmp_path / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("with_start", [False, True])
def test_an_encoder_decoders_responses_begin_with_its_start_token_given_or_not(with_start):
    queries, responses, scores, masks = some_batch()
    trainer = step_trainer(t5_with_value_head(), **SMALL)
    start = torch.zeros(1, dtype=torch.long)
    if with_start:
        responses = [torch.cat([start, response]) for response in responses]
        masks = [torch.cat([start + 1, mask]) for mask in masks]
    stats = trainer.step(queries, responses, scores, masks)
    model = t5_with_value_head()
    output = model(
        input_ids=queries[0][None],
        decoder_input_ids=responses[0][None] if with_start else torch.cat([start, responses[0]])[None],
    )
    written = responses[0][1:] if with_start else responses[0]
    expected = output[0][0, : len(written)].log_softmax(-1).gather(1, written[:, None])[:, 0]
    assert_close(torch.from_numpy(stats["objective/logprobs"][: len(written)]), expected.detach())
    assert len(stats["objective/logprobs"]) == sum(int(mask.sum()) for mask in masks) - 4 * with_start


def test_the_vocabularys_kl_is_that_of_the_distributions_for_an_encoder_decoder():
    queries, responses, scores, _ = some_batch()
    trainer = step_trainer(t5_with_value_head(), ref_model=tiny_t5(seed=9), kl_penalty="full", **SMALL)
    stats = trainer.step(queries[:1], responses[:1], scores[:1])
    start = torch.zeros(1, dtype=torch.long)
    inputs = {"input_ids": queries[0][None], "decoder_input_ids": torch.cat([start, responses[0]])[None, :-1]}
    log_p = t5_with_value_head()(**inputs)[0][0].log_softmax(-1)
    log_ref = tiny_t5(seed=9).eval()(**inputs).logits[0].log_softmax(-1)
    assert stats["objective/kl"] == pytest.approx((log_p.exp() * (log_p - log_ref)).sum().item(), rel=1e-4)


def wrong_arguments():
    queries, responses, scores, masks = some_batch()
    half = [query.float() for query in queries]
    yield (queries[:3], responses, scores), "3 queries, 4 responses, 4 scores"
    yield (queries, responses, scores, masks[:2]), "2 response_masks"
    yield (queries * 2, responses * 2, torch.zeros(8)), "8 queries, and the configuration says batch_size=4"
    yield ([], [], []), "0 queries"
    yield (torch.stack([queries[0]] * 4), responses, scores), "queries is a Tensor; step takes a list"
    yield ([query.tolist() for query in queries], responses, scores), r"queries\[0\] is a list"
    yield ([query[None] for query in queries], responses, scores), r"shape \(1, 2\)"
    yield (half, responses, scores), r"tensor of torch.float32"
    yield (queries, [response[:0] for response in responses], scores), r"responses\[0\] holds no token"
    yield ([query[:0] for query in queries], responses, scores), r"queries\[0\] is empty"
    yield (queries, responses, scores[:, None]), r"scores has shape \(4, 1\)"
    yield (queries, responses, ["good"] * 4), r"scores\[0\] is a str"
    yield (queries, responses, [torch.zeros(2)] * 4), r"scores\[0\] is shape \(2,\)"
    yield (queries, responses, torch.tensor([0.0, math.nan, 0.0, 0.0])), r"scores\[1\] is nan"
    yield (queries, responses, scores, [mask[1:] for mask in masks]), r"response_masks\[0\] has 2 entries for 3"
    yield (queries, responses, scores, [mask * 2 for mask in masks]), r"response_masks\[0\]"


@pytest.mark.parametrize(("arguments", "message"), list(wrong_arguments()))
def test_arguments_that_do_not_fit_give_one_error_that_names_them(arguments, message):
    with pytest.raises(DataError, match=message):
        step_trainer(**SMALL).step(*arguments)


def test_a_smaller_batch_is_taken_and_told_once(caplog):
    trainer = step_trainer(**SMALL)
    queries, responses, scores, _ = some_batch()
    for _ in range(2):
        stats = trainer.step(queries[:1], responses[:1], scores[:1])
    assert stats["ppo/std_scores"] == 0
    assert caplog.text.count("step got 1 queries; batch_size=4") == 1


def test_parts_of_the_wrong_kind_are_refused():
    tokenizer, config = character_tokenizer(), ClassicPPOConfig(**SMALL)
    with pytest.raises(ConfigError, match="config is a NoneType"):
        StepPPOTrainer(None, with_value_head(), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="tokenizer is a NoneType"):
        StepPPOTrainer(config, with_value_head())
    with pytest.raises(ModelError, match="model is a str"):
        StepPPOTrainer(config, "gpt2", tokenizer=tokenizer)
    with pytest.raises(ModelError, match="language-model head"):
        StepPPOTrainer(config, tiny_reward_model(), tokenizer=tokenizer)
    model = tiny_causal_lm()
    with pytest.raises(ConfigError, match="it would move along"):
        step_trainer(model, ref_model=model, **SMALL)
    with pytest.raises(ConfigError, match="leave it or ref_model out"):
        step_trainer(ref_model=with_value_head(), num_shared_layers=1, **SMALL)
    with pytest.raises(ConfigError, match="shares all of its base"):
        step_trainer(lora(tiny_causal_lm()), num_shared_layers=1, **SMALL)


def test_the_configuration_says_what_the_trainer_found(caplog):
    with caplog.at_level(logging.INFO):
        trainer = step_trainer(tiny_causal_lm(), **SMALL)
    assert trainer.config.is_encoder_decoder is False
    assert trainer.config.world_size == 1
    assert trainer.config.global_batch_size == 4
    assert trainer.config.global_backward_batch_size == 2
    assert trainer.current_device == trainer.accelerator.device
    assert "got a value head" in caplog.text
