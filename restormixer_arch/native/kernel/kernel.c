/* The selective scan of Mamba (arXiv 2312.00752) and its gradient on a processor: entry points, threads, dispatch.
 *
 * Knows nothing of Python or PyTorch. A call is one struct scan_call (kernel.h), in which every array is an address
 * with strides; inputs are only read, outputs are written whole, nothing is kept between calls, and there are no
 * globals. Each function returns an enum kernel_status. kernel_tile.h does a tile of the work, kernel_scan.h holds the
 * arithmetic.
 *
 *   u, delta, z, y   (batch, part, step, channel)   any strides, float32 or bfloat16; states are float32
 *   B, C             (batch, part, step, state)     the same; or constant: dense float32 (part, channel, state)
 *   A                (part, channel, state)         dense float32, any sign
 *   D, bias          (part, channel)                dense float32
 *
 * Threads. The tiles (batch item x part x range of channels) are independent tasks, see kernel_threads.h. Results
 * depend on how the channels were cut into ranges (the sums of dB and dC over channels), which depends on the number of
 * threads alone: the same number of threads gives the same bits.
 */
#include "kernel_threads.h"

#if defined(__x86_64__) || defined(_M_X64)
#if !defined(_MSC_VER)
#include <cpuid.h>
#endif
#endif

/* ------------------------------------------------------------------ the processor */

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
static void ask_processor(unsigned leaf, unsigned answer[4]) { __cpuidex((int *)answer, (int)leaf, 0); }
static unsigned saved_registers(void) { return (unsigned)_xgetbv(0); }
#else
static void ask_processor(unsigned leaf, unsigned answer[4]) {
    __cpuid_count(leaf, 0, answer[0], answer[1], answer[2], answer[3]);
}
static unsigned saved_registers(void) { /* those that the operating system keeps when it switches threads */
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
#endif

static int has_avx2(void) {
    unsigned answer[4];
    ask_processor(0, answer);
    if (answer[0] < 7) return 0;
    ask_processor(1, answer);
    const unsigned wanted = 1u << 12 | 1u << 27; /* FMA, xgetbv */
    if ((answer[2] & wanted) != wanted || (saved_registers() & 6) != 6) return 0;
    ask_processor(7, answer);
    return answer[1] >> 5 & 1;
}

static int has_avx512(void) {
    unsigned answer[4];
    const unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if (!has_avx2() || (saved_registers() & 0xe6) != 0xe6) return 0;
    ask_processor(7, answer);
    return (answer[1] & wanted) == wanted;
}
#endif

static int is_usable(const struct kernel_variant *variant) {
#if defined(__x86_64__) || defined(_M_X64)
    if (variant == &kernel_avx512) return has_avx512();
    if (variant == &kernel_avx2) return has_avx2();
#endif
    return variant != NULL;
}

/* The best first. NULL ends the list. */
static const struct kernel_variant *const *all_variants(void) {
    static const struct kernel_variant *const variants[] = {
#if defined(__x86_64__) || defined(_M_X64)
        &kernel_avx512,
        &kernel_avx2,
#elif defined(__aarch64__) || defined(_M_ARM64)
        &kernel_neon,
#endif
        &kernel_plain,
        NULL,
    };
    return variants;
}

/* The variant of that name; NULL if there is none. */
const struct kernel_variant *find_variant(const char *isa) {
    const struct kernel_variant *const *variant = all_variants();
    while (*variant && strcmp((*variant)->name, isa) != 0) variant++;
    return *variant;
}

/* ------------------------------------------------------------------ the tiles of a scan */

struct job {
    const struct scan_call *call;
    void (*tile)(const struct scan_call *call, struct tile tile, float *scratch);
    void (*merge)(const struct scan_call *call, int64_t ranges, int64_t index);
    int64_t ranges;
};

static int64_t blocks_of(const struct scan_call *call) { return (call->channels + LANES - 1) / LANES; }

static void run_tile(const void *context, int64_t index, float *scratch) {
    const struct job *job = context;
    const struct scan_call *call = job->call;
    const int64_t blocks = blocks_of(call);
    struct tile tile;
    tile.range = index % job->ranges;
    tile.first_block = tile.range * blocks / job->ranges;
    tile.end_block = (tile.range + 1) * blocks / job->ranges;
    index /= job->ranges;
    tile.first_part = call->summed ? 0 : index % call->parts;
    tile.end_part = call->summed ? call->parts : tile.first_part + 1;
    tile.batch = call->summed ? index : index / call->parts;
    job->tile(call, tile, scratch);
}

/* The fewest ranges of channel blocks for which the busiest thread has the least to do. */
static int64_t choose_ranges(const struct scan_call *call, int64_t tiles) {
    const int64_t blocks = blocks_of(call), threads = call->threads;
    int64_t best = 1, best_load = INT64_MAX;
    for (int64_t ranges = 1; ranges <= blocks && ranges <= threads * 2; ranges++) {
        const int64_t load = (tiles * ranges + threads - 1) / threads * ((blocks + ranges - 1) / ranges);
        if (load < best_load) best = ranges, best_load = load;
    }
    return best;
}

static int64_t scratch_of(const struct scan_call *call, int64_t ranges, int backward) {
    const int64_t range = (blocks_of(call) + ranges - 1) / ranges, table = call->states * LANES;
    const int64_t forward = range * (4 * table + 2 * LANES + 5 * CHUNK * LANES) + 2 * call->states * CHUNK;
    if (!backward) return forward;
    return forward + range * (4 * table + 2 * LANES + 3 * CHUNK * LANES) + 2 * call->states * CHUNK +
           (2 * CHUNK + 1) * table;
}

static void run_merge(const void *context, int64_t index, float *scratch) {
    const struct job *job = context;
    (void)scratch;
    job->merge(job->call, job->ranges, index);
}

/* ------------------------------------------------------------------ what the caller sees */

static int is_sound(const struct scan_call *call) {
    return call->states >= 1 && call->states <= MAX_STATES && call->threads >= 1 && call->batch >= 0 &&
           call->parts >= 1 && call->channels >= 1 && call->height >= 0 && call->width >= 0 &&
           (!call->summed || call->parts <= MAX_DIRECTIONS);
}

static int run(const int64_t *fields, int64_t count, const char *isa, int backward) {
    struct scan_call call;
    const struct kernel_variant *variant = find_variant(isa);
    if (!variant || count != (int64_t)(sizeof call / sizeof(int64_t))) return KERNEL_BAD_CALL;
    memcpy(&call, fields, sizeof call);
    if (!is_sound(&call)) return KERNEL_BAD_CALL;
    const int64_t outer = call.batch * (call.summed ? 1 : call.parts), ranges = choose_ranges(&call, outer);
    const int64_t rows = call.batch * call.parts * call.height * call.width;
    const struct job job = {&call, backward ? variant->backward : variant->forward, variant->merge, ranges};
    struct tasks tasks = {run_tile, &job, outer * ranges, scratch_of(&call, ranges, backward), call.threads,
                          call.parallel, rows * call.channels * call.states, 0};
    float *partial = NULL;
    if (backward && ranges > 1 && rows > 0) {
        partial = malloc(sizeof(float) * 2 * (size_t)(ranges * rows * call.states));
        if (!partial) return KERNEL_NO_MEMORY;
        call.partial = (int64_t)(uintptr_t)partial;
    }
    int status = run_tasks(&tasks);
    if (status == KERNEL_OK && partial) {
        tasks.run = run_merge;
        tasks.next = 0;
        tasks.count = (call.batch * call.parts) * ((call.height * call.width + CHUNK - 1) / CHUNK);
        tasks.scratch = 0;
        status = run_tasks(&tasks);
    }
    free(partial);
    return status;
}

/* Changes with the meaning of struct scan_call. */
EXPORT int64_t restormixer_abi(void) { return KERNEL_ABI; }

/* The instruction set called `name`, or the best for ""; NULL where this processor lacks it. */
EXPORT const char *restormixer_isa(const char *name) {
    for (const struct kernel_variant *const *variant = all_variants(); *variant; variant++)
        if ((!name[0] || strcmp(name, (*variant)->name) == 0) && is_usable(*variant)) return (*variant)->name;
    return NULL;
}

/* Fills y and, where asked for, last_state and saved_states. `count` fields make up a struct scan_call; `isa` is a name
 * that restormixer_isa returned: it is not checked again, since in a virtual machine that takes microseconds. */
EXPORT int restormixer_scan_forward(const int64_t *fields, int64_t count, const char *isa) {
    return run(fields, count, isa, 0);
}

/* Fills all gradients from saved_states and grad_y. */
EXPORT int restormixer_scan_backward(const int64_t *fields, int64_t count, const char *isa) {
    return run(fields, count, isa, 1);
}
