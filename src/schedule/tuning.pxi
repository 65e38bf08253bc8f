# Cache sizes, read once at import, and how a job is blocked for them. No bit depends on them.

from kernels.job cimport ACCUMULATE, FETCH, STORE, STREAM, Job
from machine.caches cimport cache_size
from machine.cpu cimport cpu_is_intel

cdef Py_ssize_t L1 = cache_size(1)
cdef Py_ssize_t L2 = cache_size(2)
# Whether software prefetch pays: of an output's lines before they are written, 0.7 of the time on
# Intel's Sapphire Rapids, 1.06 on AMD's Zen 4 (backward, 16 x 4096, in L2); of the rows of x while
# an output is streamed, 0.75 on Sapphire Rapids, 1.2 to 1.6 on Zen 4 (4096 x 4096).
cdef bint FETCHES = cpu_is_intel()
# A call that reads and writes at least this many bytes streams its output past the caches. On Zen 4
# that pays from half of the 32 MiB that 8 cores share (512 x 4096: forward 0.75 of the time,
# backward 0.7); on Sapphire Rapids only once the last level is full, assumed to hold 64 MiB a core.
cdef Py_ssize_t STREAM_BYTES = min(<Py_ssize_t>cache_size(3),
                                   <Py_ssize_t>64 << 20 if FETCHES else <Py_ssize_t>16 << 20)


def set_caches(l1, l2, stream_bytes, fetches):
    """Assume other caches, for tests and measurements; return the previous settings."""
    global L1, L2, STREAM_BYTES, FETCHES
    previous = L1, L2, STREAM_BYTES, bool(FETCHES)
    L1, L2, STREAM_BYTES, FETCHES = l1, l2, stream_bytes, fetches
    return previous


cdef inline Py_ssize_t whole_lines(Py_ssize_t n) noexcept nogil:
    """Round n floats up to whole cache lines."""
    return (n + 15) // 16 * 16


cdef inline void tune(Job* job, int arrays, const float* output, Py_ssize_t stride,
                      bint accumulate, bint in_place) noexcept nogil:
    """Fit a job that reads and writes `arrays` arrays to the caches: store, batch, ahead.

    Nothing is streamed in place, nor are rows below 512 floats, or below 64 if each is whole lines:
    a line that two rows share cannot be streamed (65536 x 128 on Zen 4: 0.8 of the time on lines,
    1.6 off them).
    """
    # To backward, rows in pairs are worth more than rows in level 1: 0.9 of the time at 16 x 4096
    # on Zen 4. Forward would take 1.1 times as long from level 2.
    cdef Py_ssize_t room = L1 if job.dx == NULL else L2
    cdef Py_ssize_t row_bytes = arrays * job.n * <Py_ssize_t>sizeof(float)
    cdef bint on_lines = (<size_t>output | <size_t>stride * sizeof(float)) % 64 == 0
    if accumulate:
        job.store = ACCUMULATE
    elif (not in_place and job.n >= (64 if on_lines else 512)
            and job.rows * row_bytes >= STREAM_BYTES):
        job.store = STREAM
    else:
        job.store = FETCH if FETCHES else STORE
    job.batch = 8
    while job.batch > 1 and job.batch * row_bytes > room:
        job.batch = job.batch // 2
    # The row to prefetch is at least 4 KiB further on. Backward reads two arrays, and no CPU's own
    # prefetch is early enough for both.
    job.ahead = max(job.batch, 1 + 1024 // max(1, job.n)) if FETCHES or job.dx != NULL else 0
