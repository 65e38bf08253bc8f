cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()
    double PyFloat_AsDouble(object) except *    # without a comparison, which may raise a flag
