/* Sixteen floats at a time on AVX-512, AVX2 + FMA, NEON or plain C.
 *
 * A `vec` is always LANES = 16 floats, whatever the machine: one register of AVX-512, two of AVX2, four of NEON, an
 * array in plain C. So every layout in the kernel is the same for all of them, and only the primitives on a `reg` (one
 * register) differ. This header is included by one .c file per instruction set, which chooses by a macro: SCAN_AVX512,
 * SCAN_AVX2, SCAN_NEON, or none of them.
 */
#ifndef RESTORMIXER_KERNEL_SIMD_H
#define RESTORMIXER_KERNEL_SIMD_H

#include <stdint.h>
#include <string.h>

#include "kernel.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

/* Full unrolling is what keeps states in registers. Plain C has no registers for them: left to the compiler. */
#if !defined(SCAN_AVX512) && !defined(SCAN_AVX2) && !defined(SCAN_NEON) && (!defined(__GNUC__) || defined(SCAN_SCALAR))
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll_count(16)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

#define CACHE_LINE 64
#if defined(__GNUC__) || defined(__clang__)
#define PREFETCH(p) __builtin_prefetch(p)
#elif defined(_M_X64)
#include <intrin.h>
#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#else
#define PREFETCH(p) ((void)(p))
#endif

/* 2^f - 1 on [-1/2, 1/2], relative error of 2^f below 2^-28; without AVX-512's permutation. */
#define EXP2_C1 0.6931471824645996f
#define EXP2_C2 0.24022647738456726f
#define EXP2_C3 0.055503323674201965f
#define EXP2_C4 0.00961843691766262f
#define EXP2_C5 0.0013398875016719103f
#define EXP2_C6 0.00015353361959569156f

/* ------------------------------------------------------------------ one register */

#if defined(SCAN_AVX512)

#include <immintrin.h>
#define REGS 1
typedef __m512 reg;

INLINE reg reg_set(float x) { return _mm512_set1_ps(x); }
INLINE reg reg_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void reg_store(float *p, reg a) { _mm512_storeu_ps(p, a); }
INLINE reg reg_add(reg a, reg b) { return _mm512_add_ps(a, b); }
INLINE reg reg_sub(reg a, reg b) { return _mm512_sub_ps(a, b); }
INLINE reg reg_mul(reg a, reg b) { return _mm512_mul_ps(a, b); }
INLINE reg reg_div(reg a, reg b) { return _mm512_div_ps(a, b); }
INLINE reg reg_fma(reg a, reg b, reg c) { return _mm512_fmadd_ps(a, b, c); }
INLINE reg reg_max(reg a, reg b) { return _mm512_max_ps(a, b); }
INLINE reg reg_abs(reg a) { return _mm512_abs_ps(a); }
INLINE reg reg_if_negative(reg x, reg yes, reg no) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), no, yes);
}

/* 2^v = 2^f * table[j] * 2^floor(n) with n = v rounded to 1/16, j = its fraction, |f| <= 1/32, where three terms of the
 * series of 2^f are exact to 2^-26. The slope at 0 is exact, as an error of it would act on a slow decay at every step.
 */
static const float EXP2_TABLE[16] = {
    1.0f,           1.04427373409f, 1.09050774574f, 1.13878858089f, 1.18920719624f, 1.24185776711f,
    1.29683959484f, 1.3542555571f,  1.41421353817f, 1.47682619095f, 1.54221081734f, 1.61049032211f,
    1.68179285526f, 1.75625216961f, 1.8340080976f,  1.91520655155f,
};

INLINE reg reg_exp2(reg v) {
    const __m512 to_16th = _mm512_set1_ps(12582912.0f / 16); /* 1.5 * 2^23 / 16: its last bit is worth 1/16 */
    __m512 shifted = _mm512_add_ps(v, to_16th);
    __m512 n = _mm512_sub_ps(shifted, to_16th);
    __m512 f = _mm512_reduce_ps(v, 0x40); /* v - n, and 0 where v is infinite */
    __m512 table = _mm512_permutexvar_ps(_mm512_castps_si512(shifted), _mm512_loadu_ps(EXP2_TABLE));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.055504109f), f, _mm512_set1_ps(0.24022651f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2_C1));
    return _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), table, table), n);
}

#elif defined(SCAN_AVX2)

#include <immintrin.h>
#define REGS 2
typedef __m256 reg;

INLINE reg reg_set(float x) { return _mm256_set1_ps(x); }
INLINE reg reg_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void reg_store(float *p, reg a) { _mm256_storeu_ps(p, a); }
INLINE reg reg_add(reg a, reg b) { return _mm256_add_ps(a, b); }
INLINE reg reg_sub(reg a, reg b) { return _mm256_sub_ps(a, b); }
INLINE reg reg_mul(reg a, reg b) { return _mm256_mul_ps(a, b); }
INLINE reg reg_div(reg a, reg b) { return _mm256_div_ps(a, b); }
INLINE reg reg_fma(reg a, reg b, reg c) { return _mm256_fmadd_ps(a, b, c); }
INLINE reg reg_max(reg a, reg b) { return _mm256_max_ps(a, b); }
INLINE reg reg_min(reg a, reg b) { return _mm256_min_ps(a, b); }
INLINE reg reg_abs(reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE reg reg_if_negative(reg x, reg yes, reg no) { return _mm256_blendv_ps(no, yes, x); }
INLINE reg reg_power(reg shifted) { /* 2^n from n + 1.5 * 2^23: 0 for n = -127, infinity for n = 128 */
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)));
}

#elif defined(SCAN_NEON)

#include <arm_neon.h>
#define REGS 4
typedef float32x4_t reg;

INLINE reg reg_set(float x) { return vdupq_n_f32(x); }
INLINE reg reg_load(const float *p) { return vld1q_f32(p); }
INLINE void reg_store(float *p, reg a) { vst1q_f32(p, a); }
INLINE reg reg_add(reg a, reg b) { return vaddq_f32(a, b); }
INLINE reg reg_sub(reg a, reg b) { return vsubq_f32(a, b); }
INLINE reg reg_mul(reg a, reg b) { return vmulq_f32(a, b); }
INLINE reg reg_div(reg a, reg b) { return vdivq_f32(a, b); }
INLINE reg reg_fma(reg a, reg b, reg c) { return vfmaq_f32(c, a, b); }
INLINE reg reg_max(reg a, reg b) { return vmaxq_f32(a, b); }
INLINE reg reg_min(reg a, reg b) { return vminq_f32(a, b); }
INLINE reg reg_abs(reg a) { return vabsq_f32(a); }
INLINE reg reg_if_negative(reg x, reg yes, reg no) {
    return vbslq_f32(vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(x), 31)), yes, no);
}
INLINE reg reg_power(reg shifted) { /* 2^n from n + 1.5 * 2^23: 0 for n = -127, infinity for n = 128 */
    uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23);
    return vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(127u << 23)));
}

#elif defined(__GNUC__) && !defined(SCAN_SCALAR)

/* The vectors of GCC and clang, which they map to whatever the machine has. SCAN_SCALAR is for tests of what follows.
 */
#define REGS 4
typedef float reg __attribute__((vector_size(16)));
typedef uint32_t reg_bits __attribute__((vector_size(16)));

INLINE reg reg_set(float x) { return (reg){x, x, x, x}; }
INLINE reg reg_load(const float *p) {
    reg a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void reg_store(float *p, reg a) { memcpy(p, &a, sizeof a); }
INLINE reg reg_add(reg a, reg b) { return a + b; }
INLINE reg reg_sub(reg a, reg b) { return a - b; }
INLINE reg reg_mul(reg a, reg b) { return a * b; }
INLINE reg reg_div(reg a, reg b) { return a / b; }
INLINE reg reg_fma(reg a, reg b, reg c) { return a * b + c; }
INLINE reg reg_choose(reg_bits mask, reg yes, reg no) {
    return (reg)(((reg_bits)yes & mask) | ((reg_bits)no & ~mask));
}
INLINE reg reg_max(reg a, reg b) { return reg_choose((reg_bits)(a > b), a, b); }
INLINE reg reg_min(reg a, reg b) { return reg_choose((reg_bits)(a < b), a, b); }
INLINE reg reg_abs(reg a) { return (reg)((reg_bits)a & 0x7fffffff); }
INLINE reg reg_if_negative(reg x, reg yes, reg no) { return reg_choose((reg_bits)(x < 0), yes, no); }
INLINE reg reg_power(reg shifted) { /* 2^n from n + 1.5 * 2^23: 0 for n = -127, infinity for n = 128 */
    return (reg)(((reg_bits)shifted << 23) + (127u << 23));
}

#else

#define REGS 16
typedef float reg;

INLINE reg reg_set(float x) { return x; }
INLINE reg reg_load(const float *p) { return *p; }
INLINE void reg_store(float *p, reg a) { *p = a; }
INLINE reg reg_add(reg a, reg b) { return a + b; }
INLINE reg reg_sub(reg a, reg b) { return a - b; }
INLINE reg reg_mul(reg a, reg b) { return a * b; }
INLINE reg reg_div(reg a, reg b) { return a / b; }
INLINE reg reg_fma(reg a, reg b, reg c) { return a * b + c; }
INLINE reg reg_max(reg a, reg b) { return a > b ? a : b; }
INLINE reg reg_min(reg a, reg b) { return a < b ? a : b; }
INLINE reg reg_abs(reg a) { return a < 0 ? -a : a; }
INLINE reg reg_if_negative(reg x, reg yes, reg no) { return x < 0 ? yes : no; }
INLINE reg reg_power(reg shifted) { /* 2^n from n + 1.5 * 2^23: 0 for n = -127, infinity for n = 128 */
    uint32_t bits;
    float x;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127u << 23);
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif

#ifndef SCAN_AVX512
INLINE reg reg_exp2(reg v) {
    const reg to_integer = reg_set(12582912.0f); /* 1.5 * 2^23: the last bit is worth 1 */
    reg shifted, f, p = reg_set(EXP2_C6);
    v = reg_max(reg_set(-127.0f), reg_min(reg_set(128.0f), v)); /* in this order a NaN stays */
    shifted = reg_add(v, to_integer);
    f = reg_sub(v, reg_sub(shifted, to_integer));
    p = reg_fma(p, f, reg_set(EXP2_C5));
    p = reg_fma(p, f, reg_set(EXP2_C4));
    p = reg_fma(p, f, reg_set(EXP2_C3));
    p = reg_fma(p, f, reg_set(EXP2_C2));
    p = reg_fma(p, f, reg_set(EXP2_C1));
    p = reg_fma(p, f, reg_set(1.0f));
    return reg_mul(p, reg_power(shifted));
}
#endif

/* ------------------------------------------------------------------ sixteen lanes */

typedef struct {
    reg at[REGS];
} vec;

#define PART_LANES (LANES / REGS)
#define FOR_PARTS(i) \
    UNROLL           \
    for (int i = 0; i < REGS; i++)
#define LIFT_1(name)                                  \
    INLINE vec vec_##name(vec a) {                    \
        FOR_PARTS (i) a.at[i] = reg_##name(a.at[i]); \
        return a;                                     \
    }
#define LIFT_2(name)                                           \
    INLINE vec vec_##name(vec a, vec b) {                      \
        FOR_PARTS (i) a.at[i] = reg_##name(a.at[i], b.at[i]); \
        return a;                                              \
    }
#define LIFT_3(name)                                                    \
    INLINE vec vec_##name(vec a, vec b, vec c) {                        \
        FOR_PARTS (i) a.at[i] = reg_##name(a.at[i], b.at[i], c.at[i]); \
        return a;                                                       \
    }

LIFT_1(abs)
LIFT_1(exp2)
LIFT_2(add)
LIFT_2(sub)
LIFT_2(mul)
LIFT_2(div)
LIFT_2(max)
LIFT_3(fma)
LIFT_3(if_negative)

INLINE vec vec_set(float x) {
    vec a;
    FOR_PARTS (i) a.at[i] = reg_set(x);
    return a;
}
INLINE vec vec_load(const float *p) {
    vec a;
    FOR_PARTS (i) a.at[i] = reg_load(p + i * PART_LANES);
    return a;
}
INLINE void vec_store(float *p, vec a) {
    FOR_PARTS (i) reg_store(p + i * PART_LANES, a.at[i]);
}

/* Sums over the lanes of sixteen vectors at once, in two steps; lane n of the result is the sum of vector n:
 *   half[q] = vec_fold(v[q], v[q + 4], v[q + 8], v[q + 12]) for q = 0..3   (quarter k: four partial sums of v[q + 4k])
 *   sums    = vec_sum(half[0], half[1], half[2], half[3])
 */
#if defined(SCAN_AVX512)
INLINE vec vec_fold(vec a, vec b, vec c, vec d) {
    __m512 ab =
        _mm512_add_ps(_mm512_shuffle_f32x4(a.at[0], b.at[0], 0x44), _mm512_shuffle_f32x4(a.at[0], b.at[0], 0xEE));
    __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c.at[0], d.at[0], 0x44), _mm512_shuffle_f32x4(c.at[0], d.at[0], 0xEE));
    a.at[0] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    return a;
}
INLINE vec vec_sum(vec a, vec b, vec c, vec d) {
    __m512d a2 = _mm512_castps_pd(a.at[0]), b2 = _mm512_castps_pd(b.at[0]);
    __m512d c2 = _mm512_castps_pd(c.at[0]), d2 = _mm512_castps_pd(d.at[0]);
    __m512 ab =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a2, b2)), _mm512_castpd_ps(_mm512_unpackhi_pd(a2, b2)));
    __m512 cd =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c2, d2)), _mm512_castpd_ps(_mm512_unpackhi_pd(c2, d2)));
    a.at[0] = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xDD));
    return a;
}
#elif defined(SCAN_AVX2)
INLINE reg reg_fold(reg low, reg high) {
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
INLINE vec vec_fold(vec a, vec b, vec c, vec d) {
    vec r;
    r.at[0] = reg_fold(reg_add(a.at[0], a.at[1]), reg_add(b.at[0], b.at[1]));
    r.at[1] = reg_fold(reg_add(c.at[0], c.at[1]), reg_add(d.at[0], d.at[1]));
    return r;
}
INLINE vec vec_sum(vec a, vec b, vec c, vec d) {
    FOR_PARTS (i) a.at[i] = _mm256_hadd_ps(_mm256_hadd_ps(a.at[i], b.at[i]), _mm256_hadd_ps(c.at[i], d.at[i]));
    return a;
}
#elif defined(SCAN_NEON)
INLINE reg reg_fold(vec a) { return vaddq_f32(vaddq_f32(a.at[0], a.at[1]), vaddq_f32(a.at[2], a.at[3])); }
INLINE vec vec_fold(vec a, vec b, vec c, vec d) {
    vec r;
    r.at[0] = reg_fold(a);
    r.at[1] = reg_fold(b);
    r.at[2] = reg_fold(c);
    r.at[3] = reg_fold(d);
    return r;
}
INLINE vec vec_sum(vec a, vec b, vec c, vec d) {
    FOR_PARTS (i) a.at[i] = vpaddq_f32(vpaddq_f32(a.at[i], b.at[i]), vpaddq_f32(c.at[i], d.at[i]));
    return a;
}
#else
INLINE vec vec_fold(vec a, vec b, vec c, vec d) {
    float from[4][LANES], to[LANES];
    vec_store(from[0], a);
    vec_store(from[1], b);
    vec_store(from[2], c);
    vec_store(from[3], d);
    for (int q = 0; q < LANES; q++)
        to[q] = from[q / 4][q % 4] + from[q / 4][4 + q % 4] + from[q / 4][8 + q % 4] + from[q / 4][12 + q % 4];
    return vec_load(to);
}
INLINE vec vec_sum(vec a, vec b, vec c, vec d) {
    float from[4][LANES], to[LANES];
    vec_store(from[0], a);
    vec_store(from[1], b);
    vec_store(from[2], c);
    vec_store(from[3], d);
    for (int q = 0; q < LANES; q++) {
        const float *four = from[q % 4] + q / 4 * 4;
        to[q] = four[0] + four[1] + four[2] + four[3];
    }
    return vec_load(to);
}
#endif

#endif
