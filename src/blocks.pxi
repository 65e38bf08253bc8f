# The door's blocks of rows for backward: each has a partial sum of dweight. The row count alone
# fixes them, and they are added in order, so threads change no bit.

# dweight is summed over at most so many blocks, of so many rows at least, whatever the threads:
# 8 bytes * n each.
cdef Py_ssize_t MOST_BLOCKS = 64
cdef Py_ssize_t LEAST_BLOCK = 32
# dweight adds rows in groups of 8, so pieces of backward are whole groups.
cdef Py_ssize_t GROUP = 8


cdef struct Blocks:
    Py_ssize_t rows
    Py_ssize_t size         # rows in a block, from the row count alone
    Py_ssize_t count
    Py_ssize_t group        # blocks that run side by side, each with a sum of its own
    int threads
    # Each row of these is of `width` elements: n, and the rest of its last cache line.
    Py_ssize_t width
    double* dweight         # (n,) IN-OUT: the blocks' sums in order; NULL without a weight
    double* sums            # (group, n); (1, n) on one thread; dweight itself for a single block
    float* scratch          # (group, n) for the kernel; (1, n) on one thread


cdef int run_backward(Job* job, Py_ssize_t rows, float* dweight, bint accumulate) except -1:
    """Backward over all rows; dweight (n,) OUT, or IN-OUT to accumulate, NULL without a weight."""
    if not run_few(job, rows, dweight, accumulate):
        run_in_blocks(job, rows, dweight, accumulate)
    return 0


cdef inline bint run_few(Job* job, Py_ssize_t rows, float* dweight,
                         bint accumulate) noexcept nogil:
    """Start the job, and end it too if it has 8 rows at most, which need no blocks. Return whether
    it did."""
    cdef bint done = False
    cdef fp_state state = default_fp_state()
    kernels.start(job)
    if (rows * job.n < RELEASE_GIL and 0 < rows <= GROUP and not accumulate
            and job.squares == NULL and job.axes == NULL):
        done = kernels.backward_few(job, rows, dweight)
    restore_fp_state(state)
    return done


cdef int run_in_blocks(const Job* job, Py_ssize_t rows, float* dweight,
                       bint accumulate) except -1:
    """Backward in row blocks, each with a partial sum of dweight; it is stored last of all."""
    cdef Blocks blocks = cut_blocks(rows, job.n, dweight != NULL, threads_for(rows * job.n))
    cdef Py_ssize_t each = block_bytes(blocks.count, at_once(&blocks))
    cdef double* memory = NULL
    if dweight != NULL:
        memory = <double*>PyMem_RawCalloc(blocks.width, each)
        if memory == NULL:
            raise MemoryError(f"dweight needs {each} bytes * {job.n} of scratch")
        place_sums(&blocks, memory)
    try:
        if rows * job.n < min(RELEASE_GIL, parallel_from):
            run_blocks(job, &blocks, 0, blocks.count, 0, blocks.size)
        else:
            run_pieces(job, &blocks)
        if dweight != NULL:
            store_sums(job, &blocks, dweight, accumulate)
    finally:
        PyMem_RawFree(memory)
    return 0


cdef void run_all_blocks(const Job* job, Py_ssize_t rows, float* dweight, bint accumulate,
                         double* memory, int threads) noexcept nogil:
    """run_in_blocks in memory of the caller's, without a look for signals."""
    cdef Blocks blocks = cut_blocks(rows, job.n, dweight != NULL, threads)
    cdef Py_ssize_t first = 0
    if dweight != NULL:
        place_sums(&blocks, memory)
        memset(memory, 0, blocks.width * sizeof(double))
    while first < blocks.count:
        run_blocks(job, &blocks, first, min(blocks.count, first + blocks.group), 0, blocks.size)
        first += blocks.group
    if dweight != NULL:
        store_sums(job, &blocks, dweight, accumulate)


cdef inline Py_ssize_t at_once(const Blocks* blocks) noexcept nogil:
    return 1 if blocks.threads == 1 else blocks.group


cdef inline Py_ssize_t block_bytes(Py_ssize_t count, Py_ssize_t side_by_side) noexcept nogil:
    """Bytes for each element of a row: dweight, and of each block at work a sum and scratch. A
    single block sums in dweight."""
    cdef Py_ssize_t sums = 0 if count <= 1 else side_by_side
    return (1 + sums) * sizeof(double) + side_by_side * sizeof(float)


cdef inline void place_sums(Blocks* blocks, double* memory) noexcept nogil:
    blocks.dweight = blocks.sums = memory
    blocks.scratch = <float*>(memory + blocks.width)
    if blocks.count > 1:
        blocks.sums = memory + blocks.width
        blocks.scratch = <float*>(blocks.sums + blocks.width * at_once(blocks))


cdef inline void store_sums(const Job* job, const Blocks* blocks, float* dweight,
                            bint accumulate) noexcept nogil:
    cdef fp_state state = default_fp_state()
    kernels.store_dweight(dweight, blocks.dweight, job.n, accumulate)
    restore_fp_state(state)


cdef inline Blocks cut_blocks(Py_ssize_t rows, Py_ssize_t n, bint weighted,
                              Py_ssize_t threads) noexcept nogil:
    cdef Blocks blocks
    blocks.rows = rows
    blocks.size = max(LEAST_BLOCK, (rows + MOST_BLOCKS - 1) // MOST_BLOCKS)
    if not weighted:    # no sum of dweight: a block is what suits the threads
        blocks.size = max(1, min(blocks.size, (rows + threads - 1) // threads))
    blocks.count = (rows + blocks.size - 1) // blocks.size
    blocks.threads = <int>min(threads, max(1, blocks.count))
    blocks.group = max(1, piece_rows(n) // blocks.size // blocks.threads) * blocks.threads
    blocks.group = min(blocks.group, blocks.count)
    blocks.width = whole_lines(n)
    blocks.dweight = blocks.sums = NULL
    blocks.scratch = NULL
    return blocks


cdef int run_pieces(const Job* job, const Blocks* blocks) except -1:
    """All blocks, group by group, and in pieces of their rows where a group is too much at once."""
    cdef Py_ssize_t first, row, count = piece_rows(job.n) // max(1, blocks.group)
    count = min(blocks.size, max(GROUP, count // GROUP * GROUP))
    for first in range(0, blocks.count, blocks.group):
        for row in range(0, blocks.size, count):
            if first + row > 0:
                PyErr_CheckSignals()
            with nogil:
                run_blocks(job, blocks, first, min(blocks.count, first + blocks.group), row, count)
    return 0


cdef struct Turn:
    const Job* job
    const Blocks* blocks
    Py_ssize_t first, row, count


cdef void run_blocks(const Job* job, const Blocks* blocks, Py_ssize_t first, Py_ssize_t last,
                     Py_ssize_t row, Py_ssize_t count) noexcept nogil:
    """Rows [row, row + count) of the blocks [first, last); a block that ends joins dweight."""
    cdef Py_ssize_t b
    cdef bint ends = blocks.sums != blocks.dweight and row + count >= blocks.size
    cdef Turn turn
    if blocks.threads == 1:
        for b in range(first, last):
            run_block(job, blocks, b, 0, row, count)
            if ends:
                add_sum(job, blocks, blocks.sums)
        return
    turn.job, turn.blocks, turn.first, turn.row, turn.count = job, blocks, first, row, count
    pool_run(run_turn, &turn, last - first, blocks.threads, is_brief(blocks.rows * job.n))
    if ends:
        for b in range(last - first):
            add_sum(job, blocks, blocks.sums + b * blocks.width)


cdef void run_turn(const void* call, long item) noexcept nogil:
    cdef const Turn* turn = <const Turn*>call
    run_block(turn.job, turn.blocks, turn.first + item, item, turn.row, turn.count)


cdef inline void run_block(const Job* job, const Blocks* blocks, Py_ssize_t b, Py_ssize_t item,
                           Py_ssize_t row, Py_ssize_t count) noexcept nogil:
    """Some rows of block b, which is number `item` of those that run side by side."""
    cdef double* sums = NULL
    cdef float* scratch = NULL
    cdef Py_ssize_t start = b * blocks.size
    cdef Py_ssize_t last = min(blocks.rows, start + min(blocks.size, row + count))
    cdef fp_state state = default_fp_state()
    if blocks.dweight != NULL:
        sums = blocks.sums + item * blocks.width
        scratch = blocks.scratch + item * blocks.width
        if row == 0 and sums != blocks.dweight:
            memset(sums, 0, blocks.width * sizeof(double))
    run_backward_kernel(job, start + row, last, sums, scratch)
    restore_fp_state(state)


cdef inline void add_sum(const Job* job, const Blocks* blocks, const double* sums) noexcept nogil:
    cdef fp_state state = default_fp_state()
    kernels.add_block(blocks.dweight, sums, job.n)
    restore_fp_state(state)
