"""Who sees whom: the GPU's mask function against the definition, and against the CPU's loop."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.testing import assert_close

from tests.trees.test_equality import random_trees
from tuneline.attention import Segments, tree_attention
from tuneline.trees import Branch, Tree, lay_out, pad_out


def visible_by_definition(trees, window):
    """(tokens, tokens): a token sees those of its own sequence that are not after it, and within the window."""
    n = trees.num_tokens
    position = trees.position_ids[0]
    sees = torch.zeros(n, n, dtype=torch.bool)
    for start, end, prompt_start, prompt_end in trees.segments.tolist():
        for query in range(start, end):
            seen = [*range(prompt_start, prompt_end), *range(start, end)]
            for key in seen:
                near = window is None or position[query] - position[key] < window
                sees[query, key] = bool(position[key] <= position[query]) and bool(near)
    return sees


@pytest.mark.parametrize("window", [None, 4])
def test_the_mask_function_is_the_definition(window):
    trees = lay_out(random_trees())
    segments = Segments(trees.segments, trees.num_tokens)
    mask = create_mask(segments.sees(window), 1, 1, trees.num_tokens, trees.num_tokens, device="cpu")
    assert torch.equal(mask[0, 0], visible_by_definition(trees, window))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_loop_over_segments_is_attention_under_that_mask(window, kv_heads):
    trees = lay_out(random_trees())
    segments = Segments(trees.segments, trees.num_tokens)
    query, key, value = (torch.randn(1, heads, trees.num_tokens, 8) for heads in (4, kv_heads, kv_heads))
    found, _ = tree_attention(torch.nn.Identity(), query, key, value, None, segments=segments, sliding_window=window)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible_by_definition(trees, window), enable_gqa=True
    )
    assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # torch: compiled, it needs a GPU
@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_under_its_block_mask_gives_the_same(window):
    trees = lay_out(random_trees())
    segments = Segments(trees.segments, trees.num_tokens)
    query, key, value = (torch.randn(1, heads, trees.num_tokens, 16) for heads in (4, 2, 2))
    looped, _ = tree_attention(torch.nn.Identity(), query, key, value, None, segments=segments, sliding_window=window)
    flex = flex_attention(query, key, value, block_mask=segments.block_mask(window), enable_gqa=True)
    assert_close(flex.transpose(1, 2), looped, atol=1e-5, rtol=1e-5)


def test_a_tree_with_one_branch_is_one_segment():
    trees = lay_out([Tree([1, 2, 3], [Branch([4, 5])])])
    assert trees.segments.tolist() == [[0, 5, 0, 5]]
    assert trees.target_positions.tolist() == [2, 3]


def test_what_is_no_target_is_asked_of_nobody():
    trees = lay_out([Tree([1, 2], [Branch([3, 4, 5], [1, 0, 1]), Branch([6], [0])])])
    assert trees.target_ids.tolist() == [3, 5]
    assert trees.target_positions.tolist() == [1, 3]
    assert trees.target_counts().tolist() == [2, 0]


def test_without_a_prompt_the_first_token_is_no_target():
    trees = lay_out([Tree([], [Branch([3, 4])]), Tree([], [Branch([5, 6]), Branch([7, 8, 9])])])
    assert trees.target_ids.tolist() == [4, 6, 8, 9]
    assert trees.position_ids.tolist() == [[0, 1, 0, 1, 0, 1, 2]]


def test_padded_rows_hold_every_sequence_and_point_at_the_same_targets():
    trees = lay_out([Tree([1, 2], [Branch([3]), Branch([4, 5])]), Tree([6], [Branch([7, 8])])])
    rows = pad_out(trees, pad_token_id=0)
    assert rows.input_ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [6, 7, 8, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    predicted = rows.input_ids[rows.target_rows, rows.target_columns + 1]
    assert predicted.tolist() == trees.target_ids.tolist()


def test_the_first_trees_of_a_row_are_those_laid_out_alone():
    whole = [Tree([1, 2], [Branch([3]), Branch([4, 5])]), Tree([6], [Branch([7, 8])]), Tree([9], [Branch([1])])]
    margins = torch.tensor([0.1, 0.2, 0.3])
    cut, alone = lay_out(whole, {"margin": margins}).first(2), lay_out(whole[:2], {"margin": margins[:2]})
    for name in ("input_ids", "position_ids", "segments", "target_positions", "target_ids", "sequence_ids"):
        assert torch.equal(getattr(cut, name), getattr(alone, name)), name
    assert torch.equal(cut.columns["margin"], alone.columns["margin"])


def test_no_tokens_are_an_error():
    with pytest.raises(ValueError, match="no tokens"):
        lay_out([])
