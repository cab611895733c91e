// Vectors of 16 lanes on AVX-512 with VNNI (Ice Lake, Zen 4 and later). The interface is described in simd_generic.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define VL 16
#define INT_RB 2
#define INT_TT 6
#define PACKED_RB 1
#define PACKED_TT 8
#define FEW_RB 2
#define FLOAT_TT 6
#define STREAMS 1
#define ATTEND_ROWS 8
#define ATTEND_BLOCKS 2
#define BYTE_BASE 0

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vd;

static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_fms(vf a, vf b, vf c) { return _mm512_fmsub_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vf vf_zero_below(vf x, vf limit, vf v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}
static inline float vf_hsum(vf x) { return _mm512_reduce_add_ps(x); }
static inline float vf_hmax(vf x) { return _mm512_reduce_max_ps(x); }
static inline vi vi_round(vf x) { return _mm512_cvtps_epi32(x); }
static inline vf vi_float(vi x) { return _mm512_cvtepi32_ps(x); }
static inline vi vi_zero() { return _mm512_setzero_si512(); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vf vf_pow2(vi n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
static inline vi vi_abs_bits(vf x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline int32_t vi_hmax(vi x) { return _mm512_reduce_max_epi32(x); }
static inline int32_t vi_hsum(vi x) { return _mm512_reduce_add_epi32(x); }
static inline void vi_store_i8(int8_t *p, vi x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(x)); }

static inline uint16_t f16_from(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
static inline float f16_to(uint16_t x) { return _cvtsh_ss(x); }

static inline vi codes_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
static inline void codes_store(uint8_t *p, vi x) { _mm512_storeu_si512(p, x); }
static inline vi codes_low(vi x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline vi codes_high(vi x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
static inline vi act_load(const int8_t *p) { return _mm512_set1_epi32(*(const int32_t *)p); }
static inline vd dot_begin(vi sum) { return sum; }
static inline vd dot_small(vd acc, vi codes, vi act) { return _mm512_dpbusd_epi32(acc, codes, act); }
static inline vd dot_now(vd acc) { return acc; }
static inline vi dot_end(vi, vd acc) { return acc; }
static inline vi dot_bytes(vi sum, vi codes, vi act) { return _mm512_dpbusd_epi32(sum, codes, act); }
