cdef extern from "kernels/kinds.h" nogil:
    enum:
        FLOAT32
        FLOAT64
        FLOAT16
        BFLOAT16
    void convert_kind(void* to, int to_kind, const void* source, int kind, Py_ssize_t n)
