"""Tests whose file imports torch or transformers carry the mark `torch`; the base tier has neither installed.

Without a GPU Triton interprets its kernels; it must know before it is imported.
"""
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # arrays are tiny here: threads that wait for a core cost ten times more
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "module") and {"torch", "transformers"} & vars(item.module).keys():
            item.add_marker(pytest.mark.torch)
