"""The clock: how many calls make a block, one block's time, and what rounds of blocks amount to."""

from statistics import median
from timeit import Timer

# A block is timed as a whole: long enough for the clock, short enough for many rounds.
BLOCK_SECONDS = 0.02
# The median round beyond the best one, at which a row is marked: something else was running.
MOST_SPREAD = 0.2
# Once this much time is spent on one rival, the rounds that LEAST_ROUNDS does not ask for are
# left out: NumPy's backward on a gigabyte takes seconds.
RIVAL_SECONDS = 1.0
LEAST_ROUNDS = 3
MOST_CALLS = 200_000


def calls_per_block(call, seconds):
    """Return how many calls take about `seconds`, one at least."""
    calls = 1
    while True:
        took = Timer(call).timeit(calls)
        if took >= seconds / 4 or calls >= MOST_CALLS:
            return max(1, min(MOST_CALLS, round(calls * seconds / max(took, 1e-9))))
        calls *= 4


def time_block(call, calls):
    """Return the seconds of one call. The first, untimed, brings arrays and pools back to life."""
    call()
    return Timer(call).timeit(calls) / calls


def summary(seconds):
    """Return what the rounds of one rival amount to."""
    best, middle = min(seconds), median(seconds)
    return {
        "best_s": best,
        "median_s": middle,
        "spread": middle / best - 1,
        "rounds": len(seconds),
    }
