"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter on the CPU: the same tests.

Memory that a kernel is handed is poisoned first, so that what it forgets to write is seen.
"""
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torch") and find_spec("triton") else ["test_*.py"]


@pytest.fixture
def device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def no_choices_kept(monkeypatch, tmp_path):
    """What is measured on odd shapes is not for the user's models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    import torch

    def poison(make):
        def made(*args, **kwargs):
            a = make(*args, **kwargs)
            return a.fill_(float("nan") if a.is_floating_point() else 77)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


@pytest.fixture(autouse=True)
def rounded_once(monkeypatch):
    """Triton's interpreter multiplies by BLAS, which on some processors rounds a row by its place in the tile; no
    GPU does. Summed in float64 and rounded once, a product is the same wherever it stands."""
    import numpy as np

    plain = np.matmul

    def matmul(a, b, dtype=None, **more):
        if dtype != np.float32:
            return plain(a, b, dtype=dtype, **more)
        return plain(a, b, dtype=np.float64, **more).astype(np.float32)

    monkeypatch.setattr(np, "matmul", matmul)
