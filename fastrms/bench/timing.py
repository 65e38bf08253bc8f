"""The clock: size a block of calls, time it, and sum up rounds of blocks."""

from statistics import median
from timeit import Timer

# A block is timed as a whole: long enough for the clock, short enough for many rounds.
BLOCK_SECONDS = 0.02
# Rounds go on, up to this many times as many as were asked for, until the best three of the floor
# and of fastrms agree so closely. A row where they do not is marked: something else was running.
MOST_ROUNDS = 5
MOST_SPREAD = 0.05
# So is one where two processes of fastrms differ by more: a row may be slow in all rounds of one.
MOST_APART = 0.2
# After this much time a rival needs only LEAST_ROUNDS: NumPy's backward on a gigabyte takes
# seconds.
RIVAL_SECONDS = 1.0
LEAST_ROUNDS = 3
MOST_CALLS = 200_000


def calls_per_block(call, seconds):
    """Return how many calls take about `seconds`, at least one."""
    calls = 1
    while True:
        took = Timer(call).timeit(calls)
        if took >= seconds / 4 or calls >= MOST_CALLS:
            return max(1, min(MOST_CALLS, round(calls * seconds / max(took, 1e-9))))
        calls *= 4


def time_block(call, calls):
    """Return the seconds of one call; one untimed call first loads caches and wakes the pool."""
    call()
    return Timer(call).timeit(calls) / calls


def summary(seconds):
    """Return a summary of one rival's rounds."""
    nearest = sorted(seconds)[:3]
    return {
        "best_s": nearest[0],
        "median_s": median(seconds),
        "spread": nearest[-1] / nearest[0] - 1,
        "rounds": len(seconds),
    }
