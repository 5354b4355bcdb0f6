"""The replay memory: against its definition, step by step; uniform; a pure function of seed and step."""

import numpy as np
import pytest
from scipy import stats

from nc_jax.data import LabelledArrays
from nc_jax.streams import Epochs, Replay, Tasks, read

N = 60
SOURCE = LabelledArrays(np.arange(N, dtype=np.float32)[:, None], np.arange(N) % 3, 3)
# Three tasks of 20 examples, two epochs each; the last batch of each epoch has six examples and a place of padding.
TASKS = Tasks(SOURCE, np.arange(N) // 20, batch_size=7, epochs=2)
LEAST_P = 1e-3  # of chi-square tests; seeds are fixed


def simulated(stream, seed):
    """Hold the seen examples with the smallest priorities before each step, by sorting all of them every time."""
    priorities, seen = np.random.Philox(key=seed + (1 << 126)).random_raw(N), set()
    for segment in range(len(stream.ends)):
        for row in stream.stream.plan(seed, segment).index:
            yield set(sorted(seen, key=lambda example: priorities[example])[: stream.capacity])
            seen |= set(row[row >= 0].tolist())


def rows_of(stream, seed):
    """Yield the rows of all plans: examples, places and draws."""
    for segment in range(len(stream.ends)):
        plan = stream.plan(seed, segment)
        yield from zip(plan.index, plan.slot, plan.replayed, strict=True)


@pytest.mark.parametrize(("capacity", "draw_size", "draws"), [(12, 5, 2), (1, 3, 1), (200, 4, 1)])
def test_the_memory_holds_the_smallest_priorities_of_what_was_seen(capacity, draw_size, draws):
    stream, seed = Replay(TASKS, capacity, draw_size, draws), 3
    assert stream.batch_size == 7 + draws * draw_size
    for step, (held, (index, slot, replayed)) in enumerate(
        zip(simulated(stream, seed), rows_of(stream, seed), strict=True)
    ):
        before, after = stream.memory(seed, step), stream.memory(seed, step + 1)
        assert set(before.tolist()) == held
        np.testing.assert_array_equal(replayed, [0] * 7 + sorted([*range(1, draws + 1)] * draw_size))
        for draw in range(1, draws + 1):
            places = slot[replayed == draw]
            used = places[places >= 0]
            assert len(set(used.tolist())) == len(used) == min(draw_size, len(before))  # without replacement
            padded = np.append(before, -1)  # place -1 is padding
            np.testing.assert_array_equal(index[replayed == draw], padded[places])
        for example, place in zip(index[:7], slot[:7], strict=True):  # new ones: where they are after the step
            assert after[place] == example if place >= 0 else example not in after
    assert len(stream.memory(seed, stream.ends[-1])) == min(capacity, N)


def test_two_draws_of_a_step_are_different_ones():
    plan = Replay(TASKS, 40, 5, 2).plan(0, 5)
    first, second = (plan.index[plan.replayed == draw].reshape(-1, 5) for draw in (1, 2))
    assert any(set(one.tolist()) != set(other.tolist()) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 9, 18])
def test_every_example_seen_is_held_with_the_same_probability(step):
    counts = np.zeros(N)
    for seed in range(400):
        counts[Replay(TASKS, 10, 1).memory(seed, step)] += 1
    shown = {6: 20, 9: 40, 18: 60}[step]  # an epoch of a task is three steps, and there are two of each
    assert counts[shown:].sum() == 0
    assert stats.chisquare(counts[:shown]).pvalue > LEAST_P


def test_every_example_held_is_drawn_with_the_same_probability():
    stream = Replay(Tasks(SOURCE, np.zeros(N, int), batch_size=1, epochs=5), 8, 3)
    plan = stream.plan(0, 3)
    slots = plan.slot[plan.replayed == 1]
    more = np.concatenate([stream.plan(0, segment).slot[:, 1:].ravel() for segment in (1, 2, 4)])
    assert stats.chisquare(np.bincount(np.concatenate([slots, more]), minlength=8)).pvalue > LEAST_P


def test_any_order_of_calls_gives_the_same():
    one, other = Replay(TASKS, 9, 4), Replay(TASKS, 9, 4)
    plans = [one.plan(5, segment) for segment in range(6)]
    for segment in (4, 0, 5, 2):
        for ours, theirs in zip(plans[segment], other.plan(5, segment), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other.plan(6, 1)  # another seed in between
    np.testing.assert_array_equal(other.memory(5, 7), one.memory(5, 7))
    assert set(one.memory(5, 18)) != set(one.memory(6, 18))


def test_the_memory_never_changes():
    # Measured once: a run must resume exactly under later versions of NumPy and of this package.
    assert Replay(TASKS, 6, 2).memory(7, 18).tolist() == [54, 47, 56, 15, 0, 3]
    assert Replay(TASKS, 6, 2).plan(7, 2).index[0].tolist() == [26, 27, 28, 39, 32, 34, 24, 10, 3]


def test_a_run_reads_on_from_the_middle_and_processes_share_a_batch():
    stream = Replay(TASKS, 9, 5)
    whole = list(read(SOURCE, stream, seed=1))
    rest = list(read(SOURCE, stream, seed=1, start_step=7))
    halves = [list(read(SOURCE, stream, seed=1, process_index=i, process_count=2, prefetch=0)) for i in (0, 1)]
    assert len(whole) == stream.ends[-1] == len(rest) + 7
    for step, batch in enumerate(whole):
        assert not batch.inputs[~batch.mask].any()
        for name in ("inputs", "labels", "index", "slot", "replayed"):
            joined = np.concatenate([getattr(half[step], name) for half in halves])
            np.testing.assert_array_equal(joined, getattr(batch, name))
            if step >= 7:
                np.testing.assert_array_equal(getattr(rest[step - 7], name), getattr(batch, name))


def test_ten_million_examples_take_no_loop_over_them():
    """The number of entries is about k (1 + log(N / k)), whatever N."""
    source = LabelledArrays(np.zeros((200_000, 1), np.int8), np.zeros(200_000, int), 1)
    stream = Replay(Epochs(source, 1000, 1), 100, 10)
    stream.memory(0, 200)
    assert len(stream._reservoir(0)._log) < 3 * 100 * (1 + np.log(2000))


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"draw_size": 0}, {"draws": 0}])
def test_a_memory_needs_room(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} of a replay memory must be at least 1; got 0"):
        Replay(**({"stream": TASKS, "capacity": 5, "draw_size": 2, "draws": 1} | wrong))


def test_a_step_must_exist():
    with pytest.raises(ValueError, match=r"a step of this stream must lie in 0\.\.18; got 19"):
        Replay(TASKS, 5, 2).memory(0, 19)
