/* GELU and its gradient, with a scale and a shift of each channel before it: a BatchNorm that no longer changes.
 *
 * gelu(u) = u P(u), where P is the normal distribution function and p = P' its density: gelu'(u) = P(u) + u p(u).
 * P(-a) = exp(-a^2 / 2) R(a) for a >= 0, and R is a polynomial in t = 1 / (1 + 0.3 a). Its coefficients are a minimax fit,
 * made for this file, to 5e-8 of P up to a = 3 and 1.5e-7 of it beyond.
 */
#ifndef RESTORMIXER_KERNEL_GELU_H
#define RESTORMIXER_KERNEL_GELU_H

#include "kernel_simd.h"

#define INVERSE_SQRT_2PI 0.3989422804014327f
#define HALF_LOG2_E 0.7213475204444817f

/* P(u), and the density p(u). */
INLINE vec normal(vec u, vec *density) {
    static const float c[8] = {0.11961739f,  0.12094177f, 0.09870759f,  0.13265061f,
                               -0.06160766f, 0.21515766f, -0.16241549f, 0.03694812f};
    const vec one = vec_set(1.0f), a = vec_abs(u);
    const vec e = vec_exp2(vec_mul(vec_mul(a, vec_set(-HALF_LOG2_E)), a));
    const vec t = vec_div(one, vec_fma(a, vec_set(0.3f), one));
    vec r = vec_set(c[7]);
    UNROLL
    for (int i = 6; i >= 0; i--) r = vec_fma(r, t, vec_set(c[i]));
    const vec tail = vec_mul(vec_mul(r, t), e);
    *density = vec_mul(e, vec_set(INVERSE_SQRT_2PI));
    return vec_if_negative(u, tail, vec_sub(one, tail));
}

INLINE void gelu_16(const struct gelu_call *call, int64_t channel, const float *x, const float *grad_y,
                    float *y, float *grad_sums) {
    vec value = vec_load(x), scale = vec_set(1.0f), density;
    vec u = value;
    if (call->scale) {
        scale = vec_load(call->scale + channel);
        u = vec_fma(value, scale, vec_load(call->shift + channel));
    }
    const vec p = normal(u, &density);
    if (!grad_y) {
        vec_store(y, vec_mul(u, p));
        return;
    }
    const vec grad_u = vec_mul(vec_load(grad_y), vec_fma(u, density, p));
    vec_store(y, vec_mul(grad_u, scale));
    if (!call->scale) return;
    float *shift_sums = grad_sums + call->period;
    vec_store(grad_sums + channel, vec_fma(grad_u, value, vec_load(grad_sums + channel)));
    vec_store(shift_sums + channel, vec_add(grad_u, vec_load(shift_sums + channel)));
}

/* `first` is a multiple of the period. */
static void gelu(const struct gelu_call *call, int64_t first, int64_t end, float *grad_sums) {
    int64_t i = first, channel = 0;
    for (; i + LANES <= end; i += LANES) {
        gelu_16(call, channel, call->x + i, call->grad_y ? call->grad_y + i : NULL, call->y + i, grad_sums);
        channel = channel + LANES == call->period ? 0 : channel + LANES;
    }
    if (i == end) return;
    const size_t rest = sizeof(float) * (size_t)(end - i);
    float x[LANES] = {0}, grad_y[LANES] = {0}, y[LANES];
    memcpy(x, call->x + i, rest);
    if (call->grad_y) memcpy(grad_y, call->grad_y + i, rest);
    gelu_16(call, channel, x, call->grad_y ? grad_y : NULL, y, grad_sums);
    memcpy(call->y + i, y, rest);
}

#endif
