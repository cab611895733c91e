"""The threads of the CPU kernels: several pools at once, after a fork, freed while idle, and idle at no cost."""
import ctypes
import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from gramme.config import ConfigError

library = pytest.importorskip("gramme.kernels.cpu.library")
try:
    LEVEL = next(iter(library.levels()))
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)

from gramme.kernels.cpu.kernels import CpuKernels  # noqa: E402
from gramme.kernels.cpu.layout import pack  # noqa: E402

rng = np.random.default_rng(0)
X, W = rng.standard_normal((40, 256), dtype=np.float32), pack(rng.standard_normal((512, 256), dtype=np.float32))


def product(kernels):
    return np.array(kernels.matmul(X, W, None))


def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))


def settled(count, seconds=5.0):
    """Whether the process comes to have so many threads: one that ended is listed for a moment more."""
    end = time.monotonic() + seconds
    while threads_of_this_process() != count and time.monotonic() < end:
        time.sleep(0.01)
    return threads_of_this_process() == count


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_has_no_helpers_and_computes_the_same_alone():
    kernels = CpuKernels(LEVEL, threads=3)
    want = product(kernels)
    child = os.fork()
    if child == 0:  # no exception may reach pytest's second life
        try:
            right = np.array_equal(product(kernels), want) and threads_of_this_process() == 1
            del kernels  # the helpers are the parent's: nothing to join
            os._exit(0 if right else 1)
        finally:
            os._exit(2)
    assert _exit_code(child) == 0
    assert np.array_equal(product(kernels), want)


def _exit_code(child, seconds=60.0):
    """Of the child; it is killed when it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_pools_of_any_size_give_the_same_bits_in_turn():
    pools = [CpuKernels(LEVEL, threads=n) for n in (1, 2, 5)]
    want = product(pools[0])
    for _ in range(20):
        assert all(np.array_equal(product(p), want) for p in pools)


def test_two_python_threads_work_at_once_each_with_its_own_pool():
    want, wrong = product(CpuKernels(LEVEL, threads=1)), []

    def work():
        kernels = CpuKernels(LEVEL, threads=2)
        wrong.extend(i for i in range(100) if not np.array_equal(product(kernels), want))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert not any(w.is_alive() for w in workers) and wrong == []


def test_a_thread_that_is_not_running_keeps_nobody_waiting():
    """Others take its chunks. What stops it is a signal whose handler is sleep: number 3, so for 3 seconds."""
    before, libc, asleep_s = set(os.listdir("/proc/self/task")), ctypes.CDLL(None), int(signal.SIGQUIT)
    kernels = CpuKernels(LEVEL, threads=2)
    want = product(kernels)
    helper, = set(os.listdir("/proc/self/task")) - before
    time.sleep(0.05)  # it is parked
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    old = libc.signal(signal.SIGQUIT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        assert libc.tgkill(os.getpid(), int(helper), signal.SIGQUIT) == 0
        time.sleep(0.05)
        began = time.monotonic()
        assert np.array_equal(product(kernels), want)
        assert time.monotonic() - began < asleep_s / 2  # else it was waited for
        del kernels
    finally:
        libc.signal(signal.SIGQUIT, old)


def test_idle_threads_use_no_processor():
    kernels = CpuKernels(LEVEL, threads=3)
    product(kernels)
    time.sleep(0.1)  # they spin for 0.2 ms of their own, then sleep
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.01  # a thread that spins would use half a second


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_a_thread_that_left_a_crowded_core_may_still_run_where_it_might_before():
    """Its helper begins on the caller's core, which has to stay there."""
    mine = os.sched_getaffinity(0)
    core, others = min(mine), set(os.listdir("/proc/self/task"))
    try:
        os.sched_setaffinity(0, {core})
        kernels = CpuKernels(LEVEL, threads=2)
        (helper,) = (int(tid) for tid in set(os.listdir("/proc/self/task")) - others)
        os.sched_setaffinity(helper, mine)  # and it inherited the caller's
        for _ in range(300):
            product(kernels)
        assert os.sched_getaffinity(helper) == mine and os.sched_getaffinity(0) == {core}
        os.sched_setaffinity(helper, {core})  # by somebody outside: that holds
        for _ in range(300):
            product(kernels)
        assert os.sched_getaffinity(helper) == {core}
        del kernels
        assert settled(len(others))
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize("worked", [False, True])
@pytest.mark.parametrize("rest", [0.0, 0.05])
def test_a_pool_that_is_let_go_ends_its_threads(worked, rest):
    """While they still spin or long asleep, whether there was work or none."""
    gc.collect()  # no other test's threads end meanwhile
    before = threads_of_this_process()
    kernels = CpuKernels(LEVEL, threads=4)
    assert threads_of_this_process() == before + 3
    if worked:
        product(kernels)
    time.sleep(rest)
    del kernels
    assert settled(before)
