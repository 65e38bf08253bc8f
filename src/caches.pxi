# The door's knowledge of this machine's caches: what a job's working set is to be. Read once, at
# import; no bit depends on it.

cdef extern from "machine.h":
    int64_t cache_size(int level)

cdef extern from "cpu.h":
    bint cpu_is_intel()

cdef Py_ssize_t L1 = cache_size(1)
cdef Py_ssize_t L2 = cache_size(2)
# Whether a software fetch of what comes next pays: of an output's lines before they are written,
# 0.7 of the time on Intel's Sapphire Rapids, 1.06 on AMD's Zen 4 (backward, 16 x 4096, in L2); of
# the rows of x while an output is streamed, 0.75 on Sapphire Rapids, 1.2 to 1.6 on Zen 4
# (4096 x 4096).
cdef bint FETCHES = cpu_is_intel()
# A call that reads and writes this many bytes streams its output past the caches. On Zen 4 that
# pays from half of the 32 MiB on that 8 cores share (512 x 4096: forward 0.75 of the time, backward
# 0.7); on Sapphire Rapids where the last level is full, of which a core is taken to have 64 MiB.
cdef Py_ssize_t STREAM_BYTES = min(<Py_ssize_t>cache_size(3),
                                   <Py_ssize_t>64 << 20 if FETCHES else <Py_ssize_t>16 << 20)


def set_caches(l1, l2, stream_bytes, fetches):
    """Take the caches to be others, for tests and measurements; return what they were."""
    global L1, L2, STREAM_BYTES, FETCHES
    previous = L1, L2, STREAM_BYTES, bool(FETCHES)
    L1, L2, STREAM_BYTES, FETCHES = l1, l2, stream_bytes, fetches
    return previous


cdef inline Py_ssize_t whole_lines(Py_ssize_t n) noexcept nogil:
    """n, and the rest of the last cache line of floats."""
    return (n + 15) // 16 * 16


cdef inline void suit_caches(Job* job, Py_ssize_t rows, int arrays, const float* output,
                             Py_ssize_t stride, bint in_place) noexcept nogil:
    """How a job that reads and writes so many arrays is to use the caches.

    Nothing is streamed in place. Nor are rows below 512 floats, or 64 where each is whole lines:
    one that two rows share cannot be streamed (65536 x 128 on Zen 4: 0.8 of the time on lines, 1.6
    beside them).
    """
    # Rows in pairs are worth more to backward than rows in level 1: on Zen 4 0.9 of the time at
    # 16 x 4096. Forward would take 1.1 times as long there from level 2.
    cdef Py_ssize_t room = L1 if job.dx == NULL else L2
    cdef bint on_lines = (<size_t>output | <size_t>stride * sizeof(float)) % 64 == 0
    job.stream = (not in_place and job.n >= (64 if on_lines else 512)
                  and arrays * rows * job.n * <Py_ssize_t>sizeof(float) >= STREAM_BYTES)
    job.fetch = FETCHES
    job.pass_rows = 8
    while job.pass_rows > 1 and arrays * <Py_ssize_t>sizeof(float) * job.pass_rows * job.n > room:
        job.pass_rows = job.pass_rows // 2
    # The row to prefetch is 4 KiB further on at least; backward reads two arrays, which no CPU
    # fetches early enough itself.
    job.ahead = max(job.pass_rows, 1 + 1024 // max(1, job.n)) if FETCHES or job.dx != NULL else 0
