import pytest
import torch

from tests.models import VOCAB, tiny_reward_model
from tuneline.evaluation import scoring
from tuneline.evaluation.scoring import score_groups
from tuneline.models import prepare_for_trees


@pytest.fixture(scope="module")
def model():
    model = tiny_reward_model("qwen2").eval()
    assert prepare_for_trees(model)
    return model


def some_groups():
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(2, VOCAB, (n,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(4), draw(9), draw(1)]
    return [[prompt + draw(n) for n in (3, 5, 1)] for prompt in prompts] + [[[7], [7, 8]], [[5, 6, 7]]]


def test_scores_are_those_of_each_sequence_alone(model):
    plain = tiny_reward_model("qwen2").eval()
    groups = some_groups()
    for group, scores in zip(groups, score_groups(model, groups), strict=True):
        expected = [plain(input_ids=torch.tensor([ids])).logits.item() for ids in group]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_equal_sequences_tie_exactly(model):
    ids = [4, 5, 6, 7]
    (scores,) = score_groups(model, [[ids, [4, 5, 9], list(ids)]])
    assert scores[0] == scores[2] != scores[1]


def test_batches_may_be_cut_anywhere(model, monkeypatch):
    whole = score_groups(model, some_groups())
    monkeypatch.setattr(scoring, "_TOKENS_AT_ONCE", 20)
    for one, other in zip(whole, score_groups(model, some_groups()), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
