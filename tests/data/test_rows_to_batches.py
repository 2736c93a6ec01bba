"""From rows to what a step computes: nothing is padded, positions begin anew, and what a row loses is told."""

import pytest
from datasets import Dataset

from tests.data.tiny_tokenizers import character_tokenizer
from tests.models import tiny_causal_lm
from tests.trainers.build import QUIET
from tuneline import SFTConfig, SFTTrainer
from tuneline.data.tokenize import tokenize_for_sft
from tuneline.trainers.collators import collate_scored_pairs, collate_texts


def from_ids(rows, **options):
    return tokenize_for_sft(Dataset.from_list(rows), character_tokenizer(), **{"max_length": None, **options}).dataset


def trees_of(rows):
    return collate_texts(list(from_ids(rows)))


def test_texts_lie_end_to_end_and_none_predicts_the_start_of_the_next():
    trees = trees_of([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}])
    assert trees.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert trees.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert trees.target_ids.tolist() == [2, 3, 5]
    assert trees.target_positions.tolist() == [0, 1, 3]


def test_positions_of_packed_rows_begin_anew_with_each_sequence():
    rows = [
        {"input_ids": [1, 2, 3, 4, 5, 6], "is_target": [0, 1, 1, 0, 1, 1], "seq_lengths": [3, 3]},
        {"input_ids": [7, 8, 9, 10, 11], "is_target": [0, 1, 1, 1, 0], "seq_lengths": [4, 1]},
    ]
    trees = collate_texts(rows)
    assert trees.input_ids.tolist() == [list(range(1, 12))]
    assert trees.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0]]
    assert trees.target_ids.tolist() == [2, 3, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"pad_to_multiple_of": 8}])
def test_no_option_pads(tmp_path, options):
    args = SFTConfig(output_dir=str(tmp_path), max_length=8, **options, **QUIET)
    rows = Dataset.from_list([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}])
    trainer = SFTTrainer(tiny_causal_lm(), args, train_dataset=rows, processing_class=character_tokenizer())
    assert trainer.data_collator(list(trainer.train_dataset)).input_ids.shape == (1, 5)


def test_rows_taken_as_they_are_keep_their_length_and_their_masks(tmp_path):
    args = SFTConfig(output_dir=str(tmp_path), max_length=2, dataset_kwargs={"skip_prepare_dataset": True}, **QUIET)
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]}])
    trainer = SFTTrainer(tiny_causal_lm(), args, train_dataset=rows, processing_class=character_tokenizer())
    assert trainer.train_dataset[0] == {"input_ids": [5, 6, 7, 8], "is_target": [0, 0, 1, 1]}


def test_margins_of_pairs_reach_the_loss():
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [1, 3], "margin": margin} for margin in (0.5, 2.0)]
    assert collate_scored_pairs(rows).columns["margin"].tolist() == [0.5, 2.0]
    del rows[0]["margin"]
    assert "margin" not in collate_scored_pairs(rows).columns
