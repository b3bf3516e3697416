"""Keys that a command line changes: their types, and what a message suggests."""

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vitswin_jax.core.types import UserError
from vitswin_jax.train.run.overrides import apply_overrides, config_keys, parse_override, set_keys


@pytest.fixture
def config():
    values = {
        "seed": 0,
        "optim": {"peak_lr": 1e-3, "epochs": 5.0, "name": "adamw", "total_steps": placeholder(int)},
        "model": {"name": "swin", "scan": False, "depths": (2, 2), "embed_dim": 8, "img_size": 32},
        "data": {"class_weights": placeholder(object), "batch_size": 8},
    }
    return ConfigDict(values).lock()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("--seed=3", "seed", 3),
        ("--optim.epochs=2", "optim.epochs", 2.0),
        ("--config.optim.epochs=2", "optim.epochs", 2.0),
        ("--optim.total_steps=7", "optim.total_steps", 7),
        ("--optim.total_steps=None", "optim.total_steps", None),
        ("--optim.name=a=b", "optim.name", "a=b"),
        ("--model.scan", "model.scan", True),
        ("--model.scan=false", "model.scan", False),
        ("--model.depths=2,6", "model.depths", (2, 6)),
        ("--model.img_size=48", "model.img_size", 48),
        ("--model.img_size=224x160", "model.img_size", (224, 160)),
        ("--model.img_size=(224,160)", "model.img_size", (224, 160)),
        ("--model.img_size=224,160", "model.img_size", (224, 160)),
        ("--data.class_weights=balanced", "data.class_weights", "balanced"),
        ("--data.class_weights=(1.0,2.0)", "data.class_weights", (1.0, 2.0)),
    ],
)
def test_a_value_has_its_keys_type(config, text, key, value):
    before = config_keys(config)
    apply_overrides(config, [text])
    after = config_keys(config)
    assert after == before | {key: value}
    assert type(after[key]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--optim.peak_rl=1", "--optim.peak_rl: there is no such flag or key; did you mean --opt"),
        ("--config.optim.peak_rl=1", "did you mean --optim.peak_lr?"),
        ("--peak_lr=1", "did you mean --optim.peak_lr?"),
        ("--optmi.peak_lr=1", "did you mean --optim.peak_lr?"),
        ("--model.embed_dmi=1", "did you mean --model.embed_dim?"),
        ("--colour=red", "no such flag or key; `vitswin config RECIPE` lists them."),
        ("--optim.epochs=many", "--optim.epochs needs a number, not 'many'; now it is 5.0."),
        ("--seed=1.5", "--seed needs a whole number, not '1.5'; now it is 0."),
        ("--model.scan=maybe", "--model.scan needs true or false, not 'maybe'; now it is False."),
        ("--optim.total_steps", "needs a whole number; write --optim.total_steps=VALUE."),
        ("--model.img_size=1x2x3", "a whole number, or HEIGHTxWIDTH such as 224x160, not '1x"),
        ("stray", "unexpected stray; a key is set by --section.key=value."),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_with_what_would_be_right(config, text, message):
    before = config_keys(config)
    with pytest.raises(UserError) as error:
        apply_overrides(config, [text])
    assert message in str(error.value)
    assert config_keys(config) == before


def test_an_override_keeps_the_flag_as_it_was_typed():
    override = parse_override("--config.a.b=c=d")
    assert (override.flag, override.key, override.value) == ("--config.a.b", "a.b", "c=d")


@pytest.mark.parametrize("size", [48, (48, 32), [48, 32]])
def test_python_gives_a_size_as_one_number_or_two(config, size):
    set_keys(config, {"model.img_size": size})
    assert config.model.img_size == (size if isinstance(size, int) else (48, 32))
    with pytest.raises(UserError, match=r"model\.img_size needs a whole number, or HEIGHTxWIDTH"):
        set_keys(config, {"model.img_size": "large"})
