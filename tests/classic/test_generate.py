"""Responses: by the engine or by `generate`, alike; with and without the query; of policy and reference."""

import pytest
import torch

from tests.classic.models import some_batch, step_trainer, t5_with_value_head, with_value_head
from tests.models import tiny_causal_lm
from tests.trainers.rows import character_tokenizer
from tuneline.classic.generating import read_options, respond
from tuneline.classic.length_sampler import LengthSampler
from tuneline.errors import ConfigError, DataError

SMALL = dict(batch_size=4, mini_batch_size=2, ppo_epochs=1)
DRAWN = dict(do_sample=True, top_k=0, max_new_tokens=6)


def queries():
    return some_batch()[0]


def test_without_options_the_engine_writes_what_generate_writes():
    """Greedy, twenty tokens, to the end token: what transformers does where nothing is said."""
    model = tiny_causal_lm()
    expected = []
    for query in queries():
        written = model.generate(
            query[None], attention_mask=torch.ones_like(query)[None], pad_token_id=0, max_new_tokens=20
        )
        expected.append(written[0, len(query) :].tolist())
    found = respond(model, character_tokenizer(), [q.tolist() for q in queries()], [0] * 4)
    assert found == expected
    assert max(len(ids) for ids in found) == 20


def test_options_that_only_generate_knows_reach_it():
    model, tokenizer = tiny_causal_lm(), character_tokenizer()
    ids = [query.tolist() for query in queries()]
    options = {"max_new_tokens": 8, "no_repeat_ngram_size": 1}
    found = respond(model.train(), tokenizer, ids, [0] * 4, options=options)
    assert model.training
    for query, response in zip(ids, found, strict=True):
        assert len(set(response)) == len(response)
        assert not set(response) & set(query)
    assert found == respond(model, tokenizer, ids, [0] * 4, options=options, batch_size=1)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, []),
        ({"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 1}, []),
        ({"num_beams": 1, "use_cache": True}, []),
        ({"num_beams": 2}, ["num_beams"]),
        ({"min_length": 4}, ["min_length"]),
    ],
)
def test_only_options_with_an_effect_need_generate(options, needed):
    generation = read_options(tiny_causal_lm(), character_tokenizer(), options)
    assert generation.needs_generate == needed


def test_options_stand_over_those_of_the_model():
    model = tiny_causal_lm()
    model.generation_config.update(do_sample=True, top_p=0.5, max_new_tokens=3)
    own = read_options(model, character_tokenizer(), {}).sampling
    assert (own.temperature, own.top_p, own.top_k, own.max_new_tokens) == (1.0, 0.5, 50, 3)
    given = read_options(
        model, character_tokenizer(), {"top_k": 0, "temperature": 0.7, "eos_token_id": [2, 3]}
    ).sampling
    assert (given.temperature, given.top_p, given.top_k, given.stop_token_ids) == (0.7, 0.5, 0, (2, 3))
    assert model.generation_config.top_k is None
    assert read_options(model, character_tokenizer(), {"do_sample": False}).sampling.temperature == 0
    assert read_options(model, character_tokenizer(), {"eos_token_id": -1}).sampling.stop_token_ids == ()
    with pytest.raises(ConfigError, match="generate got max_token"):
        read_options(model, character_tokenizer(), {"max_token": 3})


def test_a_limit_of_the_whole_counts_the_query():
    found = respond(
        tiny_causal_lm(), character_tokenizer(), [[5, 6, 7]], [0], options={"max_length": 8, "eos_token_id": -1}
    )
    assert len(found[0]) == 5
    with pytest.raises(DataError, match="max_length=3 counts them too"):
        respond(tiny_causal_lm(), character_tokenizer(), [[5, 6, 7]], [0], options={"max_length": 3})


def test_a_list_gives_a_list_and_a_tensor_a_row():
    trainer = step_trainer(**SMALL)
    with_query = trainer.generate(queries(), **DRAWN)
    alone = step_trainer(**SMALL).generate(queries(), return_prompt=False, **DRAWN)
    for query, whole, response in zip(queries(), with_query, alone, strict=True):
        assert torch.equal(whole, torch.cat([query, response]))
        assert whole.dtype == torch.long
    one = trainer.generate(queries()[0], **DRAWN)
    assert one.shape[0] == 1
    assert torch.equal(one[0, :2], queries()[0])


def test_responses_come_from_the_seed_and_differ_from_call_to_call():
    one, two, other = (step_trainer(seed=seed, **SMALL) for seed in (3, 3, 4))
    first, again = one.generate(queries(), **DRAWN), one.generate(queries(), **DRAWN)
    assert all(torch.equal(a, b) for a, b in zip(first, two.generate(queries(), **DRAWN), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other.generate(queries(), **DRAWN), strict=True))


def test_the_reference_answers_too():
    trainer = step_trainer(ref_model=with_value_head(seed=5), **SMALL)
    policy, reference = trainer.generate(queries(), generate_ref_response=True, **DRAWN)
    by_itself = step_trainer(with_value_head(seed=5), **SMALL).generate(queries(), **DRAWN)
    assert all(torch.equal(a, b) for a, b in zip(reference, by_itself, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(policy, reference, strict=True))


@pytest.mark.parametrize("make", [with_value_head, t5_with_value_head])
def test_a_length_sampler_limits_each_response(make):
    trainer = step_trainer(make(), **SMALL)
    lengths = iter([3, 5, 2, 4])
    responses = trainer.generate(
        queries(), lambda: next(lengths), return_prompt=False, batch_size=1, do_sample=True, top_k=0, eos_token_id=-1
    )
    start = int(trainer.is_encoder_decoder)
    assert [len(response) - start for response in responses] == [3, 5, 2, 4]


def test_an_encoder_decoders_responses_begin_with_its_start_token_and_end_with_its_end():
    trainer = step_trainer(t5_with_value_head(), **SMALL)
    responses = trainer.generate(queries(), do_sample=True, top_k=0, max_new_tokens=12, eos_token_id=list(range(1, 60)))
    for response in responses:
        assert response[0] == 0
        assert all(token >= 60 for token in response[1:-1].tolist() if token)
    trainer.step(queries(), responses, torch.zeros(4))


def test_generation_leaves_the_mode_of_the_model(caplog):
    trainer = step_trainer(**SMALL)
    trainer.model.train()
    trainer.generate(queries(), **DRAWN)
    assert trainer.model.training


def test_queries_of_the_wrong_kind_are_named():
    trainer = step_trainer(**SMALL)
    with pytest.raises(DataError, match=r"query_tensor\[0\] is of shape \(1, 2\)"):
        trainer.generate(queries()[0][None])
    with pytest.raises(DataError, match=r"query_tensor\[1\] is a list"):
        trainer.generate([queries()[0], [1, 2]])
    with pytest.raises(ConfigError, match="generate got max_lenght"):
        trainer.generate(queries(), max_lenght=3)


def test_lengths_are_drawn_from_the_first_up_to_below_the_last():
    sampler = LengthSampler(2, 5, seed=1)
    assert {sampler() for _ in range(100)} == {2, 3, 4}
    named = LengthSampler(min_length=2, max_length=5, seed=1)
    assert [named() for _ in range(5)] == [one() for one in [LengthSampler(2, 5, seed=1)] for _ in range(5)]
    with pytest.raises(ConfigError, match=r"LengthSampler\(5, 5\)"):
        LengthSampler(5, 5)
    with pytest.raises(ConfigError, match="needs the shortest"):
        LengthSampler(5)
