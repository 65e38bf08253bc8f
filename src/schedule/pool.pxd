cdef extern from "schedule/pool.h" nogil:
    ctypedef void (*pool_item)(const void* call, long item, int thread) noexcept nogil
    void pool_run(pool_item run, const void* call, long items, int threads, bint brief)
    const bint POOL_EXISTS
    const int POOL_MOST         # threads
    const char* POOL_SYSTEM     # how its threads sleep
    int thread_limit            # of the calls made from this thread
    int wanted_threads          # of any call: see set_num_threads
    int relaxed_load(int word)
    void relaxed_store(int word, int value)
