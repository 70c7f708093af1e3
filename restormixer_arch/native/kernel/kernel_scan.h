/* The scan and its gradient, written once for all instruction sets.
 *
 * A block is sixteen channels, one lane each, so no sum over states crosses lanes in the forward pass. Steps are taken
 * in chunks: the rows of a chunk are brought into dense float32 buffers, in the direction's order, then
 *
 *   h <- exp(dt A) h + dt u B,   y = C . h + D u,   dt = softplus(delta + bias)   (softplus is optional)
 *
 * is run with A kept as A log2(e), so that the exponential is one of base 2. The backward pass takes the chunks from
 * the last to the first, repeats each from its saved state, and walks it in reverse with g, the gradient of h:
 *
 *   g <- C dy + g', g' = exp(dt A) g is carried to the step before;   dC = h dy and dB = g dt u, summed over channels;
 *   du = D dy + dt (g . B);   ddt = u (g . B) + A . (g' h_before);   dA = dt g' h_before.
 */
#ifndef RESTORMIXER_KERNEL_SCAN_H
#define RESTORMIXER_KERNEL_SCAN_H

#include <stddef.h>

#include "kernel_rows.h"

#define LOG2_E 1.44269502162933349609375f /* rounded to float32 ... */
#define LOG2_E_LOW 1.925963033500011e-08f /* ... and what that leaves */
#define LN_2 0.69314718055994530942f
#define FIXED_STATES 16 /* the number of states that is kept in registers */
#define ROWS (CHUNK * LANES)

/* ------------------------------------------------------------------ functions of one value */

/* exp(-|x|): the product with log2(e) in two parts, since its error would be multiplied by |x|. Below -128 it is 0 in
 * float32, and infinity would give NaN. */
INLINE vec exp_of_minus_abs(vec x) {
    const vec a = vec_max(vec_set(-128.0f), vec_sub(vec_set(0.0f), vec_abs(x))), high = vec_set(LOG2_E);
    const vec v = vec_mul(a, high);
    const vec rest = vec_fma(a, high, vec_sub(vec_set(0.0f), v));
    const vec low = vec_fma(a, vec_set(LOG2_E_LOW), rest);
    const vec e = vec_exp2(v);
    return vec_fma(vec_mul(e, vec_set(LN_2)), low, e);
}

/* log(1 + exp(x)) = max(x, 0) + log1p(w), w = exp(-|x|); log1p(w) = 2 atanh(q), q = w / (2 + w) <= 1/3. From x = 20 on
 * that is x itself in float32, which is what PyTorch returns there. */
INLINE vec softplus(vec x) {
    const vec w = exp_of_minus_abs(x);
    vec q = vec_div(w, vec_add(w, vec_set(2.0f))), p = vec_set(0.14012229442596436f);
    const vec s = vec_mul(q, q);
    p = vec_fma(p, s, vec_set(0.13999570906162262f));
    p = vec_fma(p, s, vec_set(0.20010849833488464f));
    p = vec_fma(p, s, vec_set(0.3333320617675781f));
    q = vec_add(q, q);
    return vec_add(vec_max(vec_set(0.0f), x), vec_fma(vec_mul(p, s), q, q));
}

INLINE vec sigmoid(vec x) {
    const vec one = vec_set(1.0f), w = exp_of_minus_abs(x);
    return vec_div(vec_if_negative(x, w, one), vec_add(one, w));
}

INLINE vec silu(vec z) { return vec_mul(z, sigmoid(z)); }

/* ------------------------------------------------------------------ the steps of one chunk and one block */

/* Rows of one chunk: dt, u, y and the like are [step][lane]; b and c are [step][state], or [state][lane] if constant.
 */
struct chunk {
    int count, states, constant_b, constant_c;
    const float *dt, *u, *b, *c, *a; /* a: A log2(e), [state][lane] */
    vec skip;                        /* D */
    const int64_t *next;             /* places of the next chunk */
    struct ahead ahead[AHEAD];       /* u, delta, z and one stream more */
};

INLINE vec coefficient(const float *rows, int constant, int states, int t, int n) {
    return constant ? vec_load(rows + n * LANES) : vec_set(rows[t * states + n]);
}

/* y of each step; h, [state][lane], goes from the state before the chunk to the state after it. */
INLINE void forward_steps(const struct chunk *k, const int states, const int in_registers, float *h, float *y) {
    const int constant_b = !in_registers && k->constant_b, constant_c = !in_registers && k->constant_c;
    const float *restrict a = k->a, *restrict b = k->b, *restrict c = k->c;
    vec state[FIXED_STATES];
    if (in_registers) {
        UNROLL
        for (int n = 0; n < FIXED_STATES; n++) state[n] = vec_load(h + n * LANES);
    }
    for (int t = 0; t < k->count; t++) {
        const vec dt = vec_load(k->dt + t * LANES), u = vec_load(k->u + t * LANES), dt_u = vec_mul(dt, u);
        vec sum[2] = {vec_mul(k->skip, u), vec_set(0.0f)};
        look_ahead(k->ahead, k->next[t]);
        UNROLL
        for (int n = 0; n < states; n++) {
            const vec decay = vec_exp2(vec_mul(dt, vec_load(a + n * LANES)));
            const vec before = in_registers ? state[n % FIXED_STATES] : vec_load(h + n * LANES);
            const vec after = vec_fma(decay, before, vec_mul(dt_u, coefficient(b, constant_b, states, t, n)));
            sum[n & 1] = vec_fma(after, coefficient(c, constant_c, states, t, n), sum[n & 1]);
            if (in_registers)
                state[n % FIXED_STATES] = after;
            else
                vec_store(h + n * LANES, after);
        }
        vec_store(y + t * LANES, vec_add(sum[0], sum[1]));
    }
    if (in_registers) {
        UNROLL
        for (int n = 0; n < FIXED_STATES; n++) vec_store(h + n * LANES, state[n]);
    }
}

/* Fills h[1 .. count] and decay[0 .. count-1], each [step][state][lane], from h[0], the state before the chunk. */
INLINE void repeat_steps(const struct chunk *k, const int states, const int constant_b, float *h, float *decay) {
    for (int t = 0; t < k->count; t++) {
        const vec dt = vec_load(k->dt + t * LANES), dt_u = vec_mul(dt, vec_load(k->u + t * LANES));
        float *restrict after = h + (t + 1) * states * LANES, *restrict factor = decay + t * states * LANES;
        const float *restrict before = h + t * states * LANES;
        look_ahead(k->ahead, k->next[t]);
        UNROLL
        for (int n = 0; n < states; n++) {
            const vec e = vec_exp2(vec_mul(dt, vec_load(k->a + n * LANES)));
            const vec input = vec_mul(dt_u, coefficient(k->b, constant_b, states, t, n));
            vec_store(factor + n * LANES, e);
            vec_store(after + n * LANES, vec_fma(e, vec_load(before + n * LANES), input));
        }
    }
}

/* What reverse_step reads and sums up, beside the chunk. */
struct adjoint {
    const float *h, *decay, *grad_y; /* [step][state][lane] twice, [step][lane] */
    float *grad_h, *grad_a;          /* [state][lane]: g carried from step to step; summed over steps */
    float *grad_b, *grad_c;          /* added to; laid out as b and c */
    float *grad_u, *grad_dt;         /* [step][lane] */
    struct ahead ahead[AHEAD];       /* gradients of u, delta and z, and one stream more */
};

/* One step; `carried` is the gradient of h where it is in registers, which is where states are FIXED_STATES. */
INLINE void reverse_step(const struct chunk *k, const struct adjoint *j, vec *carried, const int states,
                         const int in_registers, int t) {
    const float *restrict after = j->h + (t + 1) * states * LANES, *restrict before = j->h + t * states * LANES;
    const float *restrict decay = j->decay + t * states * LANES;
    const int constant_b = !in_registers && k->constant_b, constant_c = !in_registers && k->constant_c;
    const vec dt = vec_load(k->dt + t * LANES), u = vec_load(k->u + t * LANES), dt_u = vec_mul(dt, u);
    const vec dy = vec_load(j->grad_y + t * LANES), zero = vec_set(0.0f);
    look_ahead(j->ahead, k->next[t]);
    vec g_b = zero, a_wh = zero; /* g . B and A log2(e) . (g' h_before) */
    for (int base = 0; base < states; base += LANES) {
        vec half_b[4], half_c[4];
        UNROLL
        for (int q = 0; q < 4; q++) {
            vec product_b[4], product_c[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const int n = base + q + 4 * i;
                product_b[i] = product_c[i] = zero;
                if (n >= states) continue;
                const vec later = in_registers ? carried[n % FIXED_STATES] : vec_load(j->grad_h + n * LANES);
                const vec g = vec_fma(coefficient(k->c, constant_c, states, t, n), dy, later);
                const vec w = vec_mul(g, vec_load(decay + n * LANES));
                const vec wh = vec_mul(w, vec_load(before + n * LANES));
                if (in_registers)
                    carried[n % FIXED_STATES] = w;
                else
                    vec_store(j->grad_h + n * LANES, w);
                g_b = vec_fma(g, coefficient(k->b, constant_b, states, t, n), g_b);
                a_wh = vec_fma(vec_load(k->a + n * LANES), wh, a_wh);
                vec_store(j->grad_a + n * LANES, vec_fma(dt, wh, vec_load(j->grad_a + n * LANES)));
                product_b[i] = vec_mul(g, dt_u);
                product_c[i] = vec_mul(vec_load(after + n * LANES), dy);
                if (constant_b)
                    vec_store(j->grad_b + n * LANES, vec_add(vec_load(j->grad_b + n * LANES), product_b[i]));
                if (constant_c)
                    vec_store(j->grad_c + n * LANES, vec_add(vec_load(j->grad_c + n * LANES), product_c[i]));
            }
            half_b[q] = vec_fold(product_b[0], product_b[1], product_b[2], product_b[3]);
            half_c[q] = vec_fold(product_c[0], product_c[1], product_c[2], product_c[3]);
        }
        float sums[2][LANES];
        vec_store(sums[0], vec_sum(half_b[0], half_b[1], half_b[2], half_b[3]));
        vec_store(sums[1], vec_sum(half_c[0], half_c[1], half_c[2], half_c[3]));
        for (int i = 0; i < LANES && base + i < states; i++) {
            if (!constant_b) j->grad_b[t * states + base + i] += sums[0][i];
            if (!constant_c) j->grad_c[t * states + base + i] += sums[1][i];
        }
    }
    vec_store(j->grad_u + t * LANES, vec_fma(dt, g_b, vec_mul(k->skip, dy)));
    vec_store(j->grad_dt + t * LANES, vec_fma(u, g_b, vec_mul(a_wh, vec_set(LN_2))));
}

static void forward_chunk(const struct chunk *k, float *h, float *y) {
    if (k->states == FIXED_STATES && !k->constant_b && !k->constant_c)
        forward_steps(k, FIXED_STATES, 1, h, y);
    else
        forward_steps(k, k->states, 0, h, y);
}

static void repeat_chunk(const struct chunk *k, float *h, float *decay) {
    if (k->states == FIXED_STATES && !k->constant_b)
        repeat_steps(k, FIXED_STATES, 0, h, decay);
    else
        repeat_steps(k, k->states, k->constant_b, h, decay);
}

static void reverse_chunk(const struct chunk *k, const struct adjoint *j) {
    vec carried[FIXED_STATES];
    if (k->states == FIXED_STATES && !k->constant_b && !k->constant_c) {
        UNROLL
        for (int n = 0; n < FIXED_STATES; n++) carried[n] = vec_load(j->grad_h + n * LANES);
        for (int t = k->count - 1; t >= 0; t--) reverse_step(k, j, carried, FIXED_STATES, 1, t);
        UNROLL
        for (int n = 0; n < FIXED_STATES; n++) vec_store(j->grad_h + n * LANES, carried[n]);
    } else {
        for (int t = k->count - 1; t >= 0; t--) reverse_step(k, j, NULL, k->states, 0, t);
    }
}

#endif
