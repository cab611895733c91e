"""What the published layouts say a file's tensors mean, read one field at a time: slow, plain, and not the writers'."""
import numpy as np


def fields(words, bits):
    """(R, n) int32 -> (R, n * 32 / bits), the lowest bits of a word first."""
    out = []
    for row in words.astype(np.int64):
        out.append([(int(word) & 0xFFFFFFFF) >> at & (1 << bits) - 1 for word in row for at in range(0, 32, bits)])
    return np.array(out)


def compressed_tensors(t, bits, group):
    n, k = t["weight_shape"].tolist()
    q = fields(t["weight_packed"], bits)[:, :k] - (1 << bits - 1)  # signed codes
    return np.array([[q[i, j] * float(t["weight_scale"][i, j // group]) for j in range(k)] for i in range(n)])


def gptq(t, bits):
    codes = fields(t["qweight"].T, bits).T  # (K, N)
    zeros = fields(t["qzeros"], bits) + 1  # v1
    groups, scales = t["g_idx"].tolist(), t["scales"].astype(np.float64)
    return np.array([(codes[k] - zeros[g]) * scales[g] for k, g in enumerate(groups)]).T


def awq(t, group):
    places = [0, 4, 1, 5, 2, 6, 3, 7]  # where neighbour i of 8 stands
    undo = lambda words: fields(words, 4).reshape(len(words), -1, 8)[..., places].reshape(len(words), -1)
    codes, zeros, scales = undo(t["qweight"]), undo(t["qzeros"]), t["scales"].astype(np.float64)
    return np.array([(codes[k] - zeros[k // group]) * scales[k // group] for k in range(len(codes))]).T


def q4_0(block):
    """18 bytes -> 32 values"""
    d = float(block[:2].view(np.float16)[0])
    return [d * ((int(b) & 15) - 8) for b in block[2:]] + [d * ((int(b) >> 4) - 8) for b in block[2:]]


def q8_0(block):
    """34 bytes -> 32 values"""
    return [float(block[:2].view(np.float16)[0]) * int(b) for b in block[2:].view(np.int8)]
