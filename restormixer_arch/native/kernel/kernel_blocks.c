/* GELU and window attention: entry points. Everything that kernel.c says of calls, threads and names holds here. */
#include "kernel_threads.h"

struct blocks_job {
    const struct kernel_variant *variant;
    const struct gelu_call *gelu;
    const struct attention_call *attention;
    int64_t tile;
};

static void run_gelu(const void *context, int64_t index, float *scratch) {
    const struct blocks_job *job = context;
    const struct gelu_call *call = job->gelu;
    const int64_t first = index * job->tile, end = first + job->tile < call->count ? first + job->tile : call->count;
    float *sums = call->partial ? call->partial + index * 2 * call->period : NULL;
    (void)scratch;
    if (sums) memset(sums, 0, sizeof(float) * 2 * (size_t)call->period);
    job->variant->gelu(call, first, end, sums);
}

static void run_attention(const void *context, int64_t window, float *scratch) {
    const struct blocks_job *job = context;
    if (job->attention->grad_y)
        job->variant->attention_backward(job->attention, window, scratch);
    else
        job->variant->attention(job->attention, window, scratch);
}

static int64_t gelu_tile(int64_t period) { return period >= GELU_TILE ? period : GELU_TILE / period * period; }

/* Rows of `partial` that a backward pass with a scale fills. */
EXPORT int64_t restormixer_gelu_tiles(int64_t count, int64_t period) {
    return (count + gelu_tile(period) - 1) / gelu_tile(period);
}

EXPORT int restormixer_gelu(const struct gelu_call *call, int64_t threads, int64_t parallel, const char *isa) {
    const struct kernel_variant *variant = find_variant(isa);
    if (!variant || call->period < LANES || call->period % LANES || threads < 1) return KERNEL_BAD_CALL;
    const struct blocks_job job = {variant, call, NULL, gelu_tile(call->period)};
    struct tasks tasks = {run_gelu, &job, restormixer_gelu_tiles(call->count, call->period), 0, threads, parallel,
                          call->count * 8, 0};
    return run_tasks(&tasks);
}

EXPORT int restormixer_attention(const struct attention_call *call, int64_t threads, int64_t parallel,
                                 const char *isa) {
    const struct kernel_variant *variant = find_variant(isa);
    if (!variant || call->tokens < 1 || call->heads < 1 || call->dim < 1 || threads < 1) return KERNEL_BAD_CALL;
    const struct blocks_job job = {variant, NULL, call, 0};
    const int64_t padded = (call->tokens + LANES - 1) / LANES * LANES, width = (call->dim + 3) / 4 * 4;
    struct tasks tasks = {run_attention, &job, call->windows, padded * (8 * width + 2 * LANES + 3), threads, parallel,
                          call->windows * call->heads * call->tokens * call->tokens * call->dim, 0};
    return run_tasks(&tasks);
}
