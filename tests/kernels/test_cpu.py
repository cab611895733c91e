"""The C++ kernels against the reference, on every level that this machine runs, row by row, on ugly shapes.

Quantised activations are equal bit for bit; a product of the same integers differs by float32's rounding of the sums of
groups only; and a row's result does not change by a bit with what shares its call.
"""
from dataclasses import replace

import numpy as np
import pytest

from gramme.config import ConfigError
from gramme.formats.grouped import Grouped, dense
from gramme.kernels import reference
from gramme.kernels.ops import KV, Permuted, Quantised, Sampling, Step

library = pytest.importorskip("gramme.kernels.cpu.library")
try:
    LEVELS = list(library.levels())
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

from gramme.kernels.cpu.kernels import CpuKernels  # noqa: E402
from gramme.kernels.cpu.layout import pack  # noqa: E402


@pytest.fixture(scope="module", params=LEVELS)
def cpu(request):
    return CpuKernels(request.param, threads=2)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def worst_row(ours, want):
    """The largest relative error of a row, by its norm."""
    ours, want = (np.asarray(a, np.float64).reshape(len(a), int(np.prod(np.shape(a)[1:]))) for a in (ours, want))
    return (np.linalg.norm(ours - want, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1e-30)).max(initial=0)


def floats(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def integers(rng, rows, columns, bits, group, zeros):
    scales = (rng.random((rows, columns // group), dtype=np.float32) + 0.1).astype(np.float16).astype(np.float32)
    zero = rng.integers(0, 1 << bits, scales.shape) if zeros else 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, (rows, columns), np.uint8)
    return Grouped(codes, scales, (scales * zero).astype(np.float32), bits)


def same(a, b):
    parts = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return all(np.array_equal(x, y) for x, y in parts)


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
def test_quantise_is_the_reference_bit_for_bit(cpu, rng, group, tokens):
    x = floats(rng, tokens, 384) * np.exp(floats(rng, tokens, 384) * 3)
    if tokens:
        x[0, :group] = 0
    assert same(cpu.quantise(x, f"int8/{group}"), reference.quantise(x, f"int8/{group}"))


def test_quantise_keeps_what_is_not_finite(cpu):
    x = np.ones((2, 64), np.float32)
    x[0, 3], x[1, 40] = np.nan, np.inf
    scales = cpu.quantise(x, "int8/32").scales
    assert np.isnan(scales[0, 0]) and scales[0, 1] == scales[1, 0] and np.isinf(scales[1, 1])


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_columns_in_another_order(cpu, rng, group, tokens):
    """Whatever makes the activations, they are those of x[:, order]."""
    x, gain = floats(rng, tokens, 384), floats(rng, 384)
    order = rng.permutation(384).astype(np.int32)
    act = Permuted(f"int8/{group}", order, np.argsort(order).astype(np.int32))
    assert same(cpu.quantise(x, act), reference.quantise(x[:, act.order], act.act))
    normed = cpu.add_norm(x, None, gain, 1e-5, "float")[0]
    assert same(cpu.add_norm(x, None, gain, 1e-5, act)[0], cpu.quantise(normed, act))
    w = pack(floats(rng, 768, 384) / 16)
    assert same(cpu.gate_up(x, w, None, act), cpu.quantise(cpu.gate_up(x, w, None, "float"), act))
    for wrong in (act.order + 1, act.order - 1, act.order[:-1], act.order.astype(np.int64)):
        with pytest.raises(ValueError, match="order"):
            cpu.quantise(x, act._replace(order=wrong))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("group, act", [(32, 32), (64, 32), (128, 32), (128, 128), (384, 128)])
@pytest.mark.parametrize("tokens, rows", [(1, 123), (5, 16), (7, 33), (8, 48), (13, 5), (300, 40)])
def test_integer_products(cpu, rng, bits, zeros, group, act, tokens, rows):
    w = integers(rng, rows, 1152 if group == 384 else 1280, bits, group, zeros)
    x, bias = reference.quantise(floats(rng, tokens, w.shape[1]), f"int8/{act}"), floats(rng, rows)
    ours = cpu.matmul(x, pack(w), bias)
    assert worst_row(ours, reference.matmul(x, w, bias)) < 1e-5
    alone = [cpu.matmul(Quantised(*(a[t : t + 1] for a in x)), pack(w), bias) for t in range(min(tokens, 9))]
    assert np.array_equal(ours[:9], np.concatenate(alone))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tokens, rows, columns", [(0, 16, 32), (1, 123, 5), (5, 16, 123), (40, 33, 640), (300, 7, 99)])
def test_float_products(cpu, rng, dtype, tokens, rows, columns):
    w, x = floats(rng, rows, columns).astype(reference.storage_dtype(dtype)), floats(rng, tokens, columns)
    ours = cpu.matmul(x, pack(w), None)
    assert worst_row(ours, x.astype(np.float64) @ w.astype(np.float64).T) < 1e-5
    alone = [cpu.matmul(x[t : t + 1], pack(w), None) for t in range(min(tokens, 9))]
    assert not alone or np.array_equal(ours[:9], np.concatenate(alone))


def test_scales_outside_of_float16_keep_their_precision(cpu, rng):
    w = integers(rng, 16, 64, 4, 32, False)
    tiny = Grouped(w.codes, w.scales * np.float32(2.0**-30), w.offsets * np.float32(2.0**-30), 4)
    x = reference.quantise(floats(rng, 2, 64), "int8/32")
    assert worst_row(cpu.matmul(x, pack(tiny), None), reference.matmul(x, tiny, None)) < 1e-5


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int4", "int8"])
@pytest.mark.parametrize("half, act", [(352, "int8/32"), (384, "int8/128"), (123, "float"), (40, "float")])
@pytest.mark.parametrize("tokens, biased", [(1, True), (6, False), (70, True)])
def test_gate_up(cpu, rng, form, half, act, tokens, biased):
    x, bias = floats(rng, tokens, 256), floats(rng, 2 * half) if biased else None
    if form.startswith("int"):
        w = integers(rng, 2 * half, 256, int(form[3:]), 32, False)
        w = Grouped(w.codes, w.scales / 128, w.offsets / 128, w.bits)
        x = reference.quantise(x, "int8/32")
    else:
        w = (floats(rng, 2 * half, 256) / 16).astype(reference.storage_dtype(form))
    wide = reference.gate_up(x, w if form.startswith("int") else w.astype(np.float32), bias, "float")
    ours = cpu.gate_up(x, pack(w), bias, "float")
    assert worst_row(ours, wide) < 2e-5
    assert same(cpu.gate_up(x, pack(w), bias, act), cpu.quantise(ours, act))


def test_swiglu_at_the_ends_of_float32(cpu):
    w = np.array([[1.0], [1.0]], np.float32)
    x = np.array([[0.0], [-100.0], [100.0], [-3e38], [1e19], [np.nan]], np.float32)
    ours = cpu.gate_up(x, pack(w), None, "float")[:, 0]
    np.testing.assert_allclose(ours[:5], [0, 0, 1e4, 0, np.float32(1e19) ** 2], rtol=1e-6, atol=1e-30)
    assert np.isnan(ours[5])


@pytest.mark.parametrize("width", [1, 123, 128, 4096])
@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_add_norm(cpu, rng, width, tokens):
    x, r, gain = floats(rng, tokens, width), floats(rng, tokens, width), floats(rng, width)
    for before in (None, r):
        ours, total = cpu.add_norm(x, before, gain, 1e-5, "float")
        want, residual = reference.add_norm(x, before, gain, 1e-5, "float")
        assert np.array_equal(total, residual) and worst_row(ours, want) < 1e-6
        if width % 32 == 0:
            assert same(cpu.add_norm(x, before, gain, 1e-5, "int8/32")[0], cpu.quantise(ours, "int8/32"))


@pytest.mark.parametrize("head_dim", [16, 24, 128])
def test_heads_are_normed_and_rotated_where_they_lie(cpu, rng, head_dim):
    y = floats(rng, 9, 6, head_dim)
    table, gain = floats(rng, 50, head_dim), floats(rng, head_dim)
    positions = rng.integers(0, 50, 9).astype(np.int32)
    for part in (y[:, :4], y[:, 4:5], y[2:2]):
        assert worst_row(cpu.head_norm(part, gain, 1e-6), reference.rms_norm(part, gain, 1e-6)) < 1e-6
        p = positions[: len(part)]
        assert worst_row(cpu.rope(part, table, p), reference.rope(part, table, p)) < 1e-6


@pytest.mark.parametrize("form", ["float32", "bfloat16", "float16", "int4", "int8", "zeros"])
def test_take_gives_the_matrix_back(cpu, rng, form):
    if form in ("int4", "int8", "zeros"):
        w = integers(rng, 37, 128, 8 if form == "int8" else 4, 32, form == "zeros")
        want = dense(w)
    else:
        w = floats(rng, 37, 123).astype(reference.storage_dtype(form))
        want = w.astype(np.float32)
    ids = np.array([36, 0, 17, 17], np.int32)
    np.testing.assert_allclose(cpu.take(pack(w), ids), want[ids], rtol=1e-6, atol=1e-6)
    assert np.array_equal(cpu.take(want, ids), want[ids])


# Attention


def a_step(rng, rows, size, pages):
    """Rows of (tokens, context) over pages in random order, page 0 left out."""
    counts = [n for n, _ in rows]
    lengths = np.array([length for _, length in rows], np.int32)
    width = max(1, max(-(-int(n) // size) for n in lengths))
    free, table = list(rng.permutation(np.arange(1, pages))), np.zeros((len(rows), width), np.int32)
    for b, length in enumerate(lengths):
        for i in range(-(-int(length) // size)):
            table[b, i] = free.pop()
    positions = np.concatenate([np.arange(length - n, length) for n, length in rows]).astype(np.int32)
    owners = np.repeat(np.arange(len(rows)), counts)
    slots = (table[owners, positions // size] * size + positions % size).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Step(positions, positions, slots, starts, lengths, table, positions, max(counts), int(lengths.max()))


def pages_of(dtype, pages, kv_heads, size, head_dim):
    shape = (pages, kv_heads, size, head_dim)
    k, v = (np.zeros(shape, reference.storage_dtype(dtype)) for _ in range(2))
    scales = [np.zeros(shape[:3], np.float16) if dtype == "int8" else None for _ in range(2)]
    return KV(k, v, *scales)


def run_chunks(attend, kv, qkv, rows, chunks, size, window):
    """The last chunk's result, the earlier ones having filled the pages."""
    pages = a_step(np.random.default_rng(1), [(n, n) for n in rows], size, len(kv.k)).pages
    for chunk in chunks:
        step = a_step(np.random.default_rng(1), [(b - a, b) for a, b in chunk], size, len(kv.k))
        slots = [pages[i, np.arange(a, b) // size] * size + np.arange(a, b) % size for i, (a, b) in enumerate(chunk)]
        step = replace(step, pages=pages, slots=np.concatenate(slots).astype(np.int32))
        pick = [np.concatenate([x[i][a:b] for i, (a, b) in enumerate(chunk)]) for x in qkv]
        out = attend(*pick, kv, step, window, "float")
    return out.reshape(pick[0].shape)


# rows, page size, head size, heads, KV heads
CASES = [([1], 32, 64, 4, 2), ([40], 16, 32, 3, 1), ([3, 700, 1], 16, 64, 8, 2), ([1300], 32, 128, 4, 4),
         ([60, 33], 64, 16, 32, 1),
         ([50, 21], 4, 32, 4, 2), ([9], 1, 16, 2, 2)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("window", [None, 1, 37])
@pytest.mark.parametrize("rows, size, head_dim, heads, kv_heads", CASES)
def test_attention_whole_and_in_chunks(cpu, rng, dtype, window, rows, size, head_dim, heads, kv_heads):
    """Equal to the reference on what the pages hold; chunked = whole to the bit; a step of one token = its prefill."""
    shape = 2 + sum(-(-n // size) for n in rows), kv_heads, size, head_dim
    qkv = [[floats(rng, n, h, head_dim) for n in rows] for h in (heads, kv_heads, kv_heads)]
    stored = [[_stored(x, dtype) for x in part] for part in qkv[1:]]  # the reference sees what is left of K and V
    whole = [[(0, n) for n in rows]]
    ours = run_chunks(cpu.attend, pages_of(dtype, *shape), qkv, rows, whole, size, window)
    want = run_chunks(reference.attend, pages_of("float32", *shape), [qkv[0], *stored], rows, whole, size, window)
    assert worst_row(ours, want) < 2e-6
    cuts = [[(0, n // 2) for n in rows], [(n // 2, n - 1) for n in rows], [(n - 1, n) for n in rows]]
    cuts = cuts if all(b > a for cut in cuts for a, b in cut) else whole
    last = run_chunks(cpu.attend, pages_of(dtype, *shape), qkv, rows, cuts, size, window)
    ends = np.cumsum(rows) - 1
    assert np.array_equal(last[-len(rows):] if cuts is not whole else last[ends], ours[ends])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_long_context_gives_the_same_however_it_is_shared(cpu, rng, dtype):
    """More threads cut it finer, and fewer KV heads are read together; not a bit changes."""
    size, length = 16, 4200
    step = a_step(rng, [(1, length)], size, 300)
    kv = pages_of(dtype, 300, 4, size, 32)
    for a in kv:
        if a is not None:
            a[:] = rng.random(a.shape) * (100 if a.dtype == np.int8 else 0.02 if dtype == "int8" else 1)
    q, k, v = floats(rng, 1, 16, 32), floats(rng, 1, 4, 32), floats(rng, 1, 4, 32)
    ours = [CpuKernels(cpu.pool.level, n).attend(q, k, v, kv, step, None, "float") for n in (1, 2, 8)]
    assert np.array_equal(ours[0], ours[1]) and np.array_equal(ours[0], ours[2])
    want = reference.attend(q, k, v, _in_order(kv), step, None, "float")
    np.testing.assert_allclose(ours[0], want, rtol=2e-5, atol=1e-5)


def _in_order(kv):
    """The pages as the reference has them: keys by token, not sixteen tokens side by side."""
    pages, heads, size, head_dim = kv.k.shape
    k = kv.k.reshape(pages, heads, size // 16, head_dim, 16).swapaxes(-1, -2).reshape(kv.k.shape)
    return KV(k.copy(), kv.v.copy(), *(None if s is None else s.copy() for s in kv[2:]))


def _stored(x, dtype):
    if dtype != "int8":
        return x.astype(reference.storage_dtype(dtype)).astype(np.float32)
    scale = (np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)).astype(np.float16).astype(np.float32)
    return np.clip(np.rint(x * (1 / scale)), -127, 127) * scale


def test_attention_over_whole_sequences_needs_no_pages(cpu, rng):
    step = a_step(rng, [(5, 5), (1, 1), (40, 40)], 16, 20)
    q, k, v = floats(rng, 46, 4, 32), floats(rng, 46, 2, 32), floats(rng, 46, 2, 32)
    ours, want = (ops.attend(q, k, v, None, step, None, "float") for ops in (cpu, reference))
    assert worst_row(ours, want) < 2e-6


def test_what_is_not_finite_stays_in_its_row(cpu, rng):
    step = a_step(rng, [(20, 20), (20, 20)], 16, 20)
    q, k, v = floats(rng, 40, 4, 32), floats(rng, 40, 2, 32), floats(rng, 40, 2, 32)
    clean = cpu.attend(q, k, v, pages_of("float16", 20, 2, 16, 32), step, None, "float")
    k[5] = np.nan
    dirty = cpu.attend(q, k, v, pages_of("float16", 20, 2, 16, 32), step, None, "float")
    assert np.isnan(dirty[5:20]).all() and same((dirty[20:], dirty[:5]), (clean[20:], clean[:5]))


@pytest.mark.parametrize("change, message", [
    (dict(slots=np.array([1 << 20], np.int32)), "slots"), (dict(pages=np.array([[9999]], np.int32)), "pages"),
    (dict(positions=np.array([-1], np.int32)), "positions"), (dict(starts=np.array([0, 2], np.int32)), "starts"),
    (dict(starts=np.array([1, 1], np.int32)), "starts"), (dict(slots=np.array([16], np.int64)), "slots"),
])
def test_indices_are_checked_before_they_are_used(cpu, rng, change, message):
    step = replace(a_step(rng, [(1, 1)], 16, 4), **change)
    with pytest.raises(ValueError, match=message):
        cpu.attend(floats(rng, 1, 4, 32), *floats(rng, 2, 1, 2, 32), pages_of("float16", 4, 2, 16, 32), step, None,
                   "float")


def test_wrong_shapes_and_types_are_refused(cpu, rng):
    w, x = pack(floats(rng, 16, 64)), floats(rng, 2, 64)
    for bad in (x.astype(np.float64), x[:, :32], np.asfortranarray(x), reference.quantise(x, "int8/32")):
        with pytest.raises(ValueError):
            cpu.matmul(bad, w, None)
    with pytest.raises(ValueError, match="ids"):
        cpu.take(w, np.array([16], np.int32))
    with pytest.raises(ValueError, match="positions"):
        cpu.rope(floats(rng, 1, 2, 32), floats(rng, 8, 32), np.array([8], np.int32))
    with pytest.raises(ValueError):
        pack(integers(rng, 16, 48, 4, 16, False))


def test_greedy_takes_the_first_of_the_largest(cpu, rng):
    logits = np.round(floats(rng, 6, 1003) * 3)
    logits[2, 1000], logits[3, 7] = np.nan, np.inf
    zero = np.zeros(6, np.float32)
    s = Sampling(temperature=zero, top_p=zero + 1, min_p=zero, top_k=zero.astype(np.int32), u=zero.astype(np.float64))
    assert cpu.sample(logits, s).tokens.tolist() == reference.sample(logits, s).tokens.tolist()


@pytest.mark.parametrize("vocabulary, spread", [(5, 1), (1003, 2), (1003, 0.01), (32000, 1), (32000, 4), (700, 0)])
def test_drawn_tokens_are_the_reference_s(cpu, rng, vocabulary, spread):
    """Sums are added in another order, which moves a choice with a probability of 1e-13; here none."""
    n = 64
    some = lambda *values: rng.choice(np.array(values, np.float32), n)
    logits = floats(rng, n, vocabulary) * np.float32(spread)
    logits[::7] = np.round(logits[::7])  # many equals
    logits[5, vocabulary // 2] = np.nan
    s = Sampling(temperature=some(0, 0.1, 0.7, 1, 1, 3), top_p=some(1, 1, 0.95, 0.5, 0.01), min_p=some(0, 0, 0.05, 1),
                 top_k=some(0, 0, 1, 40, 5000).astype(np.int32), u=rng.random(n))
    s.u[:3] = 0, 1 - 2.0**-53, 0.5
    assert cpu.sample(logits, s).tokens.tolist() == reference.sample(logits, s).tokens.tolist()


def test_a_recorded_step_does_the_same_again_on_new_inputs(cpu, rng):
    w, x, gain = pack(integers(rng, 64, 64, 4, 32, False)), floats(rng, 3, 64), floats(rng, 64)
    out = np.zeros((3, 64), np.float32)

    def step():
        y, _ = cpu.add_norm(x, None, gain, 1e-5, "int8/32")
        for _ in range(5):
            y = cpu.quantise(cpu.matmul(y, w, None), "int8/32")
        results.append(cpu.matmul(y, w, None))

    results = []
    replay = cpu.capture(step)
    x[:] = floats(rng, 3, 64)
    replay()
    out[:] = results[0]
    step()
    assert np.array_equal(out, results[1])
