/* The door's threads: workers that share the items of one call, then wait for the next. Figures are
 * of an Intel Xeon with AVX-512, 2 CPUs.
 *
 * OpenMP's parallel region ends when every thread of the team has been there, those too that have
 * yet to wake, and its threads then spin for some 5 ms on a CPU that the caller's next library
 * wants. Here whoever is awake takes the next item, a call waits for items that were begun and for
 * nothing else, and a worker soon sleeps. A norm of 512 x 4096 and a matmul of 512 x 512 (OpenBLAS)
 * in turn: 0.61 and 1.0 ms with one thread for the norm, 3.6 and 4.4 ms with libgomp's two, 0.38 and
 * 1.0 ms with two of these (bench/beside.py). tests/pool_model.py is the protocol, every order of its
 * steps tried.
 */
#ifndef FASTRMS_POOL_H
#define FASTRMS_POOL_H

/* Item number `item` of a call, from any thread. */
typedef void (*pool_item)(const void *call, long item);

#define POOL_MOST 1024  /* threads */

#include "system.h"
#if POOL_EXISTS
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* How often a worker looks for another call before it sleeps, for some 20 us. Calls in a row find
 * it awake; to wake it costs a call 25 to 40 us. (A matmul of 0.14 ms in between took 0.01 ms longer
 * so, and 0.1 ms with five times as many looks. With sched_yield between looks the worker fell
 * behind a thread of OpenBLAS that yields too, and had no item of any call.)
 */
#define POOL_LOOKS 2000
/* Calls are in a row when each begins less than these ns after the last one's end. After so many of
 * them the next is taken to be as near. */
#define POOL_GAP 20000
#define POOL_ROW 8

/* The gate is OPEN while a call has items that nobody began. It holds the call's threads, SEAT for
 * each, how many workers are INSIDE: joined, and not left yet, and whether the caller is ASLEEP
 * until the last of them leaves. */
#define POOL_OPEN 0x80000000u
#define POOL_ASLEEP 0x40000000u
#define POOL_SEAT 0x1000u
#define POOL_INSIDE (POOL_SEAT - 1)

static struct {
    uint32_t gate;
    uint32_t busy;  /* one call has the workers; another thread's does without them */
    int workers;
    int cpu;        /* of the caller, when it last woke someone */
    pool_item run;
    const void *call;
    int threads;
    int row;        /* how many calls came in a row */
    int64_t end;    /* of the last call, in ns */
    /* Each thread begins with its own items, whose rows its cache may hold from the call before,
     * and goes on with those of others. Number 0 is the caller. */
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
            if (item < last) pool.run(pool.call, item);
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
    if ((gate & POOL_ASLEEP) && !(gate & POOL_INSIDE)) wake(0, &pool.gate);
    return 1;
}

static void pool_worker(int own) {
    uint32_t *asleep = &pool.thread[own].asleep;
    int took_part = 0;  /* in a call that is going on, as far as this worker can tell */
    for (;;) {
        for (int look = 0; look < POOL_LOOKS; look++) {
            took_part = pool_join(own)
                || (took_part && __atomic_load_n(&pool.busy, __ATOMIC_RELAXED)
                    && pool_wants(__atomic_load_n(&pool.gate, __ATOMIC_RELAXED), own));
            if (took_part) look = 0;
            pool_pause();
        }
        __atomic_store_n(asleep, 1, __ATOMIC_SEQ_CST);
        if (!pool_join(own)) {  /* a call that opened before `asleep` was set woke nobody */
            while (__atomic_load_n(asleep, __ATOMIC_ACQUIRE)) sleep_on(own, asleep, 1);
            leave_cpu(__atomic_load_n(&pool.cpu, __ATOMIC_RELAXED));
        }
        __atomic_store_n(asleep, 0, __ATOMIC_RELAXED);
    }
}

/* Wake those of the wanted workers that sleep. */
static void pool_wake(int threads) {
    int woken = 0;
    __atomic_store_n(&pool.cpu, this_cpu(), __ATOMIC_RELAXED);
    for (int t = 1; t < threads; t++) {
        uint32_t *asleep = &pool.thread[t].asleep;
        if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST)
            && __atomic_exchange_n(asleep, 0, __ATOMIC_SEQ_CST))
            woken += wake(t, asleep);
    }
    if (woken) yield_cpu();  /* to a worker that leaves this CPU */
}

/* As many workers as asked for, or as the system gives. */
static void pool_grow(int workers) {
    while (pool.workers < workers && start_thread(pool.workers + 1)) pool.workers++;
}

/* Until every worker has left. One whose CPU was taken away in the midst of an item may need this
 * one: it is yielded, and then given up, since one of real-time priority yields to no other. */
static void pool_wait(void) {
    uint32_t gate;
    for (int look = 1; look < POOL_LOOKS; look++) {
        if (!(__atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE) & POOL_INSIDE)) return;
        if (look % 16) pool_pause(); else yield_cpu();
    }
    gate = __atomic_or_fetch(&pool.gate, POOL_ASLEEP, __ATOMIC_ACQUIRE);
    while (gate & POOL_INSIDE) {
        sleep_on(0, &pool.gate, gate);
        gate = __atomic_load_n(&pool.gate, __ATOMIC_ACQUIRE);
    }
}

/* All items of a call, on so many threads, its own among them. A brief call is over before a
 * sleeping worker would be there: it wakes none, unless it comes in a row of calls. */
static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    if (__atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE)) {
        for (long item = 0; item < items; item++) run(call, item);
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
    pool.row = clock_ns() - pool.end < POOL_GAP ? pool.row + 1 : 0;
    if (!brief || pool.row >= POOL_ROW) pool_wake(threads);
    pool_work(0);
    pool_wait();
    pool.end = clock_ns();
    __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE);
}

#else
static void pool_run(pool_item run, const void *call, long items, int threads, int brief) {
    (void)threads, (void)brief;
    for (long item = 0; item < items; item++) run(call, item);
}
#endif

#endif
