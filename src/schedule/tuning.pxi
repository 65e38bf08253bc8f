# Cache sizes, read once at import, and how a job is blocked for them. No bit depends on them.

from kernels.job cimport ACCUMULATE, BATCH, FETCH, GROUP, STORE, STREAM, Job
from machine.caches cimport cache_size
from machine.cpu cimport cpu_is_intel

cdef Py_ssize_t L1 = cache_size(1)
# Software prefetch, of an output's lines before they are written and of the rows of x while an
# output is streamed: 0.7 of the time on Intel's Sapphire Rapids, a loss on AMD's Zen 4.
cdef bint FETCHES = cpu_is_intel()
# A call that reads and writes at least this many bytes streams its output past the caches: on Zen 4
# half of the 32 MiB that 8 cores share, on Sapphire Rapids the last level, taken as 64 MiB a core.
cdef Py_ssize_t STREAM_BYTES = min(<Py_ssize_t>cache_size(3),
                                   <Py_ssize_t>64 << 20 if FETCHES else <Py_ssize_t>16 << 20)


def set_caches(l1, stream_bytes, fetches):
    """Assume other caches, for tests and measurements; return the previous settings."""
    global L1, STREAM_BYTES, FETCHES
    previous = L1, STREAM_BYTES, bool(FETCHES)
    L1, STREAM_BYTES, FETCHES = l1, stream_bytes, fetches
    return previous


cdef inline Py_ssize_t whole_lines(Py_ssize_t n) noexcept nogil:
    """Round n floats up to whole cache lines."""
    return (n + 15) // 16 * 16


cdef inline void tune(Job* job, int arrays, const float* output, Py_ssize_t stride,
                      bint accumulate, bint in_place) noexcept nogil:
    """Fit a job that reads and writes `arrays` arrays to the caches: store, batch, ahead.

    Stream only out of place, and only rows of 512 floats or more, or of 64 if each starts on a
    cache line, because a line that two rows share cannot be streamed (65536 x 128 on Zen 4: 0.8 of
    the time on lines, 1.6 off them).
    """
    # Backward gains more from pairs of rows, which share weight and dweight, than from level 1; of
    # more rows, x and dy are to take half of it. Two long rows that are streamed at once take 1.3
    # times as long as one by one (n from 1024 on, Zen 3).
    cdef Py_ssize_t least = 1 if job.dx == NULL else 2
    cdef Py_ssize_t batch_bytes = (4 * arrays if job.dx == NULL else 16) * job.n
    cdef Py_ssize_t bytes = arrays * job.rows * job.n * <Py_ssize_t>sizeof(float)
    cdef bint large = bytes >= STREAM_BYTES
    cdef Py_ssize_t room = L1 // 2 if large and not FETCHES else L1
    cdef bint on_lines = (<size_t>output | <size_t>stride * sizeof(float)) % 64 == 0
    if accumulate:
        job.store = ACCUMULATE
    # One thread that streams fills the memory's bandwidth; two that find x and y in the last level
    # take half of its time, and one with narrow rows 0.6 to 0.9 (16 to 24 MiB, Zen 4).
    elif (large and not in_place and job.n >= (64 if on_lines else 512)
            and (2 * bytes >= 3 * STREAM_BYTES or arrays > 2 or FETCHES
                 or (job.n >= 512 and thread_count() == 1))):
        job.store = STREAM
    else:
        job.store = FETCH if FETCHES and job.n >= 128 else STORE    # it fetches 128 floats ahead
    # A large call waits for memory, the less the sooner it turns from reading to writing: in
    # batches of few rows forward and add + norm take 0.7 to 1.0 of the time (Zen 4), streamed
    # forward 0.83 (Sapphire Rapids).
    job.batch = BATCH if job.dx == NULL and not large else GROUP
    while job.batch > least and job.batch * batch_bytes > room:
        job.batch = job.batch // 2
    if job.dx != NULL and job.store == STREAM and job.n >= 1024 and not FETCHES:
        job.batch = 1
    # The row to prefetch is at least 4 KiB further on.
    job.ahead = max(job.batch, 1 + 1024 // max(1, job.n)) if FETCHES else 0
