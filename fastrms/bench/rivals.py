"""The rivals that are timed: some in this process, each other library in a process of its own.

Thread pools spin for a while after a call, so two of them in one process, or one that spins during
another's turn, slow each other down. So every peer has its own process, and sleeps between turns.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fastrms

from .. import _core
from . import calls, timing
from .cases import Case, tolerance

HERE = {"floor": calls.floor, "numpy": calls.numpy, "fastrms": calls.ours}


class UnfitError(Exception):
    """A rival cannot be timed: it is not installed, failed, or gave a wrong answer."""


class Here:
    """A rival in this process: prepare(case), then time() once a round."""

    def __init__(self, name, build):
        self.name, self.build = name, build

    def prepare(self, case, seconds):
        """Check the answer and size the block; return the error."""
        self.case, self.call = case, self.build(case)
        # The floor computes something else, so its answer is not checked.
        error = 0.0 if self.name == "floor" else case.error(self.call)
        if not error <= tolerance(case.dtype.name):
            raise UnfitError(f"wrong answer (error {error:.1e} of the largest value)")
        self.calls = timing.calls_per_block(self.call, seconds)
        return error

    def time(self):
        """Refill the inputs, time one block, and return the seconds of one call."""
        self.case.refill()
        return timing.time_block(self.call, self.calls)

    def close(self):
        pass


class Apart:
    """A rival in its own process, which answers each JSON line with one."""

    def __init__(self, name, spec, threads):
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (close() does)
        # In its own session, so that Ctrl-C reaches only this process, which closes the others.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastrms.bench.worker", spec],
            cwd=Path(__file__).parents[2],  # first on the path of -m: this very package
            env={**os.environ, **environment(threads), "FASTRMS_ISA": _core.current()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )

    def prepare(self, case, seconds):
        request = [case.op, case.rows, case.n, case.inplace, case.align, case.data]
        request += [case.dtype.name, case.threads]
        answer = self.ask({"case": request, "seconds": seconds})
        if "unfit" in answer:
            raise UnfitError(answer["unfit"])
        self.calls = answer["calls"]
        return answer["error"]

    def time(self):
        answer = self.ask({})
        if "unfit" in answer:
            raise UnfitError(answer["unfit"])
        return answer["seconds"]

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise UnfitError(
                f"its process ended: {said[-1][:150] if said else 'no message'}"
            ) from None

    def close(self):
        self.process.kill()  # it has nothing to save, and may be in the middle of an import
        self.process.communicate()
        self.errors.close()


def environment(threads):
    """Return the environment variables that limit a library's thread pool to `threads`."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


def versions(peers, dtype="float32"):
    """Return the versions of the peers that are installed, and why the others are left out."""
    found, left_out = {}, {}
    for name, peer in peers.items():
        if dtype not in peer.dtypes:
            left_out[name] = f"no {dtype}"
        elif all(is_installed(module) for module in peer.modules):
            found[name] = importlib.metadata.version(peer.distribution)
        else:
            left_out[name] = "not installed"
    return found, left_out


def is_installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent package is missing
        return False


def serve(build, requests, answers):
    """Answer one JSON line for each request: prepare a case, or time a block of it."""
    rival = Here("", build)
    for line in requests:
        request = json.loads(line)
        try:
            if "case" in request:
                rival.case = rival.call = None  # free the last case's arrays before making new ones
                case = Case(*request["case"])
                fastrms.set_num_threads(case.threads)
                answer = {"error": rival.prepare(case, request["seconds"]), "calls": rival.calls}
            else:
                answer = {"seconds": rival.time()}
        except UnfitError as unfit:
            answer = {"unfit": str(unfit)}
        except Exception as failure:
            reason = str(failure).strip().splitlines() or [""]
            answer = {"unfit": f"{type(failure).__name__}: {reason[0][:150]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
