# Jobs: what the public functions share, from converted arguments to a job for the scheduler. No
# arithmetic happens here.

import numpy as np

cimport numpy as cnp

from fastrms cimport FASTRMS_DWEIGHT, FASTRMS_DX
from kernels.job cimport STORE, Axis, Job, Table
from kernels.kinds cimport FLOAT32


cdef inline int take_accumulate(object value, bint by_name) except -1:
    """Parse `accumulate` into flags. by_name: also accept "dx" and "dweight"."""
    if value is False:
        return 0
    if value is True:
        return FASTRMS_DX | FASTRMS_DWEIGHT
    return take_other_accumulate(value, by_name)


cdef int take_other_accumulate(object value, bint by_name) except -1:
    if by_name and isinstance(value, str):
        if value == "dx":
            return FASTRMS_DX
        if value == "dweight":
            return FASTRMS_DWEIGHT
    if isinstance(value, (int, np.bool_)) and 0 <= value <= 1:
        return FASTRMS_DX | FASTRMS_DWEIGHT if value else 0
    wanted = 'True, False, "dx" or "dweight"' if by_name else "True or False"
    if isinstance(value, (int, str)):
        raise ValueError(f"accumulate must be {wanted}, got {value!r}")
    raise TypeError(f"accumulate must be {wanted}, got {type(value).__name__}")


cdef int refuse_accumulate(int adds) except -1:
    wanted = {FASTRMS_DX: '"dx" needs dx=', FASTRMS_DWEIGHT: '"dweight" needs dweight='}
    raise ValueError(f"accumulate={wanted.get(adds, 'True needs dx= or dweight=')}, "
                     "an array to add to")


cdef inline int take_x(Job* job, cnp.ndarray x, bint* other) except -1:
    """Check x, and set up a job for its rows, without a weight."""
    cdef Py_ssize_t rows = 1
    cdef int axis, last
    check_array(x, "x", other)
    last = cnp.PyArray_NDIM(x) - 1
    for axis in range(last):
        rows *= cnp.PyArray_DIM(x, axis)
    init_job(job, rows, cnp.PyArray_DIM(x, last))
    return 0


cdef inline void init_job(Job* job, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    """Set up a job of whole rows, without arrays."""
    job.rows = rows
    job.n = job.size = n
    job.store = STORE
    job.squares = job.products = NULL
    job.weight = job.y = job.dx = NULL
    job.axes = NULL
    job.staged = False


cdef cnp.ndarray vector_for(const Job* job, cnp.ndarray array, bint reads):
    """Return a vector in a job's arithmetic: the array itself, or a new one, with its values if it
    is read. None for None."""
    cdef int kind = job.kinds.arithmetic
    cdef cnp.ndarray vector, row
    if array is None or kind_of(array) == kind:
        return array
    row = rows_of(array)
    vector = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(row), cnp.PyArray_DIMS(row),
                               cnp.NPY_FLOAT if kind == FLOAT32 else cnp.NPY_DOUBLE, 0)
    if reads:
        convert_array(vector, row)
    return vector


# Inline, so that each caller gets a copy without the branches of the others: 70 fewer instructions.
cdef inline object normed(object x, bint add, object residual, object scale, object weight,
                          object eps, object weight_offset, object out, object accumulate,
                          tuple sums):
    """Compute rms_norm; to `add`, add_rms_norm; with sums = (sum_squares, size), rms_scale."""
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, w, y, squares, total, x_rows, y_rows, total_rows
    cdef const Table* table = kernels
    cdef Py_ssize_t size = 0
    cdef bint other = False, adds = take_accumulate(accumulate, False) != 0
    take_numbers(&job, eps, weight_offset)
    if add:
        take_number(&job.scale, scale, "scale")
    if sums is not None:
        size = as_integer(sums[1], "size", "below 2**40")
        squares = as_sums(sums[0], "sum_squares")
    x_in, w, y = as_array(x, "x"), as_array(weight, "weight"), as_array(out, "out")
    total = as_array(residual, "residual") if add else None
    take_x(&job, x_in, &other)
    if add:
        check_like(total, "residual", x_in, "x", &other, output=True)
    if sums is not None:
        job.size = checked_size(size, job.n)
        check_sums(squares, "sum_squares", x_in)
    if w is not None:
        check_vector(w, "weight", job.n, &other)
    if y is None:
        if adds:
            raise ValueError("accumulate=True needs out=, an array to add to")
        y = new_like(x_in)
    else:
        check_like(y, "out", x_in, "x", &other, output=True)
        if may_overlap(y, x_in, None, w, total):
            if add:
                check_disjoint(y, "out", total, "residual")
            x_in, w = aliasable_input(x_in, y), disjoint_input(w, y)
    if add and may_overlap(total, x_in, None, w):
        x_in, w = aliasable_input(x_in, total), disjoint_input(w, total)
    if sums is not None:
        squares = sums_beside(squares, y)
        job.squares = <double*>cnp.PyArray_DATA(squares)
    x_rows, y_rows = rows_of(x_in), rows_of(y, output=True)
    total_rows = rows_of(total, output=True) if add else None
    set_arrays(&job, axes, x_rows, None, y_rows, total_rows, None, other)
    tune(&job, 3 if add else 2, job.y, job.y_stride, adds, job.y == job.x)
    if other:
        table = kernels_for(&job, axes)
        w = vector_for(&job, w, True)
    if w is not None:
        w = rows_of(w)
        job.weight = <const float*>cnp.PyArray_DATA(w)
    run(table, table.add_rms_norm if add else table.rms_norm, &job, NULL, False)
    if add:
        write_back(total, total_rows)
    write_back(y, y_rows)
    return y if out is None else out


cdef tuple gradients(object dy, object x, object weight, object eps, object weight_offset,
                     object dx, object dweight, object accumulate, tuple sums):
    """Compute rms_norm_backward, or with sums = (sum_squares, sum_products, size) the gradients of
    a split row."""
    cdef Job job
    cdef Axis[MOST_AXES] axes
    cdef cnp.ndarray x_in, dy_in, w, dx_out, dweight_out, squares, products
    cdef cnp.ndarray x_rows, dy_rows, dx_rows, dweight_row
    cdef const Table* table = kernels
    cdef void* dweight_data = NULL
    cdef Py_ssize_t size = 0
    cdef bint other = False
    cdef int adds = take_accumulate(accumulate, True)
    cdef bint to_dx = adds & FASTRMS_DX and dx is not None
    cdef bint to_dweight = adds & FASTRMS_DWEIGHT and dweight is not None
    take_numbers(&job, eps, weight_offset)
    if sums is not None:
        size = as_integer(sums[2], "size", "below 2**40")
        squares, products = as_sums(sums[0], "sum_squares"), as_sums(sums[1], "sum_products")
    dy_in, x_in, w = as_array(dy, "dy"), as_array(x, "x"), as_array(weight, "weight")
    dx_out, dweight_out = as_array(dx, "dx"), as_array(dweight, "dweight")
    take_x(&job, x_in, &other)
    check_like(dy_in, "dy", x_in, "x", &other)
    if sums is not None:
        check_sums(squares, "sum_squares", x_in)
        check_sums(products, "sum_products", x_in)
        job.size = checked_size(size, job.n)
    if w is not None:
        check_vector(w, "weight", job.n, &other)
    elif dweight is not None:
        raise ValueError("dweight needs weight: without one it has no gradient")
    if adds and not to_dx and not to_dweight:
        refuse_accumulate(adds)
    if dweight is not None:
        check_vector(dweight_out, "dweight", job.n, &other, output=True)
        check_dweight_shape(dweight_out, w)
    if dx is not None:
        check_like(dx_out, "dx", x_in, "x", &other, output=True)
        if may_overlap(dx_out, x_in, dy_in, w, dweight_out):
            if dweight is not None:
                check_disjoint(dx_out, "dx", dweight_out, "dweight")
            x_in, dy_in = aliasable_input(x_in, dx_out), aliasable_input(dy_in, dx_out)
            w = disjoint_input(w, dx_out)
    # Up to 8 rows are summed in dweight while these are read.
    if dweight is not None and may_overlap(dweight_out, None, None, x_in, dy_in, w):
        x_in, dy_in = disjoint_input(x_in, dweight_out), disjoint_input(dy_in, dweight_out)
        w = disjoint_input(w, dweight_out)
    if dx is None:
        dx_out = new_like(x_in)
    if sums is not None:
        squares, products = sums_beside(squares, dx_out), sums_beside(products, dx_out)
        job.squares = <double*>cnp.PyArray_DATA(squares)
        job.products = <double*>cnp.PyArray_DATA(products)
    x_rows, dy_rows, dx_rows = rows_of(x_in), rows_of(dy_in), rows_of(dx_out, output=True)
    set_arrays(&job, axes, x_rows, dy_rows, None, None, dx_rows, other)
    tune(&job, 3, job.dx, job.dx_stride, to_dx, job.dx == job.x or job.dx == job.dy)
    if other:
        table = kernels_for(&job, axes)
    if w is not None:
        if dweight is None:
            dweight_out = new_like(w)
        dweight_row = dweight_out
        if other:
            w, dweight_row = vector_for(&job, w, True), vector_for(&job, dweight_out, to_dweight)
        w, dweight_row = rows_of(w), rows_of(dweight_row)
        job.weight = <const float*>cnp.PyArray_DATA(w)
        dweight_data = cnp.PyArray_DATA(dweight_row)
    run(table, table.backward, &job, dweight_data, to_dweight)
    write_back(dx_out, dx_rows)
    if w is not None:
        write_back(dweight_out, dweight_row)
    return (dx_out if dx is None else dx), (dweight_out if dweight is None else dweight)


cdef inline int check_dweight_shape(cnp.ndarray dweight, cnp.ndarray weight) except -1:
    if cnp.PyArray_NDIM(dweight) > 1 and not cnp.PyArray_SAMESHAPE(dweight, weight):
        raise ValueError(f"dweight must have shape {shape_of(weight)[-1:]} or that of weight, "
                         f"{shape_of(weight)}, got {shape_of(dweight)}")
    return 0
