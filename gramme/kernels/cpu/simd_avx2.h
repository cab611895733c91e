// Vectors of 8 lanes on AVX2, FMA and F16C (Haswell, Zen and later). The interface is described in simd_generic.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define VL 8
#define INT_RB 1
#define INT_TT 4
#define PACKED_RB 1
#define PACKED_TT 4
#define FEW_RB 1
#define FLOAT_TT 3
#ifdef SIMD_AVXVNNI
#define STREAMS 1
#else
#define STREAMS 2
#endif
#define ATTEND_ROWS 4
#define ATTEND_BLOCKS 1

typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vd;

static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vf_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_fms(vf a, vf b, vf c) { return _mm256_fmsub_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf vf_zero_below(vf x, vf limit, vf v) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), v); }
static inline vi vi_round(vf x) { return _mm256_cvtps_epi32(x); }
static inline vf vi_float(vi x) { return _mm256_cvtepi32_ps(x); }
static inline vi vi_zero() { return _mm256_setzero_si256(); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vf vf_pow2(vi n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
static inline vi vi_abs_bits(vf x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline float vf_hsum(vf x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline float vf_hmax(vf x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
static inline int32_t vi_hmax(vi x) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
static inline int32_t vi_hsum(vi x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
static inline void vi_store_i8(int8_t *p, vi x) {
    __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(s, s));
}

static inline uint16_t f16_from(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
static inline float f16_to(uint16_t x) { return _cvtsh_ss(x); }

static inline vi codes_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void codes_store(uint8_t *p, vi x) { _mm256_storeu_si256((__m256i *)p, x); }
static inline vi codes_low(vi x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline vi codes_high(vi x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
static inline vi act_load(const int8_t *p) { return _mm256_set1_epi32(*(const int32_t *)p); }
#ifdef SIMD_AVXVNNI  // the 256-bit VNNI of desktop processors (Alder Lake and later)
#define BYTE_BASE 0
static inline vd dot_begin(vi sum) { return sum; }
static inline vd dot_small(vd acc, vi codes, vi act) { return _mm256_dpbusd_avx_epi32(acc, codes, act); }
static inline vd dot_now(vd acc) { return acc; }
static inline vi dot_end(vi, vd acc) { return acc; }
static inline vi dot_bytes(vi sum, vi codes, vi act) { return _mm256_dpbusd_avx_epi32(sum, codes, act); }
#else
#define BYTE_BASE 128
// 2 x 15 x 127 = 3810: eight products are added in int16 (30480 < 32767) before they are widened.
static inline vd dot_begin(vi) { return _mm256_setzero_si256(); }
static inline vd dot_small(vd acc, vi codes, vi act) {
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, act));
}
static inline vd dot_now(vd acc) {
    __asm__("" : "+x"(acc));
    return acc;
}
static inline vi dot_end(vi sum, vd acc) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
}
// Bytes are made signed first, |w| <= 128: 2 x 128 x 127 = 32512 < 32767.
static inline vi dot_bytes(vi sum, vi codes, vi act) {
    vi w = _mm256_xor_si256(codes, _mm256_set1_epi8((char)128));
    vi products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(act, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}
#endif
