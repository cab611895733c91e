"""Products with float, 4-bit and 8-bit weights in every regime against float64, and the layout of integer weights."""
import numpy as np
import pytest
import torch

from gramme.config import matrix_bytes
from gramme.formats.grouped import Grouped, dense
from gramme.kernels import reference
from gramme.kernels.cuda import norm
from gramme.kernels.cuda.matmul import dense_product, float_rows, tile_product
from gramme.kernels.cuda.packing import pack
from gramme.plan.gpu_memory import LOCKS, SCRATCH_VALUES, Tile
from tests.kernels.cuda.close import TOLERANCE, worst_row

PROCESSORS = 4
TILES = [Tile(16, 64, 1), Tile(16, 64, 3), Tile(64, 16, 2)]


def integers(n, k, bits, group, symmetric, seed=0):
    """Random codes with scales and offsets that float16 holds exactly."""
    r = np.random.default_rng(seed)
    scales = (r.uniform(0.5, 2, (n, k // group)) / 100).astype(np.float16).astype(np.float32)
    middle = scales * np.float32(1 << bits - 1)
    shift = 0 if symmetric else (r.uniform(-5, 5, scales.shape) / 100).astype(np.float16).astype(np.float32)
    codes = r.integers(0, 1 << bits, (n, k), dtype=np.uint8)
    return Grouped(codes, scales, middle + shift, bits)


def activations(tokens, k, dtype, device, seed=1):
    x = torch.tensor(np.random.default_rng(seed).standard_normal((tokens, k)), device=device).to(getattr(torch, dtype))
    return x, x.double().cpu().numpy()


def run(device, x, w, tile, bias=None, gated=False, half=False, output=(), room=PROCESSORS * LOCKS):
    scratch = torch.full((PROCESSORS * SCRATCH_VALUES,), float("nan"), device=device)
    locks = torch.zeros(room, dtype=torch.int32, device=device)
    out = tile_product(x, w, bias, gated, tile, half, scratch, locks, *output)
    assert not locks.any(), "a lock was left closed"
    return out


def silu_times(y):
    gate, up = np.split(y, 2, -1)
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n, k, group", [(5, 64, 32), (33, 256, 128), (16, 512, 256), (7, 192, 64)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_packed_weight_is_the_weight_and_takes_the_bytes_that_were_predicted(device, bits, n, k, group, symmetric):
    w = integers(n, k, bits, group, symmetric)
    packed = pack(w, device)
    rows, got = torch.tensor([n - 1, 0, n // 2], dtype=torch.int32, device=device), torch.empty(3, k, device=device)
    float_rows(packed, got, rows)
    np.testing.assert_allclose(got.cpu().numpy(), dense(w)[rows.cpu().numpy()], rtol=1e-3, atol=1e-6)
    assert packed.nbytes == matrix_bytes(n, k, f"int{bits}", group, not symmetric)


def test_groups_that_the_kernels_cannot_take_are_refused_with_their_size(device):
    with pytest.raises(ValueError, match="48"):
        pack(integers(4, 96, 4, 48, True), device)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens, n, k, group, symmetric", [(1, 70, 256, 128, True), (19, 33, 192, 32, False),
                                                            (5, 16, 512, 256, False)])
def test_4_bit(device, tile, dtype, tokens, n, k, group, symmetric):
    w = integers(n, k, 4, group, symmetric)
    x, hx = activations(tokens, k, dtype, device)
    assert worst_row(run(device, x, pack(w, device), tile), hx @ dense(w).astype(np.float64).T) < TOLERANCE[dtype]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_bias_and_silu_of_the_gate(device, tile, bits):
    tokens, n, k = 3, 2 * 21, 256
    x, hx = activations(tokens, k, "float32", device)
    bias = np.random.default_rng(5).standard_normal(n).astype(np.float32)
    w = integers(n, k, min(bits, 8), 128, False)
    if bits == 16:
        packed, want = torch.tensor(dense(w), device=device), hx @ dense(w).T
    elif bits == 8:
        packed, want = pack(w, device), reference.matmul(reference.quantise(hx.astype(np.float32), "int8/32"), w, None)
        x = norm.quantise(x, "int8/32")
    else:
        packed, want = pack(w, device), hx @ dense(w).astype(np.float64).T
    there = torch.tensor(bias, device=device)
    assert worst_row(run(device, x, packed, tile, there), want + bias) < 2e-5
    assert worst_row(run(device, x, packed, tile, there, gated=True), silu_times(want + bias)) < 2e-5


@pytest.mark.parametrize("tile", [Tile(16, 64, 1), Tile(16, 32, 3)], ids=str)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_silu_of_the_gate_in_the_form_that_comes_next(device, tile, bits):
    tokens, n, k = 19, 2 * 96, 256
    x, _ = activations(tokens, k, "float32", device)
    w = integers(n, k, min(bits, 8), 128, False)
    packed = torch.tensor(dense(w), device=device) if bits == 16 else pack(w, device)
    x = norm.quantise(x, "int8/32") if bits == 8 else x
    whole = run(device, x, packed, tile, gated=True)
    got, want = run(device, x, packed, tile, gated=True, output=("int8/32",)), norm.quantise(whole, "int8/32")
    assert all(map(torch.equal, got[:3], want[:3]))
    places = torch.randperm(96, device=device)
    got = run(device, x, packed, tile, gated=True, output=("float", places.int()))
    assert torch.equal(got[:, places], whole)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("act", ["int8/32", "int8/128"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_8_bit_is_the_integer_exact_reference(device, tile, act, symmetric):
    w = integers(37, 768, 8, 384, symmetric)  # one scale for three packed blocks
    x, hx = activations(5, 768, "float32", device)
    want = reference.matmul(reference.quantise(hx.astype(np.float32), act), w, None)
    assert worst_row(run(device, norm.quantise(x, act), pack(w, device), tile), want) < 1e-5


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_floats(device, tile, dtype):
    x, hx = activations(5, 123, dtype, device)
    w, hw = activations(37, 123, dtype, device, 2)
    assert worst_row(run(device, x, w, tile), hx @ hw.T) < TOLERANCE[dtype]


@pytest.mark.parametrize("bits", [4, 8])
def test_more_tokens_than_have_room_for_their_parts(device, bits):
    w, tile, act = integers(7, 96, bits, 32, True), Tile(16, 16, 3), "int8/32" if bits == 8 else "float"
    x, _ = activations(41, 96, "float32", device)  # tiles of 16 tokens, two at a time
    whole = run(device, norm.quantise(x, act), pack(w, device), tile, room=2)
    for part in (slice(0, 9), slice(30, len(x))):
        assert torch.equal(whole[part], run(device, norm.quantise(x[part], act), pack(w, device), tile))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scratch_rows", [16, 64])
def test_made_dense_piece_by_piece(device, dtype, symmetric, scratch_rows):
    w = integers(37, 256, 4, 64, symmetric)
    x, hx = activations(9, 256, dtype, device)
    bias = torch.ones(37, device=device)
    scratch = torch.full((scratch_rows * 256 * x.itemsize // 4,), float("nan"), device=device)
    assert worst_row(dense_product(x, pack(w, device), bias, scratch), hx @ dense(w).T + 1) < TOLERANCE[dtype]


def test_float16_accumulators_survive_the_largest_columns_of_a_7b_model(device):
    """K = 14336 with one column in a hundred a hundred times as large; and a group of 500s, near the stated bound."""
    tokens, n, k = 2, 16, 14336
    r = np.random.default_rng(0)
    x = r.standard_normal((tokens, k)) * np.where(r.random(k) < 0.01, 100, 1)
    x[1, :128] = 500
    w = integers(n, k, 4, 128, True)
    w.codes[:, :128] = 0  # all of the largest size and one sign
    there = torch.tensor(x, dtype=torch.float16, device=device)
    got = run(device, there, pack(w, device), Tile(16, 16, 1), half=True)
    assert worst_row(got, there.double().cpu().numpy() @ dense(w).astype(np.float64).T) < 1e-2


def test_the_bits_of_a_bfloat16_are_set_as_those_of_a_float16():
    """What the interpreter cannot show: code | 0x4180 is 16 + code / 8."""
    codes = torch.arange(16, dtype=torch.int16)
    assert torch.equal((codes | 0x4180).view(torch.bfloat16) - 17, (codes - 8).bfloat16() / 8)
