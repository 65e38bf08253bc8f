cimport numpy as cnp

cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()
    double PyFloat_AsDouble(object) except *    # without a comparison, which may raise a flag

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void* dtype, int subok)
