cdef extern from "kernels/simd.h" nogil:
    ctypedef float vec
    ctypedef double wide
    enum:
        VEC     # floats in a vec
        WIDE    # doubles in a wide
        LANES   # 32, of a long sum
        WIDES   # LANES // WIDE
        SIXTEEN "(16 / WIDE)"   # wides of 16 lanes
        EIGHT "(8 / WIDE)"      # wides of 8 lanes
        ALL_WIDE "((1 << WIDE) - 1)"    # a bit for each double of a wide
    vec splat(float value)
    wide splat_wide(double value)
    vec load(const float* source)
    void store(float* target, vec value)
    wide load_wide(const double* source)
    void store_wide(double* target, wide value)
    wide widen(const float* source)
    wide widen_half(vec value, int number)
    wide widen_folded(vec value)
    void narrow(float* target, wide value)
    vec take_vec(const float* source, Py_ssize_t count)
    void put_vec(float* target, vec value, Py_ssize_t count)
    wide take(const float* source, Py_ssize_t count)
    wide keep_part(wide value, Py_ssize_t count)
    void narrow_part(float* target, wide value, Py_ssize_t count)
    void stream(float* target, vec value)
    void stream_fence()
    wide add_product(wide sum, wide a, wide b)
    wide root(wide value)
    vec round_float16(vec value)
    vec round_bfloat16(vec value)
    double total(wide value)
    unsigned between(wide value, double low, double high)
    vec absolute(vec value)
    vec larger(vec a, vec b)
    float largest(vec value)
