# The door's knowledge of this machine's caches: what a job's working set is to be. Read once, at
# import; no bit depends on it.

cdef extern from "machine.h":
    long cache_size(int level)
    bint cpu_is_intel()

cdef Py_ssize_t L1 = cache_size(1)
# A server's last-level cache is shared with others: a core is taken to have 64 MiB at most.
cdef Py_ssize_t LAST_LEVEL = min(<Py_ssize_t>cache_size(3), <Py_ssize_t>64 << 20)
cdef Py_ssize_t LEAST_STREAMED = 512    # floats in a row
# Lines of an output are asked for before they are written: on Intel's Sapphire Rapids that takes
# 0.7 of the time in L2 (backward, 16 x 4096), on AMD's Zen 4 1.06.
cdef bint FETCHES_OUTPUT = cpu_is_intel()


cdef inline Py_ssize_t whole_lines(Py_ssize_t n) noexcept nogil:
    """n, and the rest of the last cache line of floats."""
    return (n + 15) // 16 * 16


cdef inline void suit_caches(Job* job, Py_ssize_t rows, int arrays, bint in_place) noexcept nogil:
    """How a job that reads and writes so many arrays is to use the caches.

    An output is streamed past the cache when all of it is too much to be found there again; not in
    place, and not short rows: the lines at their ends are shared, and those cannot be streamed
    (0.93 of the floor streamed at 65536 x 128, add + norm, and 1.05 not).
    """
    job.stream = (not in_place and job.n >= LEAST_STREAMED
                  and arrays * rows * job.n * <Py_ssize_t>sizeof(float) > LAST_LEVEL)
    job.fetch = FETCHES_OUTPUT
    job.pass_rows = 8
    while job.pass_rows > 1 and 2 * sizeof(float) * job.pass_rows * job.n > L1:
        job.pass_rows = job.pass_rows // 2
    job.ahead = max(job.pass_rows, 1 + 1024 // max(1, job.n))
