// One instruction set's table of kernels. A level's unit includes its simd_*.h, names itself and includes this.
#pragma once
#include "attention.h"
#include "sample.h"

#define TABLE_OF(level) gramme_##level
#define TABLE(level) TABLE_OF(level)
#define NAME_OF(level) #level
#define NAME(level) NAME_OF(level)

extern "C" const Level TABLE(LEVEL) = {
    NAME(LEVEL),
    {
        {row_chunks, take}, {row_chunks, add_norm}, {row_chunks, head_norm}, {row_chunks, quantise},
        {matmul_chunks, matmul}, {gate_up_chunks, gate_up}, {row_chunks, rope}, {write_chunks, write_kv},
        {attend_chunks, attend}, {merge_chunks, merge}, {sample_chunks, sample}, {read_chunks, read_memory},
    },
};
