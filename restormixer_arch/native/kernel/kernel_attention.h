/* Attention inside windows, and its gradient, without the matrix of all pairs.
 *
 * The queries of a window lie in lanes, LANES of them at a time (a `group`), and the keys are walked one after the
 * other; their values are read as scalars that all lanes share. So a softmax crosses no lanes. The backward pass does the
 * same twice: with queries in lanes for the gradient of q, and with keys in lanes for those of k and v. Both use two loops:
 *
 *   products(group, rows):       out[j] = sum over e of group[e] rows[j][e]        one value per lane and row
 *   combine(weights, rows):      out[e] = sum over j of weights[j] rows[j][e]      one value per lane and dimension
 *
 * With s = scale q k^T, w = softmax(s), y = w v:   dv = w^T dy,   ds = w (dy v^T - dy . y),   dq = scale ds k,
 * dk = scale ds^T q. The softmax is kept as its largest exponent, of base 2, and the reciprocal of its sum.
 */
#ifndef RESTORMIXER_KERNEL_ATTENTION_H
#define RESTORMIXER_KERNEL_ATTENTION_H

#include <math.h>
#include <stddef.h>

#include "kernel_simd.h"

#define QUAD 4 /* vectors of sums that are held in registers at once */
#define ATTENTION_LOG2_E 1.4426950408889634f

/* One head of one window. Rows are (token, width), columns (width, padded): the same values with tokens in lanes. */
struct head {
    int64_t tokens, padded, width; /* padded: to a multiple of LANES; width: dim to a multiple of QUAD, the rest 0 */
};

static void head_rows(const struct head *head, const float *from, int64_t stride, int64_t dim, float *rows) {
    for (int64_t t = 0; t < head->tokens; t++) {
        for (int64_t e = 0; e < dim; e++) rows[t * head->width + e] = from[t * stride + e];
        for (int64_t e = dim; e < head->width; e++) rows[t * head->width + e] = 0.0f;
    }
}

static void head_columns(const struct head *head, const float *from, int64_t stride, int64_t dim, float *columns) {
    for (int64_t e = 0; e < head->width; e++) {
        float *column = columns + e * head->padded;
        for (int64_t t = 0; t < head->tokens; t++) column[t] = e < dim ? from[t * stride + e] : 0.0f;
        for (int64_t t = head->tokens; t < head->padded; t++) column[t] = 0.0f;
    }
}

/* One to QUAD rows from row j on; `rows` is a constant where it is called. */
INLINE void products_of(const struct head *head, const float *group, const float *row, float *out, int rows) {
    vec sum[QUAD];
    UNROLL
    for (int r = 0; r < rows; r++) sum[r] = vec_set(0.0f);
    for (int64_t e = 0; e < head->width; e++) {
        const vec column = vec_load(group + e * head->padded);
        UNROLL
        for (int r = 0; r < rows; r++) sum[r] = vec_fma(column, vec_set(row[r * head->width + e]), sum[r]);
    }
    UNROLL
    for (int r = 0; r < rows; r++) vec_store(out + r * LANES, sum[r]);
}

static void products(const struct head *head, const float *group, const float *rows, float *out) {
    int64_t j = 0;
    for (; j + QUAD <= head->tokens; j += QUAD)
        products_of(head, group, rows + j * head->width, out + j * LANES, QUAD);
    for (; j < head->tokens; j++) products_of(head, group, rows + j * head->width, out + j * LANES, 1);
}

/* Writes the group's `count` tokens to rows of `to`. */
static void combine(const struct head *head, const float *weights, const float *rows, vec factor, float *to,
                    int64_t stride, int64_t dim, int64_t count) {
    for (int64_t first = 0; first < dim; first += QUAD) {
        vec sum[QUAD];
        float columns[QUAD * LANES];
        UNROLL
        for (int e = 0; e < QUAD; e++) sum[e] = vec_set(0.0f);
        for (int64_t j = 0; j < head->tokens; j++) {
            const float *row = rows + j * head->width + first;
            const vec weight = vec_load(weights + j * LANES);
            UNROLL
            for (int e = 0; e < QUAD; e++) sum[e] = vec_fma(weight, vec_set(row[e]), sum[e]);
        }
        UNROLL
        for (int e = 0; e < QUAD; e++) vec_store(columns + e * LANES, vec_mul(sum[e], factor));
        const int64_t wide = dim - first < QUAD ? dim - first : QUAD;
        for (int64_t t = 0; t < count; t++)
            for (int64_t e = 0; e < wide; e++) to[t * stride + first + e] = columns[e * LANES + t];
    }
}

static int64_t lanes_used(const struct head *head, int64_t group) {
    return head->tokens - group < LANES ? head->tokens - group : LANES;
}

static struct head make_head(const struct attention_call *call) {
    const struct head head = {call->tokens, (call->tokens + LANES - 1) / LANES * LANES,
                              (call->dim + QUAD - 1) / QUAD * QUAD};
    return head;
}

static void attention(const struct attention_call *call, int64_t window, float *scratch) {
    const struct head head = make_head(call);
    const int64_t dim = call->dim, inner = call->heads * dim, size = head.padded * head.width;
    const float factor = ATTENTION_LOG2_E / sqrtf((float)dim);
    float *q_t = scratch, *k = q_t + size, *v = k + size, *w = v + size;
    for (int64_t h = 0; h < call->heads; h++) {
        const float *from = call->qkv + window * call->tokens * 3 * inner + h * dim;
        float *norms = call->norms ? call->norms + (window * call->heads + h) * 2 * call->tokens : NULL;
        head_columns(&head, from, 3 * inner, dim, q_t);
        head_rows(&head, from + inner, 3 * inner, dim, k);
        head_rows(&head, from + 2 * inner, 3 * inner, dim, v);
        for (int64_t group = 0; group < call->tokens; group += LANES) {
            const int64_t count = lanes_used(&head, group);
            vec largest = vec_set(-INFINITY), sum = vec_set(0.0f);
            products(&head, q_t + group, k, w);
            for (int64_t j = 0; j < call->tokens; j++) largest = vec_max(largest, vec_load(w + j * LANES));
            largest = vec_mul(largest, vec_set(factor));
            for (int64_t j = 0; j < call->tokens; j++) {
                const vec s = vec_mul(vec_load(w + j * LANES), vec_set(factor));
                const vec e = vec_exp2(vec_sub(s, largest));
                vec_store(w + j * LANES, e);
                sum = vec_add(sum, e);
            }
            const vec inverse = vec_div(vec_set(1.0f), sum);
            combine(&head, w, v, inverse, call->y + (window * call->tokens + group) * inner + h * dim, inner, dim, count);
            if (!norms) continue;
            float both[2 * LANES];
            vec_store(both, largest);
            vec_store(both + LANES, inverse);
            for (int64_t t = 0; t < count; t++) {
                norms[group + t] = both[t];
                norms[call->tokens + group + t] = both[LANES + t];
            }
        }
    }
}

static void attention_backward(const struct attention_call *call, int64_t window, float *scratch) {
    const struct head head = make_head(call);
    const int64_t tokens = call->tokens, dim = call->dim, inner = call->heads * dim, size = head.padded * head.width;
    const float scale = 1.0f / sqrtf((float)dim), factor = ATTENTION_LOG2_E * scale;
    const vec one = vec_set(1.0f), steep = vec_set(factor);
    float *q = scratch, *k = q + size, *v = k + size, *g = v + size;             /* rows */
    float *q_t = g + size, *k_t = q_t + size, *v_t = k_t + size, *g_t = v_t + size; /* columns */
    float *w = g_t + size, *ds = w + head.padded * LANES, *largest = ds + head.padded * LANES;
    float *inverse = largest + head.padded, *mean = inverse + head.padded; /* mean: of dy v^T under the softmax, dy . y */
    for (int64_t h = 0; h < call->heads; h++) {
        const int64_t offset = window * tokens * 3 * inner + h * dim;
        const float *from = call->qkv + offset, *norms = call->norms + (window * call->heads + h) * 2 * tokens;
        const float *y = call->y + window * tokens * inner + h * dim;
        float *to = call->grad_qkv + offset;
        const float *grad_y = call->grad_y + window * tokens * inner + h * dim;
        head_rows(&head, from, 3 * inner, dim, q);
        head_rows(&head, from + inner, 3 * inner, dim, k);
        head_rows(&head, from + 2 * inner, 3 * inner, dim, v);
        head_rows(&head, grad_y, inner, dim, g);
        head_columns(&head, from, 3 * inner, dim, q_t);
        head_columns(&head, from + inner, 3 * inner, dim, k_t);
        head_columns(&head, from + 2 * inner, 3 * inner, dim, v_t);
        head_columns(&head, grad_y, inner, dim, g_t);
        memset(largest, 0, sizeof(float) * (size_t)(3 * head.padded));
        memcpy(largest, norms, sizeof(float) * (size_t)tokens);
        memcpy(inverse, norms + tokens, sizeof(float) * (size_t)tokens);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t e = 0; e < dim; e++) mean[t] += g[t * head.width + e] * y[t * inner + e];
        for (int64_t group = 0; group < tokens; group += LANES) { /* queries in lanes */
            const vec top = vec_load(largest + group), weight = vec_load(inverse + group);
            const vec middle = vec_load(mean + group);
            products(&head, q_t + group, k, w);
            products(&head, g_t + group, v, ds);
            for (int64_t j = 0; j < tokens * LANES; j += LANES) {
                const vec e = vec_exp2(vec_sub(vec_mul(vec_load(w + j), steep), top));
                vec_store(ds + j, vec_mul(vec_mul(e, weight), vec_sub(vec_load(ds + j), middle)));
            }
            combine(&head, ds, k, vec_set(scale), to + group * 3 * inner, 3 * inner, dim, lanes_used(&head, group));
        }
        for (int64_t group = 0; group < tokens; group += LANES) { /* keys in lanes */
            const int64_t count = lanes_used(&head, group);
            products(&head, k_t + group, q, w);
            products(&head, v_t + group, g, ds);
            for (int64_t i = 0; i < tokens; i++) {
                const vec s = vec_mul(vec_load(w + i * LANES), steep);
                const vec e = vec_mul(vec_exp2(vec_sub(s, vec_set(largest[i]))), vec_set(inverse[i]));
                vec_store(w + i * LANES, e);
                vec_store(ds + i * LANES, vec_mul(e, vec_sub(vec_load(ds + i * LANES), vec_set(mean[i]))));
            }
            combine(&head, ds, q, vec_set(scale), to + inner + group * 3 * inner, 3 * inner, dim, count);
            combine(&head, w, g, one, to + 2 * inner + group * 3 * inner, 3 * inner, dim, count);
        }
    }
}

#endif
