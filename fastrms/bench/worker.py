"""The process of one rival: `python -m fastrms.bench.worker SPEC`, JSON lines in and out."""

import os
import sys

from ..conformance.calls import load
from .rivals import serve

if __name__ == "__main__":
    # A library's own output goes to stderr, so that it cannot get between two answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(load(sys.argv[1]), sys.stdin, answers)
