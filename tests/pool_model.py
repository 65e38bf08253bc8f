"""A model of the protocol of pool.h, whose threads take one atomic step at a time. `explore` tries
every interleaving. Each of `FAULTS` is a change that breaks the protocol.

    python tests/pool_model.py      count the states, and show what each fault leads to

Thread 0 is the caller, which makes one call after the other; the others are workers. The caller
writes the non-atomic memory of pool.h only between calls; the model checks that no worker is at
work then. It leaves out what affects only the timing: how long a thread spins before it sleeps, and
which items it takes first. Steps are atomic and all threads see them in one order: the accesses of
pool.h to `gate` and `asleep` that need this are SEQ_CST.
"""

from typing import NamedTuple

ITEMS = 2

FAULTS = {
    "no second look": "a worker does not check the gate again after it sets `asleep`",
    "no seat needed": "a worker joins calls that have no seat for it",
    "join in two steps": "a worker checks the gate and counts itself in, in two steps",
    "blind worker": "a worker sleeps without comparing `asleep`",
    "silent leave": "the last worker to leave does not wake the caller",
    "secret sleep": "the caller does not announce that it sleeps",
    "blind caller": "the caller sleeps without comparing the gate",
    "no wait": "the caller does not wait for the workers inside",
    "early wake": "the caller checks who is asleep before it opens the gate",
    "no clearing": "the caller does not clear `asleep` of the workers it wakes",
}


class Gate(NamedTuple):
    open: bool = False  # some items have not begun
    asleep: bool = False  # the caller sleeps until the last worker leaves
    seats: int = 0  # threads of the call
    inside: int = 0  # workers that joined and have not left


class Call(NamedTuple):
    threads: int
    brief: bool = False  # wakes nobody


# Name -> number of workers, and calls.
CASES = {
    "one worker more than the second call wants": (2, (Call(3), Call(2))),
    "one worker fewer than the first call wants": (2, (Call(4), Call(3))),
    "brief calls": (2, (Call(2, brief=True), Call(3), Call(3, brief=True))),
    "three workers": (3, (Call(4),)),
}


class State(NamedTuple):
    at: tuple[str, ...]  # where each thread is
    asleep: tuple[bool, ...]  # each worker's flag; the caller's is in the gate
    saw: tuple[Gate | None, ...]  # the gate as a thread last read it, until it acts on that
    gate: Gate = Gate()
    left: int = 0  # items that have not begun
    call: int = 0  # how many calls have begun
    waking: int = 0  # the next worker to wake

    def to(self, thread, place, saw=None, **changes):
        """Return the state after a thread goes to `place`, with the other changes of its step."""
        at, saw = put(self.at, thread, place), put(self.saw, thread, saw)
        return self._replace(at=at, saw=saw, **changes)


def put(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


def steps(state, calls, fault):
    """Yield every state that one step of one thread can lead to."""
    for thread in range(len(state.at)):
        if state.at[thread] in ("take", "run", "close"):
            yield work(state, thread)
        elif thread == 0:
            yield from caller(state, calls, fault)
        else:
            yield from worker(state, thread, fault)


def work(s, own):
    """pool_work: take items until none is left, then close the gate."""
    match s.at[own]:
        case "take" if s.left:
            return s.to(own, "run", left=s.left - 1)
        case "take":
            return s.to(own, "close")
        case "run":
            return s.to(own, "take")
        case "close":
            return s.to(own, "leave", gate=s.gate._replace(open=False))


def caller(s, calls, fault):
    """pool_run, pool_wake, pool_wait."""
    call = calls[max(s.call - 1, 0)]
    gate = s.gate
    early = fault == "early wake"
    match s.at[0]:
        case "begin" if s.call == len(calls):
            yield s.to(0, "done")
        case "begin":
            after = "wake" if early and not calls[s.call].brief else "open"
            yield s.to(0, after, left=ITEMS, call=s.call + 1, waking=1)
        case "open":
            after = "take" if early or call.brief else "wake"
            yield s.to(0, after, gate=Gate(True, False, call.threads, 0))
        case "wake" if s.waking == call.threads:
            yield s.to(0, "open" if early else "take")
        case "wake" if s.asleep[s.waking]:
            cleared = fault != "no clearing"
            asleep = put(s.asleep, s.waking, False) if cleared else s.asleep
            yield s.to(0, "wake it", asleep=asleep)
        case "wake":
            yield s._replace(waking=s.waking + 1)
        case "wake it":
            yield wake(s, s.waking).to(0, "wake", waking=s.waking + 1)
        case "leave":  # its own work is done: wait for the workers
            if not gate.inside or fault == "no wait":
                yield s.to(0, "begin")
            else:  # spins, which changes nothing, or stops spinning
                gate = gate._replace(asleep=fault != "secret sleep")
                yield s.to(0, "sleep", gate=gate, saw=gate)
        case "sleep" if not s.saw[0].inside:
            yield s.to(0, "begin")
        case "sleep" if gate == s.saw[0] or fault == "blind caller":
            yield s.to(0, "asleep")
        case "sleep" | "woken":
            yield s.to(0, "sleep", saw=gate)


def worker(s, own, fault):
    """pool_worker and pool_join."""

    def wanted(gate):
        seat = own < gate.seats or fault == "no seat needed"
        return gate.open and seat

    gate, saw = s.gate, s.saw[own]
    match s.at[own]:
        case "look":
            if wanted(gate):
                yield s.to(own, "join", saw=gate)
            again = fault != "no second look"
            yield s.to(own, "look again" if again else "sleep", asleep=put(s.asleep, own, True))
        case "look again" if wanted(gate):
            yield s.to(own, "join", saw=gate)
        case "look again":
            yield s.to(own, "sleep")
        case "join" if gate == saw or fault == "join in two steps":
            yield s.to(own, "take", gate=gate._replace(inside=gate.inside + 1))
        case "join" if wanted(gate):
            yield s.to(own, "join", saw=gate)
        case "join":
            yield s.to(own, "sleep")
        case "leave":
            gate = gate._replace(inside=gate.inside - 1)
            last = gate.asleep and not gate.inside
            if fault == "silent leave":
                last = False
            yield s.to(own, "wake caller" if last else "rise", gate=gate)
        case "wake caller":
            yield wake(s, 0).to(own, "rise")
        case "sleep" if s.asleep[own] or fault == "blind worker":
            yield s.to(own, "asleep")
        case "sleep" | "rise":
            yield s.to(own, "look", asleep=put(s.asleep, own, False))
        case "woken":
            yield s.to(own, "sleep")


def wake(s, thread):
    """Wake a thread that sleeps; a wake-up before it sleeps is lost."""
    return s.to(thread, "woken") if s.at[thread] == "asleep" else s


def wrong(s, calls):
    """Return which invariant a state breaks, or None."""
    at_work = [
        t for t, place in enumerate(s.at) if t and place in ("take", "run", "close", "leave")
    ]
    between = s.at[0] in ("begin", "open", "done")
    if at_work and between:
        return "a worker is at work between calls, while the caller writes the next one"
    if between and s.at[0] != "open" and s.call and s.left:
        return "a call ends with items that nobody ran"
    if any(t >= s.gate.seats for t in at_work):
        return "a worker is at work on a call that has no seat for it"
    if len(at_work) != s.gate.inside:
        return "the gate's count of workers inside is wrong"
    call = calls[max(s.call - 1, 0)]
    if s.gate.open and not call.brief and s.at[0] not in ("open", "wake", "wake it"):
        for t in range(1, min(call.threads, len(s.at))):
            if s.at[t] == "asleep":
                return "a worker sleeps through a call that wants it"
    return None


def explore(workers, calls, fault=None):
    """Return the number of reachable states; raise AssertionError if one of them is wrong."""
    threads = max(workers + 1, *(call.threads for call in calls))  # some may not have started
    start = State(("begin", *["look"] * workers), (False,) * threads, (None,) * threads)
    before, ends, todo = {start: []}, [], [start]
    while todo:
        state = todo.pop()
        assert not (problem := wrong(state, calls)), f"{problem}: {state}"
        if state.at[0] == "done":
            ends.append(state)
            continue
        for after in steps(state, calls, fault):
            if after not in before:
                before[after] = []
                todo.append(after)
            before[after].append(state)
    # From every state the caller must be able to finish.
    able, todo = set(ends), ends
    while todo:
        new = [state for state in before[todo.pop()] if state not in able]
        able.update(new)
        todo.extend(new)
    stuck = before.keys() - able
    assert not stuck, f"the caller never returns: {next(iter(stuck))}"
    return len(before)


if __name__ == "__main__":
    for name, case in CASES.items():
        print(f"{name}: {explore(*case)} states")
    for fault, what in FAULTS.items():
        try:
            explore(*CASES["one worker more than the second call wants"], fault)
        except AssertionError as error:
            print(f"if {what}: {error}")
