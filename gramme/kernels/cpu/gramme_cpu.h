// What Python and the C++ units agree on: a call is an operation, its pointers and its sizes. Knows no Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

// The slots of `p`, `n` and `f` are named in the first lines of each kernel and in library.py.
struct Args {
    void *p[12];
    int64_t n[12];
    float f[4];
};

enum Op {
    OP_TAKE, OP_ADD_NORM, OP_HEAD_NORM, OP_QUANTISE, OP_MATMUL, OP_GATE_UP, OP_ROPE, OP_WRITE_KV, OP_ATTEND, OP_MERGE,
    OP_SAMPLE, OP_READ, OP_COUNT
};

struct Call {
    int64_t op;
    const Args *args;
};

// An operation is cut into chunks that any thread may run in any order, with `SCRATCH_BYTES` of its own to work in.
// What a chunk computes never depends on how many threads there are.
struct Kernel {
    int64_t (*chunks)(const Args *, int threads);
    void (*run)(const Args *, int64_t chunk, char *scratch);
};

constexpr size_t SCRATCH_BYTES = 512 << 10;

struct Level {
    const char *name;
    Kernel kernels[OP_COUNT];
};

// Element types of matrices and of K and V; the codes are unsigned.
enum Kind { KIND_F32, KIND_BF16, KIND_F16, KIND_NIBBLES, KIND_BYTES, KIND_I8 };
