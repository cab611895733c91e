"""How far a result is from the right one: norm-wise for each row, the worst row."""
import numpy as np

TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def worst_row(got, want):
    """got torch or numpy, want numpy, both (..., n): the largest |got - want| / |want| over the last axis."""
    got = got.detach().double().cpu().numpy() if hasattr(got, "detach") else got.astype(np.float64)
    want = want.astype(np.float64)
    assert got.shape == want.shape
    return (np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max()
