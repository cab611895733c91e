"""Steps of random rows over random pages, as numpy, and their copies on a device."""
from dataclasses import fields

import numpy as np
import torch

from gramme.kernels.ops import Step


def random_step(rows, size, seed=0):
    """rows: (tokens already in the pages, tokens of this step) each. Returns the step and the number of pages."""
    r = np.random.default_rng(seed)
    counts = [n for _, n in rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    lengths = np.array([before + n for before, n in rows])
    pages = np.zeros((len(rows), -(-int(lengths.max()) // size)), np.int64)
    used = [-(-int(length) // size) for length in lengths]
    free = iter(r.permutation(sum(used)) + 1)
    for b, n in enumerate(used):
        pages[b, :n] = [next(free) for _ in range(n)]
    positions = np.concatenate([np.arange(before, before + n) for before, n in rows])
    owner = np.repeat(np.arange(len(rows)), counts)
    slots = pages[owner, positions // size] * size + positions % size
    tokens, outputs = r.integers(0, 100, sum(counts)), np.arange(sum(counts))
    arrays = (a.astype(np.int32) for a in (tokens, positions, slots, starts, lengths, pages, outputs))
    return Step(*arrays, max_row=max(counts), max_length=int(lengths.max())), 1 + sum(used)


def on(device, step):
    put = lambda a: torch.tensor(a, device=device) if isinstance(a, np.ndarray) else a
    return Step(**{f.name: put(getattr(step, f.name)) for f in fields(step)})
