"""Results never share memory while they live, and what the arena keeps is bounded whatever sizes come."""
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gramme.kernels.cpu.arena import SLACK, Arena

steps = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 6)), max_size=60)


@given(steps)
def test_live_arrays_are_disjoint_and_keep_their_values(steps):
    arena, live = Arena(), []
    for i, (size, keep) in enumerate(steps):
        array = arena.empty((size,), np.float32)
        assert array.ctypes.data % 64 == 0
        array[:] = i
        live = [*live, (i, array)][-keep or len(live) + 1 :]
        assert all((a == value).all() for value, a in live)


@given(steps)
def test_what_is_held_is_at_most_a_quarter_more_than_was_ever_used(steps):
    arena, live, most = Arena(), [], 0
    for size, keep in steps:
        live = live[len(live) - keep :] if keep else []
        live.append(arena.empty((size,), np.float32))
        most = max(most, sum(-(-a.nbytes // 64) * 64 * 9 // 8 + 64 for a in live))
        assert arena.nbytes <= SLACK * most


def test_equal_steps_allocate_once():
    arena = Arena()
    for _ in range(5):
        a, b = arena.empty((100, 7), np.float32), arena.empty((3,), np.int8)
        held = arena.nbytes
        del a, b
    assert arena.nbytes == held


def test_with_infinite_slack_no_block_goes():
    arena = Arena(slack=float("inf"))
    places = {n: arena.empty((n,), np.uint8).ctypes.data for n in (64, 128, 4096, 100_000)}
    assert places == {n: arena.empty((n,), np.uint8).ctypes.data for n in places}
