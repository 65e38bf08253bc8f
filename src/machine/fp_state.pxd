cdef extern from "machine/fp_state.h" nogil:
    ctypedef unsigned long fp_state
    fp_state default_fp_state()
    void restore_fp_state(fp_state state)
