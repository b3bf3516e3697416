"""What is chosen, of a machine whose speed is given."""

import dataclasses
import re

import pytest

from vitswin_jax.core.types import UserError
from vitswin_jax.tune import choose as tune
from vitswin_jax.tune.clock import Clock, Costs, evaluations_in
from vitswin_jax.tune.sizes import Images, Size
from vitswin_jax.tune.trial import Trial

SIZES = [Size(name, {}, cost) for name, cost in (("small", 10), ("medium", 100), ("large", 1000))]


@pytest.fixture
def task(make_config):
    def make(keys):
        config = make_config()
        config.update_from_flattened_dict(dict(keys))
        return config

    return tune.Task(make, fixed=set(), own_images=True)


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a training step of an image takes a time by its size's cost."""

    def machine(flops, *, compile_seconds=5.0, rate=1e-3):
        tried = []

        def try_out(config, *, seconds, data):
            size = next(each for each in tried_sizes if each.keys.items() <= config_items(config))
            tried.append(size)
            step = config.data.batch_size * size.flops / flops
            return dataclasses.replace(
                Trial(step, compile_seconds, [rate * 3, 1.0], [1.0, 2.0], True)
            )

        def config_items(config):
            return {(f"model.{key}", value) for key, value in config.model.items()
                    if isinstance(value, int)}  # fmt: skip

        from vitswin_jax.tune.sizes import ladder

        tried_sizes = ladder(Images(1347, 8, True))
        monkeypatch.setattr(tune, "try_out", try_out)
        monkeypatch.setattr(tune, "machine_flops", lambda: flops)
        return tried

    return machine


@pytest.mark.parametrize(("seconds", "name"), [(1.0, "small"), (71.0, "medium"), (1e4, "large")])
def test_the_largest_size_that_sees_enough(seconds, name):
    assert tune._pick(SIZES, flops=6e5, seconds=seconds, enough=100_000)[0].name == name


def test_batches_give_enough_steps_and_divide_among_devices():
    assert tune.batch_for(1500.0 * 64, 10_000, devices=1) == 64
    assert tune.batch_for(10.0, 10_000, devices=1) == tune.BATCHES[0]
    assert tune.batch_for(1e9, 10**7, devices=2) == 2 * tune.BATCHES[1]
    assert tune.batch_for(1e9, 1347, devices=1) == 64  # so that an epoch has 16 steps or more
    for seen in (1.0, 1e5, 1e7, 1e9):
        assert tune.batch_for(seen, 50_000, devices=6) % 6 == 0


def test_evaluations_take_a_small_part_of_the_time():
    assert evaluations_in(100.0, Costs(1.0, evaluation=30.0, start=0.0)) == 1
    assert evaluations_in(1000.0, Costs(1.0, evaluation=20.0, start=0.0)) == 4
    assert evaluations_in(1e6, Costs(1.0, evaluation=1.0, start=0.0)) == 12


def test_a_choice_fits_into_the_time(task, machine):
    machine(4e10)
    clock = Clock(600.0, 0.0, now=lambda: 10.0)
    choice = tune.choose(task, clock)
    steps = round(choice.config.optim.epochs * choice.images / choice.config.data.batch_size)
    evaluations = steps // choice.config.run.eval_steps
    end = 10 + choice.costs.start + steps * choice.costs.step
    end += evaluations * choice.costs.evaluation
    assert 0.95 * 600 < end < 0.98 * 600
    assert choice.config.optim.peak_lr == 1e-3
    assert choice.images == 1347
    assert [reason.split(":")[0] for reason in choice.reasons] == [
        "data", "size", "batch size", "learning rate", "length",
    ]  # fmt: skip


def test_a_size_that_the_machine_is_too_slow_for_gives_way(task, machine, monkeypatch):
    tried = machine(1e9)
    monkeypatch.setattr(tune, "machine_flops", lambda: 1e13)  # is measured too high
    choice = tune.choose(task, Clock(600.0, 0.0, now=lambda: 10.0))
    assert [size.keys["model.embed_dim"] for size in tried] == [192, 64]
    assert choice.config.model.embed_dim == 64


def test_what_the_user_sets_stays(task, machine):
    machine(1e11)
    fixed = {"optim.peak_lr": 0.0123}

    def make(keys):
        return task.make({**keys, **fixed})

    own = dataclasses.replace(task, make=make, fixed=set(fixed))
    assert tune.choose(own, Clock(600.0, 0.0, now=lambda: 10.0)).config.optim.peak_lr == 0.0123


def test_too_short_a_time_is_one_line(task, machine):
    machine(1e9)
    with pytest.raises(
        UserError, match=r"--minutes=0.2 is too short.*; give \d+ or more\.$"
    ) as error:
        tune.choose(task, Clock(12.0, 0.0, now=lambda: 10.0))
    enough = 60 * int(re.search(r"give (\d+) or more", str(error.value)).group(1))
    assert tune.choose(task, Clock(float(enough), 0.0, now=lambda: 10.0)).config


@pytest.mark.parametrize("steps", [1, 1051, 123_457, 999_999])
@pytest.mark.parametrize(("images", "batch"), [(24, 16), (1347, 32), (1_281_167, 96)])
def test_epochs_are_short_and_give_the_same_steps(steps, images, batch):
    epochs = tune.length(steps, 4, images=images, batch=batch)["optim.epochs"]
    assert len(repr(epochs)) <= 12
    assert round(epochs * images / batch) == steps


def test_augmentation_grows_with_the_epochs():
    photos, letters = Images(1000, 400, False), Images(1000, 28, True)
    few, many = (tune.augmentation(photos, float(epochs), tune.FRESH) for epochs in (5, 300))
    assert few["augment.mixup_alpha"] == 0.0 < many["augment.mixup_alpha"]
    assert "augment.scale" in few and "augment.scale" not in many
    assert tune.augmentation(letters, 5.0, tune.FRESH)["augment.flip"] is False
    assert "augment.flip" not in tune.augmentation(letters, 5.0, tune.TUNED)
