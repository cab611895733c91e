// Matrix products over strips of 32 rows. Written over simd_*.h; knows no threads.
//
// A matrix (N, K) lies in blocks of 16 rows. Float kinds: block, column, row. Integer kinds: block, four columns, row,
// column in four, so that one 32-bit lane holds four columns of one row and a product of bytes lands in its own row's
// lane; nibbles: the low ones are columns 0-3 of eight, the high ones columns 4-7. Scales (and zero points, where they
// are not the middle code) are float16: block, group, row.
//
//   y[t, n] = unit * sum over groups of  s[n] * (x_scale[t] * sum(code * x) - zero[n] * x_sum[t])
//
// Groups are added in their order whatever shares the call, so a row's result does not depend on its batch.
#pragma once
#include "rows.h"

#define STRIP 2          // blocks of 16 rows in a strip
#define TOKENS 256       // tokens that a strip is multiplied by at a time: y of 32 kB
#define COLUMNS 1024     // columns that are unpacked at a time: 32 kB of codes
#define UNPACK_TOKENS 24 // from so many tokens on nibbles are unpacked once for all of them

struct Matrix {
    const void *data;
    const uint16_t *scales, *zeros;
    int64_t columns, kind, group;
    float unit;
};

struct Acts {
    const float *floats;  // (T, K), or:
    const int8_t *values;
    const float *scales, *sums;  // (T, K / group)
    int64_t columns, group;
};

static void unpack(const uint8_t *q, int64_t columns, uint8_t *out) {
    for (int64_t i = 0; i < columns; i += 8, q += 64, out += 128)
        for (int v = 0; v < NV; v++) {
            vi x = codes_load(q + v * 4 * VL);
            codes_store(out + v * 4 * VL, codes_low(x));
            codes_store(out + 64 + v * 4 * VL, codes_high(x));
        }
}

// How codes lie for a tile: as in memory, unpacked nibbles, or bytes.
enum Codes { PACKED, SMALL, BYTES };

// y (TT rows of STRIP * 16, from column `at`) += RB blocks times TT tokens over `groups` groups of `group` columns.
template <int CODES, int RB, int TT, bool ZEROS, int GROUP>
static inline void int_tile(const uint8_t *const *w, const uint16_t *const *scales, const uint16_t *const *zeros,
                            int64_t ratio, const Acts &x, int64_t token, int64_t first, int64_t groups, float *y) {
    vf acc[RB][TT][NV];
    for (int r = 0; r < RB; r++)
        for (int t = 0; t < TT; t++)
            for (int v = 0; v < NV; v++) acc[r][t][v] = vf_load(y + t * STRIP * 16 + r * 16 + v * VL);
    const int64_t stride = x.columns / GROUP, ahead = fetched_ahead(TT);
    const vf middle = vf_set1(CODES == BYTES ? 128.0f - BYTE_BASE : 8.0f);
    const uint8_t *q[RB];
    for (int r = 0; r < RB; r++) q[r] = w[r];
    for (int64_t g = first; g < first + groups; g++) {
        const int64_t scale = (ratio == 1 ? g : g / ratio) * 16;
        vi sum[RB][TT][NV];
        for (int r = 0; r < RB; r++)
            for (int t = 0; t < TT; t++)
                for (int v = 0; v < NV; v++) sum[r][t][v] = vi_zero();
        const int8_t *a = x.values + token * x.columns + g * GROUP;
        if (CODES == PACKED)
            for (int r = 0; r < RB; r++) FETCH(scales[r] + scale + ahead / 16);  // as far, in groups of 32
#pragma GCC unroll 1
        for (int part = 0; part < GROUP; part += 32, a += 32) {
            vd dots[RB][TT][NV];
            for (int r = 0; r < RB; r++)
                for (int t = 0; t < TT; t++)
                    for (int v = 0; v < NV; v++) dots[r][t][v] = dot_begin(sum[r][t][v]);
#pragma GCC unroll 8
            for (int i = 0; i < 32; i += CODES == PACKED ? 8 : 4) {
                vi low[RB][NV], high[RB][NV];
                for (int r = 0; r < RB; r++)
                    for (int v = 0; v < NV; v++) {
                        vi c = codes_load(q[r] + v * 4 * VL);
                        low[r][v] = CODES == PACKED ? codes_low(c) : c;
                        if (CODES == PACKED) high[r][v] = codes_high(c);
                    }
                for (int r = 0; r < RB; r++) {
                    if (CODES == PACKED) FETCH(q[r] + ahead);
                    q[r] += 64;
                }
#pragma GCC unroll 8
                for (int t = 0; t < TT; t++) {
                    vi b = act_load(a + t * x.columns + i);
                    for (int r = 0; r < RB; r++)
                        for (int v = 0; v < NV; v++) {
                            if (CODES == BYTES) sum[r][t][v] = dot_bytes(sum[r][t][v], low[r][v], b);
                            else dots[r][t][v] = dot_small(dots[r][t][v], low[r][v], b);
                            if (TT > 2) dots[r][t][v] = dot_now(dots[r][t][v]);
                        }
                    if (CODES == PACKED) {
                        b = act_load(a + t * x.columns + i + 4);
                        for (int r = 0; r < RB; r++)
                            for (int v = 0; v < NV; v++) {
                                dots[r][t][v] = dot_small(dots[r][t][v], high[r][v], b);
                                if (TT > 2) dots[r][t][v] = dot_now(dots[r][t][v]);
                            }
                    }
                }
            }
            if (CODES != BYTES)
                for (int r = 0; r < RB; r++)
                    for (int t = 0; t < TT; t++)
                        for (int v = 0; v < NV; v++) sum[r][t][v] = dot_end(sum[r][t][v], dots[r][t][v]);
        }
        for (int t = 0; t < TT; t++) {
            const vf as = vf_set1(x.scales[(token + t) * stride + g]), total = vf_set1(x.sums[(token + t) * stride + g]);
            const vf shift = vf_mul(middle, total);
            for (int r = 0; r < RB; r++)
                for (int v = 0; v < NV; v++) {
                    const int64_t at = scale + v * VL;
                    vf zero = shift;
                    if (ZEROS) zero = vf_mul(vf_sub(vf_load_f16(zeros[r] + at),
                                                    vf_set1(CODES == BYTES ? (float)BYTE_BASE : 0.0f)), total);
                    vf value = vf_fms(vi_float(sum[r][t][v]), as, zero);
                    acc[r][t][v] = vf_fma(value, vf_load_f16(scales[r] + at), acc[r][t][v]);
                }
        }
    }
    for (int r = 0; r < RB; r++)
        for (int t = 0; t < TT; t++)
            for (int v = 0; v < NV; v++) vf_store(y + t * STRIP * 16 + r * 16 + v * VL, acc[r][t][v]);
}

// As many tiles of TT tokens as there are; returns the tokens that are done.
template <int CODES, int RB, int TT, bool ZEROS, int GROUP>
static int64_t int_tiles(const uint8_t *const *w, const uint16_t *const *scales, const uint16_t *const *zeros,
                         int64_t ratio, const Acts &x, int64_t token, int64_t t, int64_t tokens, int64_t first,
                         int64_t groups, float *y) {
    for (; t + TT <= tokens; t += TT)
        for (int r = 0; r < STRIP; r += RB)
            int_tile<CODES, RB, TT, ZEROS, GROUP>(w + r, scales + r, zeros + r, ratio, x, token + t, first, groups,
                                                  y + t * STRIP * 16 + r * 16);
    return t;
}

template <int CODES, bool ZEROS, int GROUP>
static void int_blocks(const Matrix &m, const uint8_t *const *w, const int64_t *blocks, const Acts &x, int64_t token,
                       int64_t tokens, int64_t first, int64_t groups, float *y) {
    const uint16_t *scales[STRIP], *zeros[STRIP];
    for (int r = 0; r < STRIP; r++) {
        int64_t at = blocks[r] * (m.columns / m.group) * 16;
        scales[r] = m.scales + at;
        zeros[r] = ZEROS ? m.zeros + at : nullptr;
    }
    int64_t t = 0;
#define TILES(RB, TT)                                                                                                  \
    t = int_tiles<CODES, RB, TT, ZEROS, GROUP>(w, scales, zeros, m.group / GROUP, x, token, t, tokens, first, groups, y)
    if (CODES == PACKED) TILES(PACKED_RB, PACKED_TT);
    else TILES(INT_RB, INT_TT);
    if (INT_TT > 4) TILES(FEW_RB, 4);
    TILES(FEW_RB, 2);
    TILES(STREAMS, 1);
#undef TILES
}

template <int CODES, bool ZEROS>
static void int_groups(const Matrix &m, const uint8_t *const *w, const int64_t *blocks, const Acts &x, int64_t token,
                       int64_t tokens, int64_t first, int64_t groups, float *y) {
    auto run = x.group == 32 ? int_blocks<CODES, ZEROS, 32> : int_blocks<CODES, ZEROS, 128>;
    run(m, w, blocks, x, token, tokens, first, groups, y);
}

// y (tokens, 32) = the two blocks times `tokens` tokens from `token` on.
static void int_strip(const Matrix &m, const int64_t *blocks, const Acts &x, int64_t token, int64_t tokens, float *y,
                      uint8_t *unpacked) {
    __builtin_memset(y, 0, (size_t)tokens * STRIP * 16 * sizeof *y);
    const int64_t bytes = m.columns * (m.kind == KIND_BYTES ? 16 : 8);
    const bool split = m.kind == KIND_BYTES || tokens >= UNPACK_TOKENS;
    const int64_t step = split ? COLUMNS : m.columns;
    for (int64_t k = 0; k < m.columns; k += step) {
        const int64_t columns = min64(step, m.columns - k);
        const uint8_t *w[STRIP];
        for (int r = 0; r < STRIP; r++) {
            w[r] = (const uint8_t *)m.data + blocks[r] * bytes + k * (m.kind == KIND_BYTES ? 16 : 8);
            if (m.kind == KIND_NIBBLES && split) {
                unpack(w[r], columns, unpacked + r * COLUMNS * 16);
                w[r] = unpacked + r * COLUMNS * 16;
            }
        }
        auto run = m.kind == KIND_BYTES ? (m.zeros ? int_groups<BYTES, true> : int_groups<BYTES, false>)
                   : split              ? (m.zeros ? int_groups<SMALL, true> : int_groups<SMALL, false>)
                                        : (m.zeros ? int_groups<PACKED, true> : int_groups<PACKED, false>);
        run(m, w, blocks, x, token, tokens, k / x.group, columns / x.group, y);
    }
}

template <int KIND> static inline vf load_kind(const void *p, int64_t i) {
    if (KIND == KIND_F32) return vf_load((const float *)p + i);
    if (KIND == KIND_BF16) return vf_load_bf16((const uint16_t *)p + i);
    if (KIND == KIND_I8) return vf_load_i8((const int8_t *)p + i);
    return vf_load_f16((const uint16_t *)p + i);
}

template <int KIND, int TT>
static inline void float_tile(const void *data, const int64_t *starts, const float *x, int64_t ldx, int64_t columns,
                              float *y) {
    vf acc[STRIP][TT][NV];
    for (int r = 0; r < STRIP; r++)
        for (int t = 0; t < TT; t++)
            for (int v = 0; v < NV; v++) acc[r][t][v] = vf_load(y + t * STRIP * 16 + r * 16 + v * VL);
    const int64_t size = KIND == KIND_F32 ? 4 : 2, ahead = fetched_ahead(TT);
    for (int64_t k = 0; k < columns; k++) {
        for (int r = 0; r < STRIP; r++) FETCH((const char *)data + (starts[r] + k * 16) * size + ahead);
        vf w[STRIP][NV];
        for (int r = 0; r < STRIP; r++)
            for (int v = 0; v < NV; v++) w[r][v] = load_kind<KIND>(data, starts[r] + k * 16 + v * VL);
#pragma GCC unroll 8
        for (int t = 0; t < TT; t++) {
            vf b = vf_set1(x[t * ldx + k]);
            for (int r = 0; r < STRIP; r++)
                for (int v = 0; v < NV; v++) acc[r][t][v] = vf_fma(w[r][v], b, acc[r][t][v]);
        }
    }
    for (int r = 0; r < STRIP; r++)
        for (int t = 0; t < TT; t++)
            for (int v = 0; v < NV; v++) vf_store(y + t * STRIP * 16 + r * 16 + v * VL, acc[r][t][v]);
}

template <int KIND>
static void float_strip(const Matrix &m, const int64_t *blocks, const Acts &x, int64_t token, int64_t tokens, float *y) {
    __builtin_memset(y, 0, (size_t)tokens * STRIP * 16 * sizeof *y);
    const int64_t step = tokens > 1 ? COLUMNS / 4 : m.columns;
    for (int64_t k = 0; k < m.columns; k += step) {
        const int64_t columns = min64(step, m.columns - k);
        const int64_t starts[STRIP] = {(blocks[0] * m.columns + k) * 16, (blocks[1] * m.columns + k) * 16};
        const float *a = x.floats + token * m.columns + k;
        int64_t t = 0;
        for (; t + FLOAT_TT <= tokens; t += FLOAT_TT)
            float_tile<KIND, FLOAT_TT>(m.data, starts, a + t * m.columns, m.columns, columns, y + t * STRIP * 16);
        for (; t < tokens; t++)
            float_tile<KIND, 1>(m.data, starts, a + t * m.columns, m.columns, columns, y + t * STRIP * 16);
    }
}

static void strip(const Matrix &m, const int64_t *blocks, const Acts &x, int64_t token, int64_t tokens, float *y,
                  uint8_t *unpacked) {
    if (m.kind >= KIND_NIBBLES) int_strip(m, blocks, x, token, tokens, y, unpacked);
    else if (m.kind == KIND_F32) float_strip<KIND_F32>(m, blocks, x, token, tokens, y);
    else if (m.kind == KIND_BF16) float_strip<KIND_BF16>(m, blocks, x, token, tokens, y);
    else float_strip<KIND_F16>(m, blocks, x, token, tokens, y);
}

// p: 0 data, 1 scales, 2 zeros or null, 3 x or its values, 4 x scales, 5 x sums, 6 bias or null, 7 y, 8 y scales, 9 y sums
// n: 0 T, 1 N, 2 K, 3 kind, 4 group of the matrix, 5 group of x, 6 group of y (0: float)      f: 0 unit
static Matrix matrix_of(const Args *a) {
    return {a->p[0], (const uint16_t *)a->p[1], (const uint16_t *)a->p[2], a->n[2], a->n[3], a->n[4], a->f[0]};
}
static Acts acts_of(const Args *a) {
    return {floats(a, 3), (const int8_t *)a->p[3], floats(a, 4), floats(a, 5), a->n[2], a->n[5]};
}

static int64_t bytes_of_rows(const Args *a, int64_t rows) {
    static const int64_t bytes[] = {128, 64, 64, 16, 32};  // of 32 rows of a column, by kind
    return a->n[2] * bytes[a->n[3]] * rows / 32;
}

// Strips are gathered into chunks of at least 128 kB of weights for each stream, so that claiming one costs nothing beside
// reading it.
static int64_t strips_a_chunk(const Args *a) {
    if (a->n[0] >= UNPACK_TOKENS) return 1;
    return ceil_div(131072 * (a->n[0] == 1 ? STREAMS : 1), bytes_of_rows(a, STRIP * 16));
}
static int64_t matmul_chunks(const Args *a, int) {
    return a->n[0] ? ceil_div(ceil_div(a->n[1], STRIP * 16), strips_a_chunk(a)) : 0;
}

constexpr size_t ROWS_SCRATCH = TOKENS * STRIP * 16 * sizeof(float) + STRIP * COLUMNS * 16;

// y (tokens, count; `stride` from token to token) = rows `row` and following times `tokens` tokens from `token` on. One
// token is multiplied at memory's speed: where that is highest in two streams, a strip's blocks come from two halves.
static void some_rows(const Args *a, int64_t row, int64_t count, int64_t token, int64_t tokens, char *scratch, float *y,
                      int64_t stride) {
    const Matrix m = matrix_of(a);
    const Acts x = acts_of(a);
    float *tile = (float *)scratch;
    uint8_t *unpacked = (uint8_t *)(tile + TOKENS * STRIP * 16);
    const int64_t begin = row / 16, end = ceil_div(row + count, 16), strips = ceil_div(end - begin, STRIP);
    const bool apart = tokens == 1 && STREAMS > 1;
    for (int64_t i = 0; i < strips; i++) {
        int64_t blocks[STRIP];
        for (int r = 0; r < STRIP; r++) blocks[r] = min64(begin + (apart ? r * strips + i : i * STRIP + r), end - 1);
        strip(m, blocks, x, token, tokens, tile, unpacked);
        for (int r = 0; r < STRIP; r++) {
            const int64_t first = max64(row, blocks[r] * 16), n = min64(row + count, blocks[r] * 16 + 16) - first;
            const float *bias = floats(a, 6);
            for (int64_t t = 0; t < tokens; t++) {
                const float *from = tile + t * STRIP * 16 + r * 16 + first - blocks[r] * 16;
                float *__restrict to = y + t * stride + first - row;
                if (bias) for (int64_t j = 0; j < n; j++) to[j] = from[j] * m.unit + bias[first + j];
                else for (int64_t j = 0; j < n; j++) to[j] = from[j] * m.unit;
            }
        }
    }
}

static void matmul(const Args *a, int64_t chunk, char *scratch) {
    const int64_t rows = strips_a_chunk(a) * STRIP * 16, first = chunk * rows, count = min64(rows, a->n[1] - first);
    for (int64_t token = 0; token < a->n[0]; token += TOKENS)
        some_rows(a, first, count, token, min64(TOKENS, a->n[0] - token), scratch,
                  (float *)a->p[7] + token * a->n[1] + first, a->n[1]);
}

// silu(gate) * up, where the gate's rows are the first half of the matrix. A chunk makes `width` columns of y, whole
// groups of them where y is quantised: first from all its rows of the gate, then from those of up. For few tokens
// memory is the limit, and it is read fastest in long streams.
static int64_t gate_up_width(const Args *a) {
    int64_t width = max64(64, a->n[6]);
    while (a->n[0] < UNPACK_TOKENS && width < 256 && bytes_of_rows(a, width) < 262144) width *= 2;
    return width;
}
static_assert(ROWS_SCRATCH + 2 * TOKENS * 128 * sizeof(float) <= SCRATCH_BYTES, "gate and up of a chunk need room");
static int64_t gate_up_chunks(const Args *a, int) { return a->n[0] ? ceil_div(a->n[1] / 2, gate_up_width(a)) : 0; }

static void gate_up(const Args *a, int64_t chunk, char *scratch) {
    const int64_t f = a->n[1] / 2, width = gate_up_width(a), group = a->n[6], first = chunk * width;
    const int64_t columns = min64(width, f - first), stride = ceil_div(columns, 16) * 16;
    float *gate = (float *)(scratch + ROWS_SCRATCH), *up = gate + min64(TOKENS, a->n[0]) * width;
    for (int64_t token = 0; token < a->n[0]; token += TOKENS) {
        const int64_t tokens = min64(TOKENS, a->n[0] - token);
        some_rows(a, first, columns, token, tokens, scratch, gate, stride);
        some_rows(a, f + first, columns, token, tokens, scratch, up, stride);
        for (int64_t i = 0; i < tokens * stride; i += VL)
            vf_store(gate + i, swiglu(vf_load(gate + i), vf_load(up + i)));
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t at = (token + t) * f + first;
            const float *y = gate + t * stride;
            if (!group) __builtin_memcpy((float *)a->p[7] + at, y, (size_t)columns * sizeof(float));
            else quantise_row(y, columns, group, (int8_t *)a->p[7] + at, (float *)a->p[8] + at / group,
                              (float *)a->p[9] + at / group);
        }
    }
}
