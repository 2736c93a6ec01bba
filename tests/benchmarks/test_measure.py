"""What a measured process reads about itself."""

import sys

import pytest
import torch

from benchmarks.measure import forget_peak_memory, peak_memory, resident_memory, seconds_waited
from benchmarks.peak import measure_peak

MIB = 1024**2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process restart the count of its peak")
def test_peak_memory_is_that_since_it_was_forgotten():
    forget_peak_memory()
    before = peak_memory()
    block = torch.ones(128 * MIB // 4)
    assert peak_memory() - before > 100 * MIB
    del block
    assert peak_memory() - before > 100 * MIB
    assert resident_memory() <= peak_memory()


def test_time_waited_only_grows():
    assert 0 <= seconds_waited() <= seconds_waited()


def test_matrix_products_have_a_speed():
    assert measure_peak(seconds=0.05, size=256) > 1e8
