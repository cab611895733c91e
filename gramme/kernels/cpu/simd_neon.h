// Vectors of 4 lanes on NEON with the dot products of ARMv8.2 (Cortex-A75, Graviton 2, Apple M1 and later). The
// interface is described in simd_generic.h.
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define VL 4
#define INT_RB 1
#define INT_TT 4
#define PACKED_RB 1
#define PACKED_TT 4
#define FEW_RB 1
#define FLOAT_TT 2
#define STREAMS 1
#define ATTEND_ROWS 4
#define ATTEND_BLOCKS 1
#define BYTE_BASE 128

typedef float32x4_t vf;
typedef int32x4_t vi;
typedef int32x4_t vd;

static inline vf vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf x) { vst1q_f32(p, x); }
static inline vf vf_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
static inline vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline vf vf_load_i8(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where one is not a number
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_fms(vf a, vf b, vf c) { return vfmaq_f32(vnegq_f32(c), a, b); }
static inline vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
static inline vf vf_zero_below(vf x, vf limit, vf v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, limit)));
}
static inline float vf_hsum(vf x) { return vaddvq_f32(x); }
static inline float vf_hmax(vf x) { return vmaxvq_f32(x); }
static inline vi vi_round(vf x) { return vcvtnq_s32_f32(x); }
static inline vf vi_float(vi x) { return vcvtq_f32_s32(x); }
static inline vi vi_zero() { return vdupq_n_s32(0); }
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vf vf_pow2(vi n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
static inline vi vi_abs_bits(vf x) { return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff)); }
static inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline int32_t vi_hmax(vi x) { return vmaxvq_s32(x); }
static inline int32_t vi_hsum(vi x) { return vaddvq_s32(x); }
static inline void vi_store_i8(int8_t *p, vi x) {
    const int16x4_t narrow = vqmovn_s32(x);
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(narrow, narrow))), 0);
    memcpy(p, &four, 4);
}

static inline float f16_to(uint16_t h) {
    __fp16 x;
    memcpy(&x, &h, 2);
    return x;
}
static inline uint16_t f16_from(float x) {
    const __fp16 half = (__fp16)x;
    uint16_t h;
    memcpy(&h, &half, 2);
    return h;
}

static inline vi codes_load(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
static inline void codes_store(uint8_t *p, vi x) { vst1q_u8(p, vreinterpretq_u8_s32(x)); }
static inline vi codes_low(vi x) { return vandq_s32(x, vdupq_n_s32(0x0f0f0f0f)); }
static inline vi codes_high(vi x) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4)); }
static inline vi act_load(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return vdupq_n_s32(four);
}
static inline vd dot_begin(vi sum) { return sum; }
static inline vd dot_small(vd acc, vi codes, vi act) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(act));
}
static inline vd dot_now(vd acc) { return acc; }
static inline vi dot_end(vi, vd acc) { return acc; }
// Unsigned by signed is an extension of later cores (i8mm), so bytes are made signed first.
static inline vi dot_bytes(vi sum, vi codes, vi act) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(128))),
                     vreinterpretq_s8_s32(act));
}
