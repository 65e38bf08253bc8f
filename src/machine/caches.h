/* Cache lines and caches: prefetch, alignment, sizes. */
#pragma once

#include <stdint.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif !defined(_WIN32)
#include <unistd.h>
#endif

/* Prefetch the cache line of an address, to read it. */
static inline void prefetch(const float *address) {
#ifdef __GNUC__
    __builtin_prefetch(address);
#endif
}

/* Prefetch the cache line of an address, to write it. */
static inline void prefetch_write(const float *address) {
#ifdef __GNUC__
    __builtin_prefetch(address, 1);
#endif
}

/* Return how many floats lie between `address` and the next cache line; 0 on a line. */
static inline long floats_to_line(const float *address) {
    return (long)((64 - ((uintptr_t)address & 63)) & 63) / 4;
}

/* Return the bytes of level 1 (of data) or 3, or a usual number if the system gives none. */
static inline int64_t cache_size(int level) {
    int64_t size = 0;
#if defined(__APPLE__)
    size_t bytes = sizeof size;
    sysctlbyname(level == 1 ? "hw.l1dcachesize" : "hw.l3cachesize", &size, &bytes, NULL, 0);
#elif defined(_SC_LEVEL1_DCACHE_SIZE)
    size = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : level == 1 ? 32 << 10 : 32 << 20;
}
