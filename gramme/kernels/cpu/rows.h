// What is done to a token's row of floats: normalise, quantise, rotate, fetch. Written over simd_*.h, knows no matrix product.
#pragma once
#include "gramme_cpu.h"

#define NV (16 / VL)  // vectors in 16 lanes

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static const float *floats(const Args *a, int i) { return (const float *)a->p[i]; }

// e^x for x <= 88 to 2 units in the last place: 2^n times the polynomial of exp on [-ln 2 / 2, ln 2 / 2] (Cephes' expf).
// Below -87 it is 0; not-a-number stays (where one operand is none, min and max give the second).
static inline vf vf_exp(vf x) {
    vf low = vf_set1(-87.0f), clamped = vf_min(vf_set1(88.0f), vf_max(vf_set1(-87.0f), x));
    vi n = vi_round(vf_mul(clamped, vf_set1(1.44269504088896341f)));
    vf nf = vi_float(n), r = vf_fnma(nf, vf_set1(0.693359375f), clamped);
    r = vf_fnma(nf, vf_set1(-2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1.0f));
    return vf_zero_below(x, low, vf_mul(p, vf_pow2(n)));
}

// silu(g) * u = g / (1 + e^-g) * u; below -87 silu is 0 in float32.
static inline vf swiglu(vf g, vf u) {
    vf e = vf_exp(vf_sub(vf_set1(0.0f), g));
    return vf_mul(vf_zero_below(g, vf_set1(-87.0f), vf_div(g, vf_add(vf_set1(1.0f), e))), u);
}

// One group of n values (a multiple of 16), as `Quantised` in ops.py says. The largest is found among the bits of
// absolute values, whose order is that of the numbers: not-a-number is larger than all and stays.
static void quantise_group(const float *x, int n, int8_t *q, float *scale, float *sum) {
    vi largest_bits = vi_zero();
    for (int i = 0; i < n; i += VL) largest_bits = vi_max(largest_bits, vi_abs_bits(vf_load(x + i)));
    union { int32_t bits; float value; } largest = {vi_hmax(largest_bits)};
    vf inverse = vf_set1(largest.value > 0 ? 127.0f / largest.value : 0.0f);
    vi total = vi_zero();
    for (int i = 0; i < n; i += VL) {
        vi v = vi_round(vf_mul(vf_load(x + i), inverse));
        vi_store_i8(q + i, v);
        total = vi_add(total, v);
    }
    *scale = largest.value * (1.0f / 127.0f);
    *sum = *scale * (float)vi_hsum(total);
}

static void quantise_row(const float *x, int64_t n, int64_t group, int8_t *q, float *scales, float *sums) {
    for (int64_t i = 0; i < n; i += group) quantise_group(x + i, (int)group, q + i, scales++, sums++);
}

static float sum_of_squares(const float *x, int64_t n) {
    vf s = vf_set1(0.0f);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) s = vf_fma(vf_load(x + i), vf_load(x + i), s);
    float total = vf_hsum(s);
    for (; i < n; i++) total += x[i] * x[i];
    return total;
}

static void scale_row(const float *x, const float *gain, float factor, int64_t n, float *y) {
    vf f = vf_set1(factor);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), f), vf_load(gain + i)));
    for (; i < n; i++) y[i] = x[i] * factor * gain[i];
}

// Rows are cut so that a chunk is worth a thread's while: about 32 kB.
static int64_t rows_a_chunk(int64_t width) { return width >= 8192 ? 1 : 8192 / width; }
static int64_t row_chunks(const Args *a, int) { return ceil_div(a->n[0], rows_a_chunk(a->n[1])); }

// p: x (T, D), r (T, D) or null, gain (D), residual (T, D), y (T, D) float or int8, scales, sums; n: T, D, group (0: float)
static void add_norm(const Args *a, int64_t chunk, char *scratch) {
    int64_t rows = rows_a_chunk(a->n[1]), d = a->n[1], group = a->n[2];
    for (int64_t t = chunk * rows; t < min64(a->n[0], (chunk + 1) * rows); t++) {
        const float *x = floats(a, 0) + t * d, *before = a->p[1] ? floats(a, 1) + t * d : nullptr;
        float *r = (float *)a->p[3] + t * d;
        int64_t i = 0;
        for (; i + VL <= d; i += VL)
            vf_store(r + i, before ? vf_add(vf_load(x + i), vf_load(before + i)) : vf_load(x + i));
        for (; i < d; i++) r[i] = before ? x[i] + before[i] : x[i];
        float factor = 1.0f / __builtin_sqrtf(sum_of_squares(r, d) / (float)d + a->f[0]);
        if (!group) {
            scale_row(r, floats(a, 2), factor, d, (float *)a->p[4] + t * d);
            continue;
        }
        for (int64_t g = 0; g < d; g += group) {
            float *part = (float *)scratch;
            scale_row(r + g, floats(a, 2) + g, factor, group, part);
            int64_t at = t * (d / group) + g / group;
            quantise_group(part, (int)group, (int8_t *)a->p[4] + t * d + g, (float *)a->p[5] + at,
                           (float *)a->p[6] + at);
        }
    }
}

// p: x (T, H, Dh) with a token stride, gain (Dh), y (T, H, Dh); n: T, H * Dh, Dh, stride of x; f: eps
static void head_norm(const Args *a, int64_t chunk, char *) {
    int64_t rows = rows_a_chunk(a->n[1]), dh = a->n[2];
    for (int64_t t = chunk * rows; t < min64(a->n[0], (chunk + 1) * rows); t++)
        for (int64_t h = 0; h < a->n[1]; h += dh) {
            const float *x = floats(a, 0) + t * a->n[3] + h;
            scale_row(x, floats(a, 1), 1.0f / __builtin_sqrtf(sum_of_squares(x, dh) / (float)dh + a->f[0]), dh,
                      (float *)a->p[2] + t * a->n[1] + h);
        }
}

// p: x (T, K), values (T, K), scales, sums, order (K) or null: column order[i] of x becomes column i; n: T, K, group
static void quantise(const Args *a, int64_t chunk, char *scratch) {
    const int64_t rows = rows_a_chunk(a->n[1]), k = a->n[1], group = a->n[2];
    const int32_t *order = (const int32_t *)a->p[4];
    for (int64_t t = chunk * rows; t < min64(a->n[0], (chunk + 1) * rows); t++) {
        const float *x = floats(a, 0) + t * k;
        int8_t *q = (int8_t *)a->p[1] + t * k;
        float *scales = (float *)a->p[2] + t * (k / group), *sums = (float *)a->p[3] + t * (k / group);
        if (!order) {
            quantise_row(x, k, group, q, scales, sums);
            continue;
        }
        float *part = (float *)scratch;
        for (int64_t g = 0; g < k; g += group) {
            for (int64_t i = 0; i < group; i++) part[i] = x[order[g + i]];
            quantise_group(part, (int)group, q + g, scales++, sums++);
        }
    }
}

// p: x (T, H, Dh) with a token stride, table (Lmax, Dh), positions (T), y (T, H, Dh); n: T, H * Dh, Dh, stride of x
static void rope(const Args *a, int64_t chunk, char *) {
    int64_t rows = rows_a_chunk(a->n[1]), dh = a->n[2], half = dh / 2;
    for (int64_t t = chunk * rows; t < min64(a->n[0], (chunk + 1) * rows); t++) {
        const float *cosine = floats(a, 1) + ((const int32_t *)a->p[2])[t] * dh, *sine = cosine + half;
        for (int64_t h = 0; h < a->n[1]; h += dh) {
            const float *x = floats(a, 0) + t * a->n[3] + h;
            float *y = (float *)a->p[3] + t * a->n[1] + h;
            int64_t i = 0;
            for (; i + VL <= half; i += VL) {
                vf u = vf_load(x + i), v = vf_load(x + half + i), c = vf_load(cosine + i), s = vf_load(sine + i);
                vf_store(y + i, vf_fnma(v, s, vf_mul(u, c)));
                vf_store(y + half + i, vf_fma(u, s, vf_mul(v, c)));
            }
            for (; i < half; i++) {
                float u = x[i], v = x[half + i];
                y[i] = u * cosine[i] - v * sine[i];
                y[half + i] = v * cosine[i] + u * sine[i];
            }
        }
    }
}

static float element(const void *p, int64_t kind, int64_t i) {
    if (kind == KIND_F32) return ((const float *)p)[i];
    uint16_t bits = ((const uint16_t *)p)[i];
    union { uint32_t bits; float value; } wide = {(uint32_t)bits << 16};
    return kind == KIND_BF16 ? wide.value : f16_to(bits);
}

// A group's codes of one row (n, a multiple of 32) as float32: scale * (code - zero). `codes` is at the row's first four.
static void take_group(const uint8_t *codes, bool nibbles, int64_t n, float scale, float zero, float *y) {
    for (int64_t i = 0; i < n; i += 4, y += 4) {
        const uint8_t *four = codes + (nibbles ? i / 8 : i / 4) * 64;
        const int shift = nibbles && i % 8 ? 4 : 0, mask = nibbles ? 15 : 255;
        for (int j = 0; j < 4; j++) y[j] = scale * ((float)(four[j] >> shift & mask) - zero);
    }
}

// One row of a laid-out matrix, see matmul.h, or of a plain float32 array where kind is negative.
// p: data, scales, zeros or null, ids (T), y (T, K); n: T, K, kind, group; f: unit
static void take(const Args *a, int64_t chunk, char *) {
    int64_t rows = rows_a_chunk(a->n[1]), k = a->n[1], kind = a->n[2], group = a->n[3];
    for (int64_t t = chunk * rows; t < min64(a->n[0], (chunk + 1) * rows); t++) {
        int64_t id = ((const int32_t *)a->p[3])[t], block = id / 16, row = id % 16;
        float *y = (float *)a->p[4] + t * k;
        if (kind < 0) {
            __builtin_memcpy(y, floats(a, 0) + id * k, (size_t)k * sizeof *y);
            continue;
        }
        if (kind < KIND_NIBBLES) {
            for (int64_t i = 0; i < k; i++) y[i] = element(a->p[0], kind, (block * k + i) * 16 + row);
            continue;
        }
        const bool nibbles = kind == KIND_NIBBLES;
        const int64_t width = nibbles ? 8 : 16;  // bytes of a column of a block
        const uint8_t *codes = (const uint8_t *)a->p[0] + block * k * width + row * 4;
        for (int64_t g = 0; g < k / group; g++) {
            const int64_t at = (block * (k / group) + g) * 16 + row;
            const float zero = a->p[2] ? f16_to(((const uint16_t *)a->p[2])[at]) : nibbles ? 8.0f : 128.0f;
            take_group(codes + g * group * width, nibbles, group, f16_to(((const uint16_t *)a->p[1])[at]) * a->f[0], zero,
                       y + g * group);
        }
    }
}

// Weights so many bytes ahead are fetched: in one stream far, as the next block lies behind this one; beside a second one,
// that of one token alone, farther than this is no better (Zen 3).
static constexpr int64_t fetched_ahead(int tokens) { return tokens == 1 && STREAMS > 1 ? 1024 : 4096; }

// Weights are read once a step: fetched as such they do not drive all else out of the last cache.
#define FETCH(p) __builtin_prefetch(p, 0, 0)

// Reads memory as a matrix product does and does nothing with it: the ceiling. p: data, sum (chunks); n: bytes
static int64_t read_chunks(const Args *a, int) { return ceil_div(a->n[0], 256 << 10); }
static void read_memory(const Args *a, int64_t chunk, char *) {
    const int64_t first = chunk * (256 << 10), run = (min64(a->n[0], first + (256 << 10)) - first) / STREAMS;
    const uint8_t *data = (const uint8_t *)a->p[0] + first;
    vi s = vi_zero();
    for (int64_t i = 0; i + 4 * VL <= run; i += 4 * VL)
        for (int r = 0; r < STREAMS; r++) {
            FETCH(data + r * run + i + fetched_ahead(1));
            s = vi_max(s, codes_load(data + r * run + i));
        }
    ((int32_t *)a->p[1])[chunk] = vi_hmax(s);
}
