"""The record that `fastrms bench --json` writes: its schema, and the check against it.

A change that makes old records unreadable raises VERSION.
"""

VERSION = 1


class Optional:
    """A key that may be absent, or null."""

    def __init__(self, of):
        self.of = of


TIMES = {  # one rival in one row
    "best_s": float,  # seconds of one call, in the best round
    "median_s": float,  # in the median round
    "spread": float,  # the third best round / best - 1
    "rounds": int,
    "calls": int,  # in one round
    "gb_per_s": float,  # the row's bytes over best_s, in 1e9
    "of_floor": float,  # the floor's best_s over this one's
    "error": float,  # the largest, relative to the largest exact value, before any timing
    "processes_s": Optional([float]),  # fastrms's: best_s of this process, then of further ones
}
ROW = {
    "op": str,
    "rows": int,
    "n": int,
    "data": Optional(str),  # of x; absent means normal
    "threads": int,
    "bytes": int,  # moved by the op: see byte_models
    "working_set_bytes": int,  # of the arrays that it touches
    "times_numpy": float,
    "trusted": bool,  # by protocol.most_spread, the floor's and fastrms's, and most_apart
    "rivals": {str: TIMES},  # floor, numpy, fastrms, and the peers that have the op
    "left_out": {str: str},  # peer: why it is not in this row
}
SCHEMA = {
    "schema": int,
    "date": str,  # ISO 8601, UTC
    "complete": bool,  # false after Ctrl-C
    "commit": Optional(str),  # the one measured, if fastrms ran from a checkout
    "machine": {
        "cpu": str,
        "cpus_usable": int,
        "caches": [{"level": int, "bytes": int}],
        "memory_bytes": Optional(int),
        "system": str,
    },
    "config": {str: {str: object}},  # fastrms.show_config("dicts"): versions, compiler, flags
    "peers": {str: str},  # name: version
    "left_out": {str: str},  # peer: why it is in no row
    "protocol": {
        "rounds": int,
        "block_s": float,
        "most_spread": float,
        "most_apart": Optional(float),  # of two processes of fastrms
        "inplace": bool,
        "eps": float,
        "align": int,  # bytes past a cache line at which every array starts
        "tolerance": float,
        "dtype": Optional(str),  # of every array; absent means float32
    },
    "byte_models": {str: str},
    "rows": [ROW],
}


def problems(value, schema=SCHEMA, where="record"):
    """Return the errors of a record, one line each; an empty list if there are none."""
    if isinstance(schema, Optional):
        return [] if value is None else problems(value, schema.of, where)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} must be a list"]
        return [p for i, v in enumerate(value) for p in problems(v, schema[0], f"{where}[{i}]")]
    if isinstance(schema, dict):
        return problems_of_dict(value, schema, where)
    wanted = (int, float) if schema is float else schema
    if not isinstance(value, wanted) or (isinstance(value, bool) and schema in (int, float)):
        return [f"{where} must be {schema.__name__}, got {type(value).__name__}"]
    if where == "record.schema" and value != VERSION:
        return [f"{where} must be {VERSION}, got {value}"]
    return []


def problems_of_dict(value, schema, where):
    if not isinstance(value, dict):
        return [f"{where} must be an object"]
    if str in schema:  # any keys, all values alike
        return [p for k, v in value.items() for p in problems(v, schema[str], f"{where}.{k}")]
    missing = [key for key in schema if key not in value and not isinstance(schema[key], Optional)]
    found = [f"{where} lacks {key}" for key in missing]
    found += [f"{where} has an unknown {key}" for key in value if key not in schema]
    for key in value.keys() & schema.keys():
        found += problems(value[key], schema[key], f"{where}.{key}")
    return found
