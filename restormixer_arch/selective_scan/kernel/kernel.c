/* The selective scan of Mamba (arXiv 2312.00752) and its gradient on a processor: entry points, threads, dispatch.
 *
 * Knows nothing of Python or PyTorch. A call is one struct scan_call (kernel.h), in which every array is an address
 * with strides; inputs are only read, outputs are written whole, nothing is kept between calls, and there are no
 * globals. Each function returns an enum scan_status. kernel_tile.h does a tile of the work, kernel_scan.h holds the
 * arithmetic.
 *
 *   u, delta, z, y   (batch, part, step, channel)   any strides, float32 or bfloat16; states are float32
 *   B, C             (batch, part, step, state)     the same; or constant: dense float32 (part, channel, state)
 *   A                (part, channel, state)         dense float32, any sign
 *   D, bias          (part, channel)                dense float32
 *
 * Threads. The tiles (batch item x part x range of channels) are independent, so threads take the next tile from a
 * counter. Results depend on how the channels were cut into ranges (the sums of dB and dC over channels), which depends
 * on the number of threads alone: the same number of threads gives the same bits. PyTorch's own OpenMP threads are used
 * where the caller passes the address of their GOMP_parallel: they spin for milliseconds after each operator, and
 * a second set of threads would fight with them for the cores (two cores, 64 x 64 x 128 after a matrix product: 0.65 ms
 * on PyTorch's threads, 0.7 to 1.5 ms on others, 1.09 ms on one). Without that address (after fork, where an OpenMP
 * runtime must not be used, on Windows, or in plain C programs) threads are started for the call and joined, 20
 * microseconds each, if the call is long enough to gain from it. So fork needs no care here.
 */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <intrin.h>
#include <windows.h>
#define EXPORT __declspec(dllexport)
typedef volatile LONG64 counter;
static int64_t fetch_and_add(counter *c) { return InterlockedIncrement64(c) - 1; }
#else
#include <pthread.h>
#define EXPORT __attribute__((visibility("default")))
typedef int64_t counter;
static int64_t fetch_and_add(counter *c) { return __atomic_fetch_add(c, 1, __ATOMIC_RELAXED); }
#endif

#if defined(__x86_64__) || defined(_M_X64)
#if !defined(_MSC_VER)
#include <cpuid.h>
#endif
#include <immintrin.h>
#endif

#define ALIGNMENT 64
#define MAX_THREADS 256
#define WORTH_WAKING 100000   /* state updates, about 10 us, for which waking a thread pays */
#define WORTH_A_THREAD 400000 /* the same for starting one */

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

static int is_usable(const struct scan_variant *variant) {
#if defined(__x86_64__) || defined(_M_X64)
    if (variant == &scan_avx512) return has_avx512();
    if (variant == &scan_avx2) return has_avx2();
#endif
    return variant != NULL;
}

/* The best first. NULL ends the list. */
static const struct scan_variant *const *all_variants(void) {
    static const struct scan_variant *const variants[] = {
#if defined(__x86_64__) || defined(_M_X64)
        &scan_avx512,
        &scan_avx2,
#elif defined(__aarch64__) || defined(_M_ARM64)
        &scan_neon,
#endif
        &scan_plain,
        NULL,
    };
    return variants;
}

/* Numbers below 1e-38 cost a hundred times as much as others and mean nothing here: taken as 0 while a tile runs. */
static uint64_t flush_denormals(void) {
#if defined(__x86_64__) || defined(_M_X64)
    const uint64_t before = _mm_getcsr();
    _mm_setcsr((unsigned)before | 0x8040); /* flush to zero, denormals are zero */
    return before;
#elif defined(__aarch64__) && defined(__GNUC__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | 1u << 24));
    return before;
#else
    return 0;
#endif
}

static void restore_denormals(uint64_t before) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("msr fpcr, %0" ::"r"(before));
#else
    (void)before;
#endif
}

/* ------------------------------------------------------------------ threads */

struct job {
    const struct scan_call *call;
    void (*run)(const struct job *job, int64_t index, float *scratch);
    void (*tile)(const struct scan_call *call, struct tile tile, float *scratch);
    void (*merge)(const struct scan_call *call, int64_t ranges, int64_t index);
    int64_t tiles, ranges, scratch; /* scratch: floats that a thread needs */
    counter next;                   /* the next tile that nobody has taken */
};

static void work(void *argument) {
    struct job *job = argument;
    char *memory = malloc(sizeof(float) * (size_t)job->scratch + ALIGNMENT);
    if (!memory) return; /* the other threads take its tiles; run_job sees if nobody did */
    float *scratch = (float *)(memory + (ALIGNMENT - (uintptr_t)memory % ALIGNMENT));
    const uint64_t before = flush_denormals();
    for (int64_t i = fetch_and_add(&job->next); i < job->tiles; i = fetch_and_add(&job->next))
        job->run(job, i, scratch);
    restore_denormals(before);
    free(memory);
}

#if defined(_WIN32)
typedef HANDLE thread;
static DWORD WINAPI enter_thread(LPVOID job) {
    work(job);
    return 0;
}
static int start_thread(thread *t, struct job *job) {
    return (*t = CreateThread(NULL, 0, enter_thread, job, 0, NULL)) != NULL;
}
static void join_thread(thread t) {
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}
#else
typedef pthread_t thread;
static void *enter_thread(void *job) {
    work(job);
    return NULL;
}
static int start_thread(thread *t, struct job *job) { return pthread_create(t, NULL, enter_thread, job) == 0; }
static void join_thread(thread t) { pthread_join(t, NULL); }
#endif

/* Runs all tiles; a thread that cannot be started leaves its share to the others. */
static int run_job(struct job *job) {
    const struct scan_call *call = job->call;
    const int64_t updates = call->batch * call->parts * call->height * call->width * call->channels * call->states;
    int64_t threads = call->threads < job->tiles ? call->threads : job->tiles;
    if (updates < WORTH_WAKING) threads = 1;
    if (threads > 1 && call->parallel) {
        void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
        memcpy(&parallel, &call->parallel, sizeof parallel);
        /* All threads and not just as many as tiles: the runtime would end the others and start them again later. */
        parallel(work, job, (unsigned)call->threads, 0);
    } else {
        thread started[MAX_THREADS];
        int count = 0;
        if (threads > updates / WORTH_A_THREAD + 1) threads = updates / WORTH_A_THREAD + 1;
        if (threads > MAX_THREADS) threads = MAX_THREADS;
        while (count < threads - 1 && start_thread(&started[count], job)) count++;
        work(job);
        while (count > 0) join_thread(started[--count]);
    }
    return job->next < job->tiles ? SCAN_NO_MEMORY : SCAN_OK;
}

static int64_t blocks_of(const struct scan_call *call) { return (call->channels + LANES - 1) / LANES; }

static void run_tile(const struct job *job, int64_t index, float *scratch) {
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

static struct job make_job(const struct scan_call *call, const struct scan_variant *variant, int backward) {
    struct job job = {.call = call, .run = run_tile, .merge = variant->merge};
    job.tile = backward ? variant->backward : variant->forward;
    const int64_t outer = call->batch * (call->summed ? 1 : call->parts);
    job.ranges = choose_ranges(call, outer);
    job.tiles = outer * job.ranges;
    const int64_t range = (blocks_of(call) + job.ranges - 1) / job.ranges, table = call->states * LANES;
    job.scratch = range * (4 * table + 2 * LANES + 5 * CHUNK * LANES) + 2 * call->states * CHUNK;
    if (backward)
        job.scratch +=
            range * (4 * table + 2 * LANES + 3 * CHUNK * LANES) + 2 * call->states * CHUNK + (2 * CHUNK + 1) * table;
    return job;
}

static void run_merge(const struct job *job, int64_t index, float *scratch) {
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
    const struct scan_variant *const *variant = all_variants();
    while (*variant && strcmp((*variant)->name, isa) != 0) variant++;
    if (!*variant || count != (int64_t)(sizeof call / sizeof(int64_t))) return SCAN_BAD_CALL;
    memcpy(&call, fields, sizeof call);
    if (!is_sound(&call)) return SCAN_BAD_CALL;
    struct job job = make_job(&call, *variant, backward);
    const int64_t rows = call.batch * call.parts * call.height * call.width;
    float *partial = NULL;
    if (backward && job.ranges > 1 && rows > 0) {
        partial = malloc(sizeof(float) * 2 * (size_t)(job.ranges * rows * call.states));
        if (!partial) return SCAN_NO_MEMORY;
        call.partial = (int64_t)(uintptr_t)partial;
    }
    int status = run_job(&job);
    if (status == SCAN_OK && partial) {
        struct job merge = job;
        merge.run = run_merge;
        merge.next = 0;
        merge.tiles = (call.batch * call.parts) * ((call.height * call.width + CHUNK - 1) / CHUNK);
        merge.scratch = 0;
        status = run_job(&merge);
    }
    free(partial);
    return status;
}

/* Changes with the meaning of struct scan_call. */
EXPORT int64_t restormixer_scan_abi(void) { return KERNEL_ABI; }

/* The instruction set called `name`, or the best for ""; NULL where this processor lacks it. */
EXPORT const char *restormixer_scan_isa(const char *name) {
    for (const struct scan_variant *const *variant = all_variants(); *variant; variant++)
        if ((!name[0] || strcmp(name, (*variant)->name) == 0) && is_usable(*variant)) return (*variant)->name;
    return NULL;
}

/* Fills y and, where asked for, last_state and saved_states. `count` fields make up a struct scan_call; `isa` is a name
 * that restormixer_scan_isa returned: it is not checked again, since in a virtual machine that takes microseconds. */
EXPORT int restormixer_scan_forward(const int64_t *fields, int64_t count, const char *isa) {
    return run(fields, count, isa, 0);
}

/* Fills all gradients from saved_states and grad_y. */
EXPORT int restormixer_scan_backward(const int64_t *fields, int64_t count, const char *isa) {
    return run(fields, count, isa, 1);
}
