/* The thread pool: workers that share the items of one call, then wait for the next. Figures are of
 * an Intel Xeon with AVX-512, 2 CPUs.
 *
 * OpenMP's parallel region ends only when every thread of the team has arrived, even one that has yet
 * to wake, and its threads then spin for some 5 ms on a CPU that the caller's next library needs.
 * Here any awake thread takes the next item, a call waits only for items that have begun, and an idle
 * worker soon sleeps. A norm of 512 x 4096 beside a matmul of 512 x 512 (OpenBLAS), in turn: 0.38 ms
 * with two of these threads, 0.61 with one, 3.6 with libgomp's two (bench/beside.py).
 * tests/pool_model.py explores every order of the protocol's steps.
 */
#pragma once

/* Compute item number `item` of a call, on the call's thread number `thread`: any of its threads. */
typedef void (*pool_item)(const void *call, long item, int thread);

#define POOL_MOST 1024  /* threads */

/* The pool needs GCC's atomics and a way to sleep; the gate `plain` builds without it. Each system
 * supplies, with POOL_SYSTEM, the name of the way:
 *     sleep_on      Sleep unless *word != value (checked atomically). Spurious wake-ups are possible.
 *     wake          Wake the thread that sleeps on `word`, which changed before; return whether the
 *                   system says that one did.
 *     start_thread  Call begin(number) on a new thread; return whether there is one. begin is of type
 *                   thread_result THREAD_CALL (*)(void *).
 *     yield_cpu, clock_ns, this_cpu (-1: unknown), leave_cpu
 */
#if (defined(__GNUC__) || defined(__clang__)) && !defined(POOL_EXISTS)
#define POOL_EXISTS 1
#ifdef __linux__
#include "pool_linux.h"
#else  /* no thread is moved off a CPU */
static inline int this_cpu(void) { return -1; }
static inline void leave_cpu(int cpu) { (void)cpu; }
#endif
#ifdef _WIN32
#include "pool_windows.h"
#else
#include "pool_posix.h"
#endif
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* How often an idle worker polls for another call before it sleeps, some 20 us. A call that follows
 * soon finds it awake; waking it takes 25 to 40 us. Five times as many polls made a matmul of 0.14 ms
 * between the calls take 0.1 ms longer; with sched_yield between polls, the worker starved. */
#define POOL_POLLS 2000
/* A call follows another if it begins less than POOL_GAP ns after that one's end. After POOL_STREAK
 * such calls, the next one is expected to follow too. */
#define POOL_GAP 20000
#define POOL_STREAK 8

/* The gate is OPEN while the call has items that no thread has begun. It counts the call's threads,
 * in units of SEAT, and the workers INSIDE, which have joined and not left; ASLEEP is set while the
 * caller sleeps until the last of them leaves. */
#define POOL_OPEN 0x80000000u
#define POOL_ASLEEP 0x40000000u
#define POOL_SEAT 0x1000u
#define POOL_INSIDE (POOL_SEAT - 1)

static struct {
    uint32_t gate;
    uint32_t busy;  /* a call has the workers; a second thread's call runs without them */
    int workers;
    int cpu;        /* the caller's, when it last woke a worker */
    pool_item run;
    const void *call;
    int threads;
    int streak;     /* calls that each followed the one before */
    int64_t end;    /* of the last call, in ns */
    /* Each thread begins with its own items, whose rows its cache may hold from the call before,
     * then takes items from others. Number 0 is the caller. */
    struct {
        long next, last;
        uint32_t asleep;
        char line[64 - 2 * sizeof(long) - sizeof(uint32_t)];
    } thread[POOL_MOST];
} pool;

static inline void pool_pause(void) {
#ifdef __SSE2__
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pool_work(int own) {
    for (int k = 0; k < pool.threads; k++) {
        const int t = (own + k) % pool.threads;
        const long last = pool.thread[t].last;
        while (__atomic_load_n(&pool.thread[t].next, __ATOMIC_RELAXED) < last) {
            const long item = __atomic_fetch_add(&pool.thread[t].next, 1, __ATOMIC_RELAXED);
            if (item < last) pool.run(pool.call, item, own);
        }
    }
    __atomic_fetch_and(&pool.gate, ~POOL_OPEN, __ATOMIC_RELAXED);
}

static inline int pool_wants(uint32_t gate, int own) {
    return (uint32_t)own < (gate & ~(POOL_OPEN | POOL_ASLEEP)) / POOL_SEAT;
}

/* Join the call that is open, if it wants this worker, and work on it. */
static int pool_join(int own) {
    uint32_t gate = __atomic_load_n(&pool.gate, __ATOMIC_SEQ_CST);
    do {
        if (!(gate & POOL_OPEN) || !pool_wants(gate, own)) return 0;
    } while (!__atomic_compare_exchange_n(&pool.gate, &gate, gate + 1, 0, __ATOMIC_ACQUIRE,
                                          __ATOMIC_RELAXED));
    pool_work(own);
    gate = __atomic_sub_fetch(&pool.gate, 1, __ATOMIC_RELEASE);
    if ((gate & POOL_ASLEEP) && !(gate & POOL_INSIDE)) wake(&pool.gate);
    return 1;
}

static void pool_worker(int own) {
    uint32_t *asleep = &pool.thread[own].asleep;
    int took_part = 0;  /* has joined the current call */
    for (;;) {
        for (int poll = 0; poll < POOL_POLLS; poll++) {
            took_part = pool_join(own)
                || (took_part && __atomic_load_n(&pool.busy, __ATOMIC_RELAXED)
                    && pool_wants(__atomic_load_n(&pool.gate, __ATOMIC_RELAXED), own));
            if (took_part) poll = 0;
            pool_pause();
        }
        __atomic_store_n(asleep, 1, __ATOMIC_SEQ_CST);
        if (!pool_join(own)) {  /* a call that opened before `asleep` was set woke no one */
            while (__atomic_load_n(asleep, __ATOMIC_ACQUIRE)) sleep_on(asleep, 1);
            leave_cpu(__atomic_load_n(&pool.cpu, __ATOMIC_RELAXED));
        }
        __atomic_store_n(asleep, 0, __ATOMIC_RELAXED);
    }
}

/* Wake the sleeping workers that the call wants. */
static void pool_wake(int threads) {
    int woken = 0;
    __atomic_store_n(&pool.cpu, this_cpu(), __ATOMIC_RELAXED);
    for (int t = 1; t < threads; t++) {
        uint32_t *asleep = &pool.thread[t].asleep;
        if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST)
            && __atomic_exchange_n(asleep, 0, __ATOMIC_SEQ_CST))
            woken += wake(asleep);
    }
    if (woken) yield_cpu();  /* to a worker on this CPU, which then leaves it */
}

static thread_result THREAD_CALL pool_thread(void *number) {
    pool_worker((int)(intptr_t)number);
    return 0;
}

/* Start workers up to this number, or as many as the system allows. */
static void pool_grow(int workers) {
    while (pool.workers < workers && start_thread(pool.workers + 1, pool_thread)) pool.workers++;
}

/* Wait until every worker has left: spin, yield, then sleep. A preempted worker may need this CPU, and
 * yielding is not enough under real-time priority. */
static void pool_wait(void) {
    uint32_t gate;
    for (int poll = 1; poll < POOL_POLLS; poll++) {
        if (!(__atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE) & POOL_INSIDE)) return;
        if (poll % 16) pool_pause(); else yield_cpu();
    }
    gate = __atomic_or_fetch(&pool.gate, POOL_ASLEEP, __ATOMIC_ACQUIRE);
    while (gate & POOL_INSIDE) {
        sleep_on(&pool.gate, gate);
        gate = __atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE);
    }
}

/* Run all items of a call on `threads` threads, the caller's included. A brief call ends before a
 * sleeping worker could join it, so it wakes none, except in a streak of calls. */
static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) {
        for (long item = 0; item < items; item++) run(call, item, 0);
        return;
    }
    pool_grow(threads - 1);
    pool.run = run;
    pool.call = call;
    pool.threads = threads;
    for (int t = 0; t < threads; t++) {
        pool.thread[t].next = items * t / threads;
        pool.thread[t].last = items * (t + 1) / threads;
    }
    __atomic_store_n(&pool.gate, POOL_OPEN | POOL_SEAT * (uint32_t)threads, __ATOMIC_SEQ_CST);
    pool.streak = clock_ns() - pool.end < POOL_GAP ? pool.streak + 1 : 0;
    if (!brief || pool.streak >= POOL_STREAK) pool_wake(threads);
    pool_work(0);
    pool_wait();
    pool.end = clock_ns();
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
}

/* For a word that any thread may set while others read it, and that guards no other memory. */
#define relaxed_load(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define relaxed_store(word, value) __atomic_store_n(&(word), value, __ATOMIC_RELAXED)

#else
#undef POOL_EXISTS
#define POOL_EXISTS 0
#define POOL_SYSTEM ""
#define relaxed_load(word) (word)
#define relaxed_store(word, value) ((word) = (value))

static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    (void)threads, (void)brief;
    for (long item = 0; item < items; item++) run(call, item, 0);
}
#endif

/* How many threads a call may use. Thread-local memory is static: otherwise each thread allocates it
 * at its first call, the extension needs ld.so too, and musl loads no such extension. */
#ifdef __GLIBC__
__attribute__((tls_model("initial-exec")))
#endif
static _Thread_local int thread_limit = POOL_MOST;

static int wanted_threads = 1;
/* threadpoolctl finds the library by this symbol. */
Py_EXPORTED_SYMBOL int fastrms_num_threads(void) { return relaxed_load(wanted_threads); }
