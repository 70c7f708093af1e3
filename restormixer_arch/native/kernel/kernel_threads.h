/* Runs tasks on PyTorch's threads or on threads of its own.
 *
 * Threads take the next task from a counter. PyTorch's own OpenMP threads are used where the caller passes the address
 * of their GOMP_parallel: they spin for milliseconds after each operator, and a second set of threads would fight with
 * them for the cores (two cores, a scan of 64 x 64 x 128 after a matrix product: 0.65 ms on PyTorch's threads, 0.7 to
 * 1.5 ms on others, 1.09 ms on one). Without that address (after fork, where an OpenMP runtime must not be used, on
 * Windows, or in plain C programs) threads are started for the call and joined, 20 microseconds each, if the call is
 * long enough to gain from it. So fork needs no care here.
 */
#ifndef RESTORMIXER_KERNEL_THREADS_H
#define RESTORMIXER_KERNEL_THREADS_H

#include <stdint.h>
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
#include <immintrin.h>
#endif

#define ALIGNMENT 64
#define MAX_THREADS 256
#define WORTH_WAKING 100000   /* updates, about 10 us, for which waking a thread pays */
#define WORTH_A_THREAD 400000 /* the same for starting one */

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

struct tasks {
    void (*run)(const void *context, int64_t index, float *scratch);
    const void *context;
    int64_t count, scratch;    /* scratch: floats that a thread needs */
    int64_t threads, parallel; /* the most threads; the address of GOMP_parallel, or 0 */
    int64_t updates;           /* the work of all tasks, in updates of a scan's state, about 0.1 ns each */
    counter next;              /* the next task that nobody has taken */
};

static void work(void *argument) {
    struct tasks *tasks = argument;
    char *memory = malloc(sizeof(float) * (size_t)tasks->scratch + ALIGNMENT);
    if (!memory) return; /* the other threads take its tasks; run_tasks sees if nobody did */
    float *scratch = (float *)(memory + (ALIGNMENT - (uintptr_t)memory % ALIGNMENT));
    const uint64_t before = flush_denormals();
    for (int64_t i = fetch_and_add(&tasks->next); i < tasks->count; i = fetch_and_add(&tasks->next))
        tasks->run(tasks->context, i, scratch);
    restore_denormals(before);
    free(memory);
}

#if defined(_WIN32)
typedef HANDLE thread;
static DWORD WINAPI enter_thread(LPVOID tasks) {
    work(tasks);
    return 0;
}
static int start_thread(thread *t, struct tasks *tasks) {
    return (*t = CreateThread(NULL, 0, enter_thread, tasks, 0, NULL)) != NULL;
}
static void join_thread(thread t) {
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
}
#else
typedef pthread_t thread;
static void *enter_thread(void *tasks) {
    work(tasks);
    return NULL;
}
static int start_thread(thread *t, struct tasks *tasks) { return pthread_create(t, NULL, enter_thread, tasks) == 0; }
static void join_thread(thread t) { pthread_join(t, NULL); }
#endif

/* Runs all tasks; a thread that cannot be started leaves its share to the others. */
static int run_tasks(struct tasks *tasks) {
    int64_t threads = tasks->threads < tasks->count ? tasks->threads : tasks->count;
    if (tasks->updates < WORTH_WAKING) threads = 1;
    if (threads > 1 && tasks->parallel) {
        void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
        memcpy(&parallel, &tasks->parallel, sizeof parallel);
        /* All threads and not just as many as tasks: the runtime would end the others and start them again later. */
        parallel(work, tasks, (unsigned)tasks->threads, 0);
    } else {
        thread started[MAX_THREADS];
        int count = 0;
        if (threads > tasks->updates / WORTH_A_THREAD + 1) threads = tasks->updates / WORTH_A_THREAD + 1;
        if (threads > MAX_THREADS) threads = MAX_THREADS;
        while (count < threads - 1 && start_thread(&started[count], tasks)) count++;
        work(tasks);
        while (count > 0) join_thread(started[--count]);
    }
    return tasks->next < tasks->count ? KERNEL_NO_MEMORY : KERNEL_OK;
}

#endif
