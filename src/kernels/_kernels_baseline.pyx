# The kernels for one instruction set; setup.py gives the flags.
include "kernels/table.pxi"
