// Vectors of 8 lanes in plain C++: what the other simd_*.h say in intrinsics, and what each name means.
//
//   vf, vi     VL lanes of float32 and of int32          vd   the running products of a dot of small codes
//   codes_*    4 VL bytes: lane i holds four consecutive columns of matrix row i
//   dot_begin(sum), up to eight dot_small(acc, codes <= 15, act), dot_end(sum, acc): sum plus the products
//   dot_now(acc): acc, once its additions are done; compilers put them off, and the products overflow the registers
//   dot_bytes(sum, codes <= 255, act): sum plus the products of (code - BYTE_BASE)
//   vf_zero_below(x, limit, v): v where x >= limit or x is not a number, else 0
//   INT_RB x INT_TT, PACKED_RB x PACKED_TT, FEW_RB, FLOAT_TT, ATTEND_ROWS: how much of a tile registers hold
//   STREAMS: 1 or 2, in which a core reads memory fastest; 2 on a Zen 3, 1 on a Zen 5 and on a Xeon with AVX-512
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VL 8
#define INT_RB 1
#define INT_TT 2
#define PACKED_RB 1
#define PACKED_TT 2
#define FEW_RB 1
#define FLOAT_TT 2
#define STREAMS 1
#define ATTEND_ROWS 4
#define ATTEND_BLOCKS 1
#define BYTE_BASE 0

struct vf { float v[VL]; };
struct vi { int32_t v[VL]; };
typedef vi vd;

#define EACH for (int i = 0; i < VL; i++)
static inline vf vf_set1(float x) { vf r; EACH r.v[i] = x; return r; }
static inline vf vf_load(const float *p) { vf r; EACH r.v[i] = p[i]; return r; }
static inline void vf_store(float *p, vf x) { EACH p[i] = x.v[i]; }
static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
static inline float f16_to(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -small : small;
}
static inline uint16_t f16_from(float x) {  // to the nearest, halves to even
    uint32_t b = bits_of(x), sign = b >> 16 & 0x8000, rest = b & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) return (uint16_t)(sign | (uint32_t)lrintf(float_of(rest) * 16777216.0f));
    rest += 0xfff + (rest >> 13 & 1);
    return (uint16_t)(sign | (rest - 0x38000000) >> 13);
}
static inline vf vf_load_bf16(const uint16_t *p) { vf r; EACH r.v[i] = float_of((uint32_t)p[i] << 16); return r; }
static inline vf vf_load_f16(const uint16_t *p) { vf r; EACH r.v[i] = f16_to(p[i]); return r; }
static inline vf vf_load_i8(const int8_t *p) { vf r; EACH r.v[i] = p[i]; return r; }
static inline vf vf_add(vf a, vf b) { EACH a.v[i] += b.v[i]; return a; }
static inline vf vf_sub(vf a, vf b) { EACH a.v[i] -= b.v[i]; return a; }
static inline vf vf_mul(vf a, vf b) { EACH a.v[i] *= b.v[i]; return a; }
static inline vf vf_div(vf a, vf b) { EACH a.v[i] /= b.v[i]; return a; }
static inline vf vf_max(vf a, vf b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline vf vf_min(vf a, vf b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline vf vf_fma(vf a, vf b, vf c) { EACH c.v[i] = a.v[i] * b.v[i] + c.v[i]; return c; }
static inline vf vf_fms(vf a, vf b, vf c) { EACH c.v[i] = a.v[i] * b.v[i] - c.v[i]; return c; }
static inline vf vf_fnma(vf a, vf b, vf c) { EACH c.v[i] = c.v[i] - a.v[i] * b.v[i]; return c; }
static inline vf vf_zero_below(vf x, vf limit, vf v) { EACH if (x.v[i] < limit.v[i]) v.v[i] = 0; return v; }
static inline float vf_hsum(vf x) { float s = 0; EACH s += x.v[i]; return s; }
static inline float vf_hmax(vf x) { float s = x.v[0]; EACH s = s > x.v[i] ? s : x.v[i]; return s; }
static inline vi vi_round(vf x) {  // what is out of range becomes the least integer, as in SSE
    vi r;
    EACH r.v[i] = x.v[i] >= -2147483648.0f && x.v[i] < 2147483648.0f ? (int32_t)lrintf(x.v[i]) : INT32_MIN;
    return r;
}
static inline vf vi_float(vi x) { vf r; EACH r.v[i] = (float)x.v[i]; return r; }
static inline vi vi_zero() { vi r; EACH r.v[i] = 0; return r; }
static inline vi vi_add(vi a, vi b) { EACH a.v[i] += b.v[i]; return a; }
static inline vf vf_pow2(vi n) { vf r; EACH r.v[i] = float_of((uint32_t)(n.v[i] + 127) << 23); return r; }
static inline vi vi_abs_bits(vf x) { vi r; EACH r.v[i] = (int32_t)(bits_of(x.v[i]) & 0x7fffffff); return r; }
static inline vi vi_max(vi a, vi b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline int32_t vi_hmax(vi x) { int32_t s = x.v[0]; EACH s = s > x.v[i] ? s : x.v[i]; return s; }
static inline int32_t vi_hsum(vi x) { int32_t s = 0; EACH s += x.v[i]; return s; }
static inline void vi_store_i8(int8_t *p, vi x) {
    EACH p[i] = (int8_t)(x.v[i] > 127 ? 127 : x.v[i] < -128 ? -128 : x.v[i]);
}
static inline vi codes_load(const uint8_t *p) { vi r; memcpy(&r, p, sizeof r); return r; }
static inline void codes_store(uint8_t *p, vi x) { memcpy(p, &x, sizeof x); }
static inline vi codes_low(vi x) { EACH x.v[i] &= 0x0f0f0f0f; return x; }
static inline vi codes_high(vi x) { EACH x.v[i] = (int32_t)((uint32_t)x.v[i] >> 4 & 0x0f0f0f0f); return x; }
static inline vi act_load(const int8_t *p) { int32_t a; memcpy(&a, p, 4); vi r; EACH r.v[i] = a; return r; }
static inline vi dot_bytes(vi sum, vi codes, vi act) {
    const uint8_t *w = (const uint8_t *)&codes;
    const int8_t *a = (const int8_t *)&act;
    EACH for (int j = 0; j < 4; j++) sum.v[i] += w[4 * i + j] * a[4 * i + j];
    return sum;
}
static inline vd dot_begin(vi sum) { return sum; }
static inline vd dot_small(vd acc, vi codes, vi act) { return dot_bytes(acc, codes, act); }
static inline vd dot_now(vd acc) { return acc; }
static inline vi dot_end(vi, vd acc) { return acc; }
#undef EACH
