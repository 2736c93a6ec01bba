"""Settings for all tests: no network, no telemetry, few threads, a cache of their own."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_CACHE = tempfile.TemporaryDirectory(prefix="tuneline-tests-")
os.environ.setdefault("TUNELINE_CACHE", _CACHE.name)
