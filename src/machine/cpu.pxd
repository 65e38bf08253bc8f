cdef extern from "machine/cpu.h":
    bint cpu_has_v3()
    bint cpu_has_v4()
    bint cpu_halves_v4()
    bint cpu_is_intel()
