"""Results never share memory while they live, and what the arena keeps is bounded whatever sizes come."""
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gramme.kernels.cpu.arena import SLACK, Arena, Room

steps = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 6)), max_size=60)


@given(steps, st.sampled_from([0, 5_000, 60_000]))
def test_live_arrays_are_disjoint_and_keep_their_values(steps, room):
    arena, live = Arena(), []
    arena.room = Room(room) if room else None
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


@given(steps)
def test_a_room_is_whole_again_when_all_has_come_back(steps):
    arena, live = Arena(), []
    arena.room = room = Room(1 << 20)
    for size, keep in steps:
        live = live[len(live) - keep :] if keep else []
        live.append(arena.empty((size,), np.float32))
        assert arena.holds(live[-1][:1])
    assert arena.nbytes == 0, "what fits is cut from the room"
    del live
    assert room.take(1 << 20) == room.start and room.take(1) is None


def test_what_a_room_does_not_hold_is_got_elsewhere():
    arena = Arena()
    arena.room = Room(1024)
    inside, outside = arena.empty((900,), np.uint8), arena.empty((900,), np.uint8)
    assert arena.room.holds(inside.ctypes.data) and not arena.room.holds(outside.ctypes.data)
    assert arena.holds(outside) and arena.nbytes > 900


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
