/* Runs the kernel on arrays of exactly their size, for the sanitizers, and checks it against a loop in double.
 *
 * Every instruction set of this machine, every direction, groups, a gate, constant B and C, odd sizes, several threads.
 * Gradients are checked along a random direction: the change of sum(w y) that the loop finds when all inputs take a
 * small step must be the sum of gradient times step.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

const char *restormixer_isa(const char *name);
int restormixer_scan_forward(const int64_t *fields, int64_t count, const char *isa);
int restormixer_scan_backward(const int64_t *fields, int64_t count, const char *isa);

#define FIELDS ((int64_t)(sizeof(struct scan_call) / sizeof(int64_t)))
#define MOVED 8 /* u, delta, A, B, C, D, bias, z */

struct shape {
    int batch, parts, height, width, channels, states, summed, gate, constant_b, constant_c, threads;
};

/* One array of the problem: values, a random step to move along, gradient; none where size is 0. */
struct array {
    int64_t size;
    float *value, *step, *grad;
};

static uint32_t seed = 1;

static float uniform(void) { /* in (-1, 1) */
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / (float)(1 << 23) - 1.0f;
}

static float *make(int64_t size, float scale, float offset) {
    float *p = malloc(sizeof(float) * (size_t)size);
    if (!p) exit(2);
    for (int64_t i = 0; i < size; i++) p[i] = offset + scale * uniform();
    return p;
}

static struct array make_array(int64_t size, float scale, float offset) {
    struct array a = {size, make(size, scale, offset), make(size, 1.0f, 0.0f), make(size, 1.0f, 0.0f)};
    return a;
}

static void free_array(struct array a) {
    free(a.value);
    free(a.step);
    free(a.grad);
}

static int64_t address(const float *p) { return (int64_t)(uintptr_t)p; }

static int place_of(const struct shape *s, int part, int t) {
    const int length = s->height * s->width, order = s->summed ? part % 4 : 0;
    if (order == ORDER_ROW_REVERSE || order == ORDER_COLUMN_REVERSE) t = length - 1 - t;
    return order == ORDER_COLUMN || order == ORDER_COLUMN_REVERSE ? t % s->height * s->width + t / s->height : t;
}

/* Element t, lane of an array (batch, step, part, lane); `shared` has no part axis. */
static int64_t at(const struct shape *s, int b, int part, int place, int lane, int lanes, int shared) {
    const int length = s->height * s->width, parts = shared ? 1 : s->parts;
    return (((int64_t)b * length + place) * parts + (shared ? 0 : part)) * lanes + lane;
}

static double moved(const struct array *a, int64_t i, double epsilon) { return a->value[i] + epsilon * a->step[i]; }

/* y of the loop for inputs moved by epsilon along their steps; returns sum(weight y). */
static double loop(const struct shape *s, const struct array *in, double epsilon, const float *weight, double *y) {
    const int length = s->height * s->width, N = s->states;
    double total = 0;
    memset(y, 0, sizeof(double) * (size_t)(s->batch * length * s->channels * (s->summed ? 1 : s->parts)));
    for (int b = 0; b < s->batch; b++)
        for (int p = 0; p < s->parts; p++)
            for (int d = 0; d < s->channels; d++) {
                double h[MAX_STATES] = {0};
                for (int t = 0; t < length; t++) {
                    const int place = place_of(s, p, t);
                    const int64_t iu = at(s, b, p, place, d, s->channels, s->summed), ip = (int64_t)p * s->channels + d;
                    const double u = moved(&in[0], iu, epsilon);
                    const double raw =
                        moved(&in[1], at(s, b, p, place, d, s->channels, 0), epsilon) + moved(&in[6], ip, epsilon);
                    const double dt = raw > 20 ? raw : log1p(exp(raw));
                    double sum = moved(&in[5], ip, epsilon) * u;
                    for (int n = 0; n < N; n++) {
                        const int64_t ic = ip * N + n, is = at(s, b, p, place, n, N, 0);
                        h[n] = exp(dt * moved(&in[2], ic, epsilon)) * h[n] +
                               dt * u * moved(&in[3], s->constant_b ? ic : is, epsilon);
                        sum += h[n] * moved(&in[4], s->constant_c ? ic : is, epsilon);
                    }
                    if (s->gate) {
                        const double z = moved(&in[7], iu, epsilon);
                        sum *= z / (1 + exp(-z));
                    }
                    y[iu] += sum;
                    total += weight[iu] * sum;
                }
            }
    return total;
}

static struct stream channel_stream(const struct shape *s, const float *p, int shared) {
    const int64_t parts = shared ? 1 : s->parts, row = parts * s->channels;
    const struct stream stream = {address(p), row * s->height * s->width, shared ? 0 : s->channels, row, 1, 0};
    return stream;
}

static struct stream state_stream(const struct shape *s, const float *p, int constant) {
    const int64_t row = (int64_t)s->parts * s->states;
    const struct stream stream = {address(p), row * s->height * s->width, s->states, row, 1, 0};
    const struct stream dense = {address(p), 0, 0, 0, 0, 0};
    return constant ? dense : stream;
}

static struct scan_call make_call(const struct shape *s, const struct array *in, const float *y) {
    struct scan_call call = {.batch = s->batch, .parts = s->parts, .height = s->height, .width = s->width};
    call.channels = s->channels;
    call.states = s->states;
    call.softplus = 1;
    call.summed = s->summed;
    call.constant_b = s->constant_b;
    call.constant_c = s->constant_c;
    call.threads = s->threads;
    for (int k = 0; k < MAX_DIRECTIONS; k++) call.order[k] = s->summed ? k : ORDER_ROW;
    call.a = address(in[2].value);
    call.d = address(in[5].value);
    call.bias = address(in[6].value);
    call.u = channel_stream(s, in[0].value, s->summed);
    call.delta = channel_stream(s, in[1].value, 0);
    if (s->gate) call.z = channel_stream(s, in[7].value, s->summed);
    call.b = state_stream(s, in[3].value, s->constant_b);
    call.c = state_stream(s, in[4].value, s->constant_c);
    call.y = channel_stream(s, y, s->summed);
    return call;
}

static void ask_for_gradients(struct scan_call *call, const struct shape *s, const struct array *in,
                              const float *weight) {
    call->grad_y = channel_stream(s, weight, s->summed);
    call->grad_u = channel_stream(s, in[0].grad, s->summed);
    call->grad_delta = channel_stream(s, in[1].grad, 0);
    if (s->gate) call->grad_z = channel_stream(s, in[7].grad, s->summed);
    call->grad_b = state_stream(s, in[3].grad, s->constant_b);
    call->grad_c = state_stream(s, in[4].grad, s->constant_c);
    call->grad_a = address(in[2].grad);
    call->grad_d = address(in[5].grad);
    call->grad_bias = address(in[6].grad);
}

/* Sum of gradient times step; gradients of parameters hold a share for each batch item. */
static double slope(const struct shape *s, const struct array *in) {
    double sum = 0;
    for (int i = 0; i < MOVED; i++) {
        const int shares = i == 2 || i == 5 || i == 6 || (i == 3 && s->constant_b) || (i == 4 && s->constant_c);
        for (int b = 0; b < (shares ? s->batch : 1); b++)
            for (int64_t j = 0; j < in[i].size; j++) sum += (double)in[i].grad[b * in[i].size + j] * in[i].step[j];
    }
    return sum;
}

static void make_inputs(const struct shape *s, struct array *in) {
    const int64_t length = (int64_t)s->height * s->width, channels = (int64_t)s->parts * s->channels;
    const int64_t tokens = s->batch * length, table = channels * s->states;
    in[0] = make_array(tokens * (s->summed ? s->channels : channels), 1.0f, 0.0f);
    in[1] = make_array(tokens * channels, 1.0f, -1.0f);
    in[2] = make_array(table, 2.0f, -2.1f);
    in[3] = make_array(s->constant_b ? table : tokens * s->parts * s->states, 1.0f, 0.0f);
    in[4] = make_array(s->constant_c ? table : tokens * s->parts * s->states, 1.0f, 0.0f);
    in[5] = make_array(channels, 1.0f, 0.0f);
    in[6] = make_array(channels, 1.0f, 0.0f);
    in[7] = make_array(s->gate ? in[0].size : 0, 1.0f, 0.0f);
    for (int i = 2; i < 7; i++) { /* room for a share of each batch item */
        free(in[i].grad);
        in[i].grad = make(in[i].size * s->batch, 1.0f, 0.0f);
    }
}

static int check(const struct shape *s, const char *isa) {
    struct array in[MOVED];
    make_inputs(s, in);
    const int64_t size = in[0].size, blocks = (s->channels + LANES - 1) / LANES;
    const int64_t chunks = ((int64_t)s->height * s->width + CHUNK - 1) / CHUNK;
    float *y = make(size, 1.0f, 0.0f), *weight = make(size, 1.0f, 0.0f);
    float *states = make(s->batch * s->parts * chunks * blocks * s->states * LANES, 1.0f, 0.0f);
    double *wanted = malloc(sizeof(double) * (size_t)size), worst = 0;
    struct scan_call call = make_call(s, in, y);
    if (!wanted) return 2;
    call.saved_states = address(states);
    int status = restormixer_scan_forward((const int64_t *)&call, FIELDS, isa);
    const double epsilon = 1e-5, up = loop(s, in, epsilon, weight, wanted),
                 down = loop(s, in, -epsilon, weight, wanted);
    loop(s, in, 0, weight, wanted);
    for (int64_t i = 0; i < size; i++) worst = fmax(worst, fabs(y[i] - wanted[i]));
    ask_for_gradients(&call, s, in, weight);
    status |= restormixer_scan_backward((const int64_t *)&call, FIELDS, isa);
    const double rise = (up - down) / (2 * epsilon), error = fabs(slope(s, in) - rise) / (1 + fabs(rise));
    const int failed = status || !(worst < 1e-4) || !(error < 1e-4);
    if (failed)
        printf("%s, size %d x %d x %d: status %d, error of y %g, of the gradient %g\n", isa, s->height, s->width,
               s->channels, status, worst, error);
    for (int i = 0; i < MOVED; i++) free_array(in[i]);
    free(y);
    free(weight);
    free(states);
    free(wanted);
    return failed;
}

int main(void) {
    const char *names[] = {"avx512", "avx2", "neon", "plain"};
    const struct shape shapes[] = {
        /* batch, parts, height, width, channels, states, summed, gate, constant B, constant C, threads */
        {1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1},    {2, 1, 1, 131, 20, 16, 0, 1, 0, 0, 2},
        {2, 3, 1, 70, 5, 16, 0, 1, 0, 0, 2},  {1, 2, 1, 65, 17, 3, 0, 0, 1, 0, 1},
        {2, 1, 1, 30, 33, 16, 0, 1, 0, 1, 3}, {1, 1, 1, 40, 16, 20, 0, 0, 1, 1, 1},
        {1, 4, 9, 13, 48, 16, 1, 0, 0, 0, 3}, {2, 4, 1, 7, 16, 40, 1, 0, 0, 0, 1},
        {1, 4, 11, 1, 3, 16, 1, 0, 0, 0, 2},  {1, 2, 40, 41, 40, 16, 1, 0, 0, 0, 4},
        {1, 1, 0, 5, 4, 2, 1, 0, 0, 0, 2},    {1, 1, 1, 9, 4, 256, 0, 0, 0, 0, 1},
    };
    int failures = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!restormixer_isa(names[i])) continue;
        for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++) failures += check(&shapes[j], names[i]);
    }
    struct scan_call wrong = {0};
    failures += restormixer_scan_forward((const int64_t *)&wrong, FIELDS, "plain") != KERNEL_BAD_CALL;
    failures += restormixer_scan_forward((const int64_t *)&wrong, FIELDS - 1, "plain") != KERNEL_BAD_CALL;
    failures += restormixer_scan_forward((const int64_t *)&wrong, FIELDS, "no such set") != KERNEL_BAD_CALL;
    return failures ? 1 : 0;
}
