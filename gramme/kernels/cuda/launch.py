"""Starts Triton kernels, counts them by name, and holds the few device functions that several of them use."""
from collections import Counter
from typing import Any

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
ROUND = tl.constexpr(12582912.0)  # 1.5 x 2^23: adding and taking it away rounds a float32 to an integer, halves to even
WIDEN = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of a bfloat16, not its value

calls: Counter[str] = Counter()  # launches by kernel name, library matrix products as "linear"


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    calls[kernel.fn.__name__] += 1
    kernel[grid](*args, **meta)


@triton.jit
def mma(a, b, acc):
    """acc + a @ b, exact products; float32 operands are not rounded to tf32."""
    if WIDEN:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def rint(x):
    """Nearest integer of a float32 below 2^22, halves to even."""
    return (x + ROUND) - ROUND


@triton.jit
def arrived_last(lock, count):
    """Whether the calling program is the last of `count` that share `lock`; all it then reads of theirs is complete.

    The lock is left at zero for the next kernel.
    """
    tl.debug_barrier()  # all threads' stores come before the one thread's atomic
    last = tl.atomic_add(lock, 1, sem="acq_rel") == count - 1
    tl.debug_barrier()
    if last:
        tl.store(lock, 0)
    return last
