cdef extern from "machine/compiler.h":
    const char* COMPILER "FASTRMS_COMPILER"
    const char* FLAGS "FASTRMS_FLAGS"
