"""The reference operations token by token: a row's last bit depends on its own input only.

numpy's BLAS adds up a row in another order when other rows are multiplied beside it. Two nearly equal logits may then
change places, and a test that allows for that lets a real mistake through. Here nothing may differ.
"""
from dataclasses import replace

import numpy as np

from gramme.kernels.load import Backend, backend


def by_token(op):
    return lambda x, *rest: np.concatenate([op(x[t : t + 1], *rest) for t in range(len(x))])


def attend_by_token(attend):
    def each(q, k, v, kv, step, window, act):
        owners = np.repeat(np.arange(len(step.lengths)), np.diff(step.starts))
        out = []
        for t, b in enumerate(owners):
            one = slice(t, t + 1)
            alone = replace(step, positions=step.positions[one], slots=step.slots[one], pages=step.pages[b : b + 1],
                            starts=np.array([0, 1]), lengths=step.positions[one] + 1)
            out.append(attend(q[one], k[one], v[one], kv, alone, window, act))
        return np.concatenate(out)

    return each


def exact() -> Backend:
    numpy = backend("reference")
    ops = replace(numpy.ops, matmul=by_token(numpy.ops.matmul), gate_up=by_token(numpy.ops.gate_up),
                  attend=attend_by_token(numpy.ops.attend))
    return replace(numpy, ops=ops)
