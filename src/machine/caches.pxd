from libc.stdint cimport int64_t

cdef extern from "machine/caches.h" nogil:
    void prefetch(const float* address)
    void prefetch_write(const float* address)
    long floats_to_line(const float* address)
    int64_t cache_size(int level)
