"""The engine that says what it was told to."""

import pytest
from torch import nn

from tuneline.errors import RolloutError
from tuneline.rollout.protocol import Completion, Request, RolloutEngine, Sampling
from tuneline.rollout.scripted import ScriptedEngine

SAMPLING = Sampling(max_new_tokens=4, stop_token_ids=(9,))


def test_a_mapping_deals_each_prompts_completions_in_turn():
    engine: RolloutEngine = ScriptedEngine({(1,): [[5, 9], [6]], (2, 2): [[7]]})
    first = engine.generate([Request([1], [0, 0, 0]), Request([2, 2], [0])], SAMPLING)
    assert [[c.ids for c in group] for group in first] == [[[5, 9], [6], [5, 9]], [[7]]]
    assert [c.is_finished for c in first[0]] == [True, False, True]
    assert engine.generate([Request([1], [0])], SAMPLING)[0][0].ids == [6]


def test_a_list_is_dealt_to_every_prompt():
    engine = ScriptedEngine([[1], [2], [3]])
    completions = engine.generate([Request([8], [0, 0]), Request([9], [0, 0])], SAMPLING)
    assert [[c.ids for c in group] for group in completions] == [[[1], [2]], [[3], [1]]]


def test_a_function_reads_prompt_and_seed():
    engine = ScriptedEngine(lambda prompt, seed: [*prompt, seed], logprobs=lambda prompt, ids: [-0.5 * i for i in ids])
    (completion,) = engine.generate([Request([3, 4], [6])], SAMPLING)[0]
    assert completion == Completion([3, 4, 6], [-1.5, -2.0, -3.0], is_finished=False)


def test_completions_are_cut_at_limits_and_stop_tokens():
    engine = ScriptedEngine([[1, 2, 3, 4, 5, 6], [1, 9, 2]])
    completions = engine.generate([Request([8], [0, 0]), Request([8], [0], max_new_tokens=2)], SAMPLING)
    assert [c.ids for group in completions for c in group] == [[1, 2, 3, 4], [1, 9], [1, 2]]
    assert [c.logprobs for c in completions[0]] == [[0.0] * 4, [0.0] * 2]


def test_whole_completions_pass_unchanged():
    whole = Completion([1, 2], [-1.0, -2.0], is_finished=True, support=[[1, 3], [2]])
    assert ScriptedEngine(lambda prompt, seed: whole).generate([Request([8], [0])], SAMPLING) == [[whole]]


def test_it_records_what_it_was_asked():
    engine, model = ScriptedEngine([[1]]), nn.Linear(1, 1)
    requests = [Request([8], [0]), Request([7], [1])]
    assert engine.generate([], SAMPLING) == []
    engine.generate(requests, SAMPLING)
    engine.sync_weights(model)
    engine.close()
    assert engine.requests == requests
    assert engine.calls == [([], SAMPLING), (requests, SAMPLING)]
    assert (engine.num_syncs, engine.synced, engine.is_closed) == (1, model, True)


def test_what_the_script_lacks_is_an_error():
    with pytest.raises(RolloutError, match=r"no completions for the prompt \[3\]"):
        ScriptedEngine({(1,): [[5]]}).generate([Request([3], [0])], SAMPLING)
    with pytest.raises(RolloutError, match="empty list"):
        ScriptedEngine([]).generate([Request([3], [0])], SAMPLING)
    with pytest.raises(RolloutError, match="empty completion"):
        ScriptedEngine([[]]).generate([Request([3], [0])], SAMPLING)
