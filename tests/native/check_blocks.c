/* Runs GELU and window attention on arrays of exactly their size, for the sanitizers, and checks them against loops in
 * double, the gradient along a random direction as in check_kernel.c.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

const char *restormixer_isa(const char *name);
int64_t restormixer_gelu_tiles(int64_t count, int64_t period);
int restormixer_gelu(const struct gelu_call *call, int64_t threads, int64_t parallel, const char *isa);
int restormixer_attention(const struct attention_call *call, int64_t threads, int64_t parallel, const char *isa);

static uint32_t seed = 1;

static float *make(int64_t size) { /* values in (-1, 1) */
    float *p = malloc(sizeof(float) * (size_t)size);
    if (!p) exit(2);
    for (int64_t i = 0; i < size; i++) {
        seed = seed * 1664525u + 1013904223u;
        p[i] = (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
    }
    return p;
}

static double gelu_of(double u) { return 0.5 * u * (1 + erf(u / sqrt(2))); }

static int check_gelu(int64_t count, int64_t period, int with_scale, int threads, const char *isa) {
    const double epsilon = 1e-4;
    const int64_t tiles = restormixer_gelu_tiles(count, period);
    float *x = make(count), *weight = make(count), *step = make(count), *grad_x = make(count), *y = make(count);
    float *scale = make(period), *shift = make(period), *scale_step = make(period), *shift_step = make(period);
    float *partial = make(tiles * 2 * period);
    struct gelu_call call = {x, with_scale ? scale : NULL, with_scale ? shift : NULL, y, count, period, NULL, NULL};
    int status = restormixer_gelu(&call, threads, 0, isa);
    call.y = grad_x;
    call.grad_y = weight;
    call.partial = with_scale ? partial : NULL;
    status |= restormixer_gelu(&call, threads, 0, isa);
    double worst = 0, rise = 0, slope = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t c = i % period;
        double value[3];
        for (int s = -1; s <= 1; s++) {
            const double moved = x[i] + s * epsilon * step[i];
            const double a = with_scale ? scale[c] + s * epsilon * scale_step[c] : 1;
            const double b = with_scale ? shift[c] + s * epsilon * shift_step[c] : 0;
            value[s + 1] = gelu_of(moved * a + b);
        }
        worst = fmax(worst, fabs(value[1] - y[i]));
        rise += weight[i] * (value[2] - value[0]) / (2 * epsilon);
        slope += (double)grad_x[i] * step[i];
    }
    for (int64_t t = 0; with_scale && t < tiles; t++)
        for (int64_t c = 0; c < period; c++)
            slope += (double)partial[t * 2 * period + c] * scale_step[c] +
                     (double)partial[(t * 2 + 1) * period + c] * shift_step[c];
    const double error = fabs(slope - rise) / (1 + fabs(rise));
    const int failed = status || !(worst < 1e-5) || !(error < 1e-4);
    if (failed) printf("%s, gelu of %d: status %d, errors %g, %g\n", isa, (int)count, status, worst, error);
    float *all[] = {x, weight, step, grad_x, y, scale, shift, scale_step, shift_step, partial};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    return failed;
}

/* sum(weight y) of the loop at qkv + epsilon step; y where it is wanted. */
static double attend(const struct attention_call *c, const float *step, double epsilon, const float *weight, double *y) {
    const int64_t T = c->tokens, H = c->heads, d = c->dim, inner = H * d;
    double *w = malloc(sizeof(double) * (size_t)T), total = 0;
    if (!w) exit(2);
#define AT(g, t, which, h, e) ((((g) * T + (t)) * 3 + (which)) * inner + (h) * d + (e))
#define MOVED(i) (c->qkv[i] + epsilon * step[i])
    for (int64_t g = 0; g < c->windows; g++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t t = 0; t < T; t++) {
                double sum = 0;
                for (int64_t j = 0; j < T; j++) {
                    double s = 0;
                    for (int64_t e = 0; e < d; e++) s += MOVED(AT(g, t, 0, h, e)) * MOVED(AT(g, j, 1, h, e));
                    sum += w[j] = exp(s / sqrt((double)d));
                }
                for (int64_t e = 0; e < d; e++) {
                    const int64_t at = (g * T + t) * inner + h * d + e;
                    double value = 0;
                    for (int64_t j = 0; j < T; j++) value += w[j] / sum * MOVED(AT(g, j, 2, h, e));
                    total += weight[at] * value;
                    if (y) y[at] = value;
                }
            }
    free(w);
    return total;
}

static int check_attention(int64_t windows, int64_t tokens, int64_t heads, int64_t dim, int threads, const char *isa) {
    const double epsilon = 1e-4;
    const int64_t size = windows * tokens * heads * dim;
    float *qkv = make(3 * size), *step = make(3 * size), *grad_qkv = make(3 * size), *y = make(size);
    float *weight = make(size), *norms = make(windows * heads * 2 * tokens);
    double *wanted = malloc(sizeof(double) * (size_t)size), worst = 0, slope = 0;
    if (!wanted) exit(2);
    struct attention_call call = {qkv, y, norms, windows, tokens, heads, dim, NULL, NULL};
    int status = restormixer_attention(&call, threads, 0, isa);
    attend(&call, step, 0, weight, wanted);
    const double rise =
        (attend(&call, step, epsilon, weight, NULL) - attend(&call, step, -epsilon, weight, NULL)) / (2 * epsilon);
    call.grad_y = weight;
    call.grad_qkv = grad_qkv;
    status |= restormixer_attention(&call, threads, 0, isa);
    for (int64_t i = 0; i < size; i++) worst = fmax(worst, fabs(wanted[i] - y[i]));
    for (int64_t i = 0; i < 3 * size; i++) slope += (double)grad_qkv[i] * step[i];
    const double error = fabs(slope - rise) / (1 + fabs(rise));
    const int failed = status || !(worst < 1e-5) || !(error < 1e-4);
    if (failed)
        printf("%s, attention of %d x %d x %d x %d: status %d, errors %g, %g\n", isa, (int)windows, (int)tokens,
               (int)heads, (int)dim, status, worst, error);
    free(qkv), free(step), free(grad_qkv), free(y), free(weight), free(norms), free(wanted);
    return failed;
}

int main(void) {
    const char *names[] = {"avx512", "avx2", "neon", "plain"};
    int failures = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *isa = names[i];
        if (!restormixer_isa(isa)) continue;
        failures += check_gelu(1, 16, 0, 1, isa) + check_gelu(100003, 16, 0, 3, isa);
        failures += check_gelu(48 * 1001, 48, 1, 2, isa) + check_gelu(20480 * 2, 20480, 1, 2, isa);
        failures += check_attention(1, 1, 1, 1, 1, isa) + check_attention(3, 9, 2, 3, 2, isa);
        failures += check_attention(2, 64, 2, 8, 2, isa) + check_attention(1, 37, 1, 20, 1, isa);
    }
    const struct gelu_call gelu = {0};
    const struct attention_call attention = {0};
    failures += restormixer_gelu(&gelu, 1, 0, "plain") != KERNEL_BAD_CALL;
    failures += restormixer_attention(&attention, 1, 0, "no such set") != KERNEL_BAD_CALL;
    return failures ? 1 : 0;
}
