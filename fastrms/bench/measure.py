"""Measure every case in interleaved rounds, into a record that schema.py describes."""

import contextlib
import datetime
import itertools
import time

import fastrms

from .. import _arguments, _core
from . import calls, machine, rivals, schema, timing
from .cases import EPS, OPS, Case, tolerance

# A thread pool spins for a while after a call, ONNX Runtime's the longest: 25 ms (CPU time of an
# idle process on an Intel Xeon). No turn begins before that is over.
SETTLE_SECONDS = 0.04


class WrongAnswerError(Exception):
    """fastrms, or NumPy's formula, disagrees with the reference, so nothing may be timed."""


def new_record(plan):
    """Return the record of a plan, without rows."""
    itemsize = _arguments.dtype(plan.dtype).itemsize
    found, left_out = rivals.versions(plan.peers, plan.dtype)
    return {
        "schema": schema.VERSION,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "complete": False,
        "commit": machine.commit(),
        "machine": machine.describe(),
        "config": fastrms.show_config("dicts"),
        "peers": found,
        "left_out": left_out,
        "protocol": {
            "rounds": plan.rounds,
            "block_s": plan.block,
            "most_spread": timing.MOST_SPREAD,
            "most_apart": timing.MOST_APART,
            "inplace": plan.inplace,
            "eps": EPS,
            "align": plan.align,
            "tolerance": tolerance(plan.dtype),
            "dtype": plan.dtype,
        },
        "byte_models": {op: OPS[op].model(plan.inplace, itemsize) for op in plan.ops},
        "rows": [],
    }


@contextlib.contextmanager
def instruction_set(isa):
    """Force an instruction set for a while; raise ValueError if it is not available here."""
    before, available = _core.current(), _core.available_isas()
    if isa is not None and isa not in available:
        raise ValueError(f"--isa {isa}: here it is one of {', '.join(available)}")
    _core.use_isa(isa or before)
    try:
        yield
    finally:
        _core.use_isa(before)


def rows(plan, record):
    """Measure row by row: add each to the record and yield it. The caller may stop early."""
    before = fastrms.get_num_threads()
    try:
        for threads in plan.threads:
            fastrms.set_num_threads(threads)
            with contextlib.ExitStack() as stack:
                field = [rivals.Here(name, build) for name, build in rivals.HERE.items()]
                specs = dict.fromkeys(further(plan), f"{calls.__name__}:ours")
                specs |= {name: plan.peers[name].spec for name in record["peers"]}
                field += [rivals.Apart(name, spec, threads) for name, spec in specs.items()]
                for rival in field:
                    stack.callback(rival.close)
                for (count, n), data, op in itertools.product(plan.shapes, plan.data, plan.ops):
                    case = Case(op, count, n, plan.inplace, plan.align, data, plan.dtype, threads)
                    record["rows"].append(measure_case(plan, case, field))
                    yield record["rows"][-1]
        record["complete"] = True
    finally:
        fastrms.set_num_threads(before)


def further(plan):
    """Return the names of fastrms' further processes, each with its own layout of memory."""
    return [f"fastrms, process {number}" for number in range(2, plan.processes + 1)]


def measure_case(plan, case, field):
    """Check every rival's answer, run the rounds, and return the row."""
    field = [r for r in field if r.name not in plan.peers or plan.peers[r.name].has(case)]
    errors, left_out = check_answers(plan, case, field)
    case.__dict__.pop("exact", None)  # as large as the arrays, and no longer needed
    live = [rival for rival in field if rival.name in errors]
    seconds = {rival.name: [] for rival in live}
    for turn in range(plan.rounds * timing.MOST_ROUNDS):
        if turn >= plan.rounds and all(map(agree, (seconds["floor"], seconds["fastrms"]))):
            break
        first = turn % len(live)  # so that nobody always follows the same rival
        for rival in live[first:] + live[:first]:
            if rival.name in left_out or is_done(seconds[rival.name]):
                continue
            if case.threads > 1:
                time.sleep(SETTLE_SECONDS)
            try:
                seconds[rival.name].append(rival.time())
            except rivals.UnfitError as unfit:
                left_out[rival.name] = str(unfit)
    live = [rival for rival in live if rival.name not in left_out]
    row = finish(case, live, seconds, errors, left_out)
    again = [row["rivals"].pop(name, None) for name in further(plan)]
    times = row["rivals"]["fastrms"]
    best = [times["best_s"], *(other["best_s"] for other in again if other)]
    times["processes_s"] = best
    row["trusted"] = row["trusted"] and max(best) / min(best) - 1 <= timing.MOST_APART
    return row


def agree(seconds):
    return timing.summary(seconds)["spread"] <= timing.MOST_SPREAD


def check_answers(plan, case, field):
    """Return the error of every rival, or why it is left out of the row."""
    errors, left_out = {}, {}
    for rival in field:
        try:
            errors[rival.name] = rival.prepare(case, plan.block)
        except rivals.UnfitError as unfit:
            if rival.name in rivals.HERE:
                where = f"{rival.name}, {case.op} {case.rows}x{case.n}"
                raise WrongAnswerError(f"{where}: {unfit}") from None
            left_out[rival.name] = str(unfit)
    return errors, left_out


def is_done(seconds):
    """Return whether a slow rival has used up its time."""
    return len(seconds) >= timing.LEAST_ROUNDS and sum(seconds) > timing.RIVAL_SECONDS


def finish(case, live, seconds, errors, left_out):
    """Return the row that sums up the rounds."""
    op, elements = OPS[case.op], case.rows * case.n
    itemsize = case.dtype.itemsize
    moved = elements * op.bytes_per_element(itemsize)
    results = {rival.name: timing.summary(seconds[rival.name]) for rival in live}
    for rival in live:
        times = results[rival.name]
        times["calls"], times["error"] = rival.calls, errors[rival.name]
        times["gb_per_s"] = moved / times["best_s"] / 1e9
        times["of_floor"] = results["floor"]["best_s"] / times["best_s"]
    arrays = len({*op.reads, *op.writes}) - case.inplace * (case.op != "add")
    return {
        "op": case.op,
        "rows": case.rows,
        "n": case.n,
        "data": case.data,
        "threads": case.threads,
        "bytes": moved,
        "working_set_bytes": itemsize * elements * arrays,
        "times_numpy": results["numpy"]["best_s"] / results["fastrms"]["best_s"],
        "trusted": agree(seconds["floor"]) and agree(seconds["fastrms"]),
        "rivals": results,
        "left_out": left_out,
    }
