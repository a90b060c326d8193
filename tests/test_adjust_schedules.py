"""Schedules: ordinary schedulers of torch, equal to tables made by hand, at every update and after loading."""

import copy
import math
import pickle

import pytest
import torch

from attntut.adjust import cosine, inverse_sqrt, noam, warmup, wsd

SCHEDULES = {
    "warmup": (warmup, dict(steps=4)),
    "noam": (noam, dict(d_model=64, steps=4)),
    "inverse_sqrt": (inverse_sqrt, dict(warmup=4)),
    "cosine": (cosine, dict(steps=9, warmup=3, floor=0.1)),
    "wsd": (wsd, dict(steps=9, warmup=3, decay=4)),
}


def sgd(*lrs):
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs])


def rates(scheduler, n):
    found = []
    for _ in range(n):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule, options, table", [
    (noam, dict(d_model=16, steps=4), [1 / 32, 2 / 32, 3 / 32, 4 / 32, 1 / 4 / math.sqrt(5)]),
    (inverse_sqrt, dict(warmup=4), [0.25, 0.5, 0.75, 1, math.sqrt(4 / 5), math.sqrt(4 / 6)]),
    (inverse_sqrt, dict(warmup=1), [1, math.sqrt(1 / 2), math.sqrt(1 / 3), 0.5]),
    (cosine, dict(steps=6, warmup=2), [0.5, 1, 0.5 + math.sqrt(1 / 8), 0.5, 0.5 - math.sqrt(1 / 8), 0, 0]),
    (cosine, dict(steps=3), [1, 0.5, 0, 0]),
    (cosine, dict(steps=3, floor=0.2), [1, 0.6, 0.2, 0.2]),
    (wsd, dict(steps=8, warmup=2, decay=4), [0.5, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0, 0]),
    (wsd, dict(steps=8, warmup=2, decay=4, shape="linear", floor=0.2), [0.5, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
    (wsd, dict(steps=6, warmup=2, decay=4, shape="cosine"), [0.5, 1, 0.5 + math.sqrt(1 / 8), 0.5]),
])  # fmt: skip
def test_it_is_the_table(schedule, options, table):
    assert rates(schedule(sgd(1.0), **options), len(table)) == pytest.approx(table, abs=1e-12)
    assert rates(schedule(sgd(3.0), **options), len(table)) == pytest.approx([3 * each for each in table], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_warm_up_is_a_line(steps):
    expected = [3 * min(1, t / steps) for t in range(1, 9)]
    assert rates(warmup(sgd(3.0), steps=steps), 8) == pytest.approx(expected)


def test_noam_has_the_peak_of_the_first_transformer():
    scheduler = noam(sgd(1.0), d_model=512)
    found = [scheduler.lr_lambdas[0](t - 1) for t in (1, 3999, 4000, 4001, 16000)]
    assert found[2] == max(found) == pytest.approx(6.988e-4, rel=1e-4)
    assert found[0] == pytest.approx(512**-0.5 * 4000**-1.5)
    assert found[4] == pytest.approx(found[2] / 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_its_state_goes_on_where_it_was(name):
    schedule, options = SCHEDULES[name]
    optimizer = sgd(2.0, 0.5)
    scheduler = schedule(optimizer, **options)
    whole = rates(schedule(sgd(2.0, 0.5), **options), 12)
    assert rates(scheduler, 5) == whole[:5]
    state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other = sgd(7.0, 7.0)
    loaded = schedule(other, **{key: 2 * value for key, value in options.items()})  # the state has the true numbers
    other.load_state_dict(state[0])
    loaded.load_state_dict(state[1])
    assert rates(loaded, 7) == whole[5:]
    assert other.param_groups[1]["lr"] == pytest.approx(other.param_groups[0]["lr"] / 4)
    twin = pickle.loads(pickle.dumps(scheduler))
    assert rates(twin, 7) == whole[5:]


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_a_scheduler_of_torch(name):
    schedule, options = SCHEDULES[name]
    assert isinstance(schedule(sgd(1.0), **options), torch.optim.lr_scheduler.LRScheduler)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer: got str"):
        schedule("Adam", **options)


def test_cosine_and_wsd_are_those_of_transformers_one_update_earlier():
    theirs = pytest.importorskip("transformers")
    ours = rates(cosine(sgd(1.0), steps=9, warmup=3), 9)
    assert ours == pytest.approx(rates(theirs.get_cosine_schedule_with_warmup(sgd(1.0), 3, 9), 10)[1:], abs=1e-12)
    for shape in ("linear", "cosine", "1-sqrt"):
        expected = rates(theirs.get_wsd_schedule(sgd(1.0), 3, 4, num_stable_steps=2, decay_type=shape), 10)[1:]
        assert rates(wsd(sgd(1.0), steps=9, warmup=3, decay=4, shape=shape), 9) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule, options, error, message", [
    (warmup, dict(steps=0), ValueError, "steps must be an integer ≥ 1"),
    (noam, dict(d_model=0), ValueError, "d_model must be an integer ≥ 1"),
    (noam, dict(d_model=64, steps=0), ValueError, "steps must be an integer ≥ 1"),
    (inverse_sqrt, dict(warmup=0), ValueError, "warmup must be an integer ≥ 1"),
    (cosine, dict(steps=4, warmup=4), ValueError, "steps must leave room for the warm-up and the fall: got steps=4"),
    (cosine, dict(steps=4, floor=1.1), ValueError, "floor must be a number ≥ 0 and ≤ 1"),
    (cosine, dict(steps=4.0), TypeError, "steps must be an integer"),
    (wsd, dict(steps=8, warmup=5, decay=4), ValueError, "a fall that begins at update 4"),
    (wsd, dict(steps=8, decay="4"), TypeError, "decay must be an integer"),
    (wsd, dict(steps=8, decay=4, shape="exp"), ValueError, "shape must be one of 'linear', 'cosine', '1-sqrt'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(schedule, options, error, message):
    with pytest.raises(error, match=message):
        schedule(sgd(1.0), **options)
