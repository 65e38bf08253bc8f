"""The process of one peer: `python -m fastrms.bench.worker NAME THREADS`, JSON lines in and out."""

import os
import sys

from .rivals import serve

if __name__ == "__main__":
    # A library's own output goes to stderr, so that it cannot get between two answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], int(sys.argv[2]), sys.stdin, answers)
