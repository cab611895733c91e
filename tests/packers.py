"""A packer and an unpacker of each weight format, from the published layouts alone: it has never seen the readers.

A layout is a table of places: which bits of the file hold element i. Packing scatters along the table, unpacking
gathers along it, and `values` says in float64 what the codes mean. Every product of a code and half-precision scales
has fewer than 24 significant bits and at most one sum follows, so a reader that is right agrees to the last bit.
"""
from dataclasses import dataclass

import ml_dtypes
import numpy as np

SEQUENTIAL = None
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ: bits 4i..4i+3 of a word hold its column ORDER[i]


def pack(codes, bits, order=SEQUENTIAL):
    """Unsigned codes (R, C) to int32 words (R, ceil(C * bits / 32)), the first code lowest unless `order` is given."""
    per_word = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word))).astype(np.uint32)
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for place, element in enumerate(order or range(per_word)):
        words |= codes[:, element::per_word] << np.uint32(bits * place)
    return np.ascontiguousarray(words).view(np.int32)


def unpack(words, bits, count, order=SEQUENTIAL):
    """Int32 words (R, W) to unsigned codes (R, count), int64."""
    per_word = 32 // bits
    words = np.ascontiguousarray(words).view(np.uint32)
    codes = np.zeros((words.shape[0], words.shape[1] * per_word), np.int64)
    for place, element in enumerate(order or range(per_word)):
        codes[:, element::per_word] = (words >> np.uint32(bits * place)) & np.uint32((1 << bits) - 1)
    return codes[:, :count]


@dataclass(frozen=True)
class Codes:
    """What a linear layer holds: w[n, k] = (u[n, k] - z[n, g_idx[k]]) * s[n, g_idx[k]]."""
    u: np.ndarray      # (N, K) 0 .. 2^bits - 1
    z: np.ndarray      # (N, G) the same range
    s: np.ndarray      # (N, G) float16, bfloat16 or float32
    g_idx: np.ndarray  # (K,) the group of each input
    bits: int = 4

    def values(self):
        """(N, K) float32."""
        s = self.s.astype(np.float64)
        return ((self.u - self.z[:, self.g_idx]) * s[:, self.g_idx]).astype(np.float32)


def random_codes(seed, n, groups, group, bits=4, symmetric=False, act_order=False, dtype=np.float16):
    """Codes over their whole range, scales over four orders of magnitude."""
    rng = np.random.default_rng(seed)
    rng = np.random.default_rng(seed)
    k = groups * group
    top = 1 << bits
    z = np.full((n, groups), top // 2) if symmetric else rng.integers(0, top, (n, groups))
    s = (10.0 ** rng.uniform(-4, 0, (n, groups))).astype(dtype)
    g_idx = np.arange(k) // group
    return Codes(rng.integers(0, top, (n, k)), z, s, rng.permutation(g_idx) if act_order else g_idx, bits)


def awq(codes):
    return {"qweight": pack(codes.u.T, 4, INTERLEAVED), "qzeros": pack(codes.z.T, 4, INTERLEAVED),
            "scales": np.ascontiguousarray(codes.s.T)}


def from_awq(tensors):
    n, k = tensors["scales"].shape[1], tensors["qweight"].shape[0]
    u = unpack(tensors["qweight"], 4, n, INTERLEAVED).T
    z = unpack(tensors["qzeros"], 4, n, INTERLEAVED).T
    return Codes(u, z, tensors["scales"].T, np.arange(k) // (k // z.shape[1]))


def gptq(codes, version):
    stored = (codes.z - (version == 1)) % (1 << codes.bits)
    return {"qweight": np.ascontiguousarray(pack(codes.u, codes.bits).T), "qzeros": pack(stored.T, codes.bits),
            "scales": np.ascontiguousarray(codes.s.T), "g_idx": codes.g_idx.astype(np.int32)}


def from_gptq(tensors, bits, version):
    n, k = tensors["scales"].shape[1], tensors["g_idx"].shape[0]
    z = (unpack(tensors["qzeros"], bits, n).T + (version == 1)) % (1 << bits)
    return Codes(unpack(tensors["qweight"].T, bits, k), z, tensors["scales"].T, tensors["g_idx"].astype(np.int64), bits)


def pack_quantized(codes, symmetric):
    """Codes are stored signed, then moved up by 2^(bits - 1) for packing: unsigned again; so are zero points."""
    tensors = {"weight_packed": pack(codes.u, codes.bits), "weight_scale": codes.s,
               "weight_shape": np.array(codes.u.shape, np.int64)}
    if not symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(pack(codes.z.T, codes.bits).T)
    return tensors


def from_pack_quantized(tensors, bits):
    n, k = map(int, tensors["weight_shape"])
    s = tensors["weight_scale"]
    z = np.full(s.shape, 1 << bits - 1)
    if "weight_zero_point" in tensors:
        z = unpack(tensors["weight_zero_point"].T, bits, n).T
    return Codes(unpack(tensors["weight_packed"], bits, k), z, s, np.arange(k) // (k // s.shape[1]), bits)


def int_quantized(seed, n, k, dtype):
    """Tensors and their meaning: one scale an output row, no zero point."""
    rng = np.random.default_rng(seed)
    q, s = rng.integers(-128, 128, (n, k)).astype(np.int8), (10.0 ** rng.uniform(-4, 0, (n, 1))).astype(dtype)
    return {"weight": q, "weight_scale": s}, (q.astype(np.float64) * s.astype(np.float64)).astype(np.float32)


def float_quantized(seed, n, k, dtype, scales):
    """As `int_quantized`; `scales` is (n, 1), or (1,) for one scale a tensor."""
    rng = np.random.default_rng(seed)
    q = rng.uniform(-448, 448, (n, k)).astype(ml_dtypes.float8_e4m3fn)
    s = (10.0 ** rng.uniform(-4, 0, scales)).astype(dtype)
    return {"weight": q, "weight_scale": s}, (q.astype(np.float64) * s.astype(np.float64)).astype(np.float32)


# GGUF blocks. `places(i)` lists, from the lowest bits up, the (byte, shift, width) that hold element i's code.

def _nibbles_of_32(start):
    return lambda i: [(start + i % 16, 4 * (i // 16), 4)]


def _nibbles_of_256(start):
    return lambda i: [(start + 32 * (i // 64) + i % 32, 4 * (i % 64 // 32), 4)]


def _q6_k(i):
    half, quarter, lane = i // 128, i % 128 // 32, i % 32
    return [(64 * half + 32 * (quarter % 2) + lane, 4 * (quarter // 2), 4), (128 + 32 * half + lane, 2 * quarter, 2)]


@dataclass(frozen=True)
class Block:
    """One block type: its places, and where its half-precision scale and its minimum or offset are."""
    elements: int
    nbytes: int
    places: object
    d: int = 0
    m: int | None = None
    bias: int = 0         # the code that means zero
    signed: bool = False  # codes are int8

    def random(self, rng, rows, blocks):
        """Bytes (rows, blocks * nbytes) uint8 and the float32 (rows, blocks * elements) that they mean."""
        raw = np.zeros((rows * blocks, self.nbytes), np.uint8)
        width = sum(width for _, _, width in self.places(0))
        codes = rng.integers(0, 1 << width, (len(raw), self.elements))
        for i in range(self.elements):
            self._put(raw, i, codes[:, i])
        d, m = ((rng.normal(0, 0.02, len(raw))).astype(np.float16) for _ in range(2))
        raw[:, self.d:self.d + 2] = d[:, None].view(np.uint8)
        if self.m is not None:
            raw[:, self.m:self.m + 2] = m[:, None].view(np.uint8)
        scale, offset = self._sub_scales(rng, raw, d.astype(np.float64), m.astype(np.float64))
        q = codes.astype(np.uint8).view(np.int8).astype(np.float64) if self.signed else codes - float(self.bias)
        values = (q * scale + (offset if self.m is not None else 0)).astype(np.float32)
        return raw.reshape(rows, -1), values.reshape(rows, -1)

    def _put(self, raw, i, codes):
        for byte, shift, width in self.places(i):
            raw[:, byte] |= ((codes & ((1 << width) - 1)) << shift).astype(np.uint8)
            codes = codes >> width

    def codes(self, raw):
        """Raw (rows, nbytes) to (rows, elements): the inverse of what `random` puts, before the bias."""
        out = np.zeros((len(raw), self.elements), np.int64)
        for i in range(self.elements):
            at = 0
            for byte, shift, width in self.places(i):
                out[:, i] |= (raw[:, byte].astype(np.int64) >> shift & ((1 << width) - 1)) << at
                at += width
        return out.astype(np.uint8).view(np.int8).astype(np.int64) if self.signed else out - self.bias

    def _sub_scales(self, rng, raw, d, m):
        """The scale and the offset of each element; blocks of 256 get random sub-scales, written into `raw`."""
        if self.elements == 32:
            return d[:, None], m[:, None]
        if self.m is None:  # Q6_K: sixteen int8 scales before d
            scales = rng.integers(-128, 128, (len(raw), 16)).astype(np.int8)
            raw[:, 192:208] = scales.view(np.uint8)
            return np.repeat(d[:, None] * scales, 16, axis=1), None
        scales, mins = rng.integers(0, 64, (2, len(raw), 8))
        for j in range(8):  # twelve bytes from 4: the first four keep all six bits, the others' top two fill the gaps
            if j < 4:
                raw[:, 4 + j] |= scales[:, j].astype(np.uint8)
                raw[:, 8 + j] |= mins[:, j].astype(np.uint8)
            else:
                raw[:, 8 + j] |= (scales[:, j] & 15 | (mins[:, j] & 15) << 4).astype(np.uint8)
                raw[:, j] |= (scales[:, j] >> 4 << 6).astype(np.uint8)
                raw[:, 4 + j] |= (mins[:, j] >> 4 << 6).astype(np.uint8)
        return np.repeat(d[:, None] * scales, 32, axis=1), -np.repeat(m[:, None] * mins, 32, axis=1)


def _with_fifth_bit(nibble, fifth):
    return lambda i: nibble(i) + [fifth(i)]


BLOCKS = {
    "Q8_0": Block(32, 34, lambda i: [(2 + i, 0, 8)], signed=True),
    "Q4_0": Block(32, 18, _nibbles_of_32(2), bias=8),
    "Q4_1": Block(32, 20, _nibbles_of_32(4), m=2),
    "Q5_0": Block(32, 22, _with_fifth_bit(_nibbles_of_32(6), lambda i: (2 + i // 8, i % 8, 1)), bias=16),
    "Q5_1": Block(32, 24, _with_fifth_bit(_nibbles_of_32(8), lambda i: (4 + i // 8, i % 8, 1)), m=2),
    "Q4_K": Block(256, 144, _nibbles_of_256(16), m=2),
    "Q5_K": Block(256, 176, _with_fifth_bit(_nibbles_of_256(48), lambda i: (16 + i % 32, i // 32, 1)), m=2),
    "Q6_K": Block(256, 210, _q6_k, d=208, bias=32),
}
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def random_tensor(seed, kind, rows, blocks):
    """Bytes and meaning of a (rows, blocks * block size) tensor of GGUF type `kind`."""
    rng = np.random.default_rng(seed)
    if kind in BLOCKS:
        return BLOCKS[kind].random(rng, rows, blocks)
    stored = rng.normal(0, 1, (rows, 32 * blocks)).astype(FLOATS[kind])
    return stored.view(np.uint8), stored.astype(np.float32)


def unpack_rows(kind, raw):
    """Raw (rows, bytes) of Q8_0 or Q4_0, the types that are written, to float32 (rows, K)."""
    block = BLOCKS[kind]
    blocks = raw.reshape(-1, block.nbytes)
    d = np.ascontiguousarray(blocks[:, block.d:block.d + 2]).view(np.float16).astype(np.float64)
    return (block.codes(blocks) * d).astype(np.float32).reshape(len(raw), -1)
