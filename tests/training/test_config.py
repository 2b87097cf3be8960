# SPDX-License-Identifier: Apache-2.0
"""The configuration: JSON round trip, mistakes, where values come from."""

import json

import pytest

from image_data import archives
from training import generator
from training.config import MAX_LAYERS, MAX_RESOLUTION, OPTIONS, SECTIONS, TrainConfig, describe, from_json, to_json


def changed(**values) -> TrainConfig:
    return TrainConfig().override({name.replace("__", "."): value for name, value in values.items()})


def test_json_round_trip():
    cfg = changed(run__batch=24, run__metrics=["none10"], data__max_images=7, discriminator__backbone_weights={"a": "b"}, optim__glr=1)
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg
    assert cfg.optim.glr == 1.0 and cfg.run.metrics == ("none10",)


def test_older_files_take_defaults_and_unknown_keys_are_named():
    assert from_json({"run": {"batch": 8}}) == changed(run__batch=8)
    with pytest.raises(ValueError, match=r"unknown option 'run.batchs': did you mean 'batch'"):
        from_json({"run": {"batchs": 8}})
    with pytest.raises(ValueError, match="unknown section 'runs'"):
        from_json({"runs": {}})
    with pytest.raises(ValueError, match="not a table"):
        from_json({"run": 3})


@pytest.mark.parametrize(("name", "value"), [("run.batch", "8"), ("run.batch", True), ("data.cond", 1), ("run.metrics", [1]), ("run.kimg", None)])
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"'{name}' must be of type"):
        TrainConfig().override({name: value})


def test_every_number_has_a_smallest_value_and_its_default_is_no_smaller():
    TrainConfig().validate()
    for section, cls in SECTIONS.items():
        for key, value in to_json(TrainConfig())[section].items():
            low = cls.__dataclass_fields__[key].metadata["low"]
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("up_factor", "tick"):
                assert low is not None, key
                with pytest.raises(ValueError, match=f"--{key.replace('_', '-')}="):
                    TrainConfig().override({f"{section}.{key}": low - 1}).validate()
            if isinstance(value, float):
                with pytest.raises(ValueError, match="nan"):
                    TrainConfig().override({f"{section}.{key}": float("nan")}).validate()


def test_origins():
    rows = {name: (value, origin) for name, value, origin, _ in describe(changed(run__batch=24, run__seed=3), {"run.batch"})}
    assert rows["run.batch"] == ("24", "given")
    assert rows["run.seed"] == ("3", "the run's own")
    assert rows["run.kimg"] == ("25000.0", "default of StyleGAN3")


def test_option_types_are_plain():
    assert OPTIONS["generator.cmax"].kind is int
    assert OPTIONS["data.path"].kind is str
    assert OPTIONS["loss.cls_weights"].kind is str


def test_the_help_of_losses_names_every_one_that_san_has():
    import san

    texts = {name: OPTIONS[f"loss.{name}"].about for name in ("d_loss", "g_loss")}
    about = {name: text.replace(",", " ").replace(";", " ").split() for name, text in texts.items()}
    assert set(san.DISCRIMINATOR_LOSSES) <= set(about["d_loss"])
    assert {*san.GENERATOR_OBJECTIVES, *san.FALLING_OBJECTIVES} <= set(about["g_loss"])
    for name in san.DISCRIMINATOR_LOSSES:
        TrainConfig().override({"loss.d_loss": name}).validate()
    for name in (*san.GENERATOR_OBJECTIVES, *san.FALLING_OBJECTIVES):
        TrainConfig().override({"loss.g_loss": name}).validate()


@pytest.mark.parametrize("value", [10**9, 10**30, 10**400, float("inf"), 1e300])
def test_numbers_beyond_reason_are_one_line(value):
    """From JSON, where an edited file may say anything; the largest values themselves are allowed."""
    for name, option in OPTIONS.items():
        if option.kind not in (int, float) or name in ("generator.up_factor", "run.seed"):
            continue
        if option.kind is int and isinstance(value, float):
            continue
        if value > option.most:
            with pytest.raises(ValueError, match=rf"^{option.shown_flag}=\S+: must be at most") as error:
                TrainConfig().override({name: value}).validate()
            assert len(str(error.value)) < 120
        option.check_range(option.kind(option.most))
    with pytest.raises(ValueError, match=r"^--batch=1000000000: must be at most 1048576"):
        from_json({"run": {"batch": 10**9}}).validate()
    with pytest.raises(ValueError, match=r"^--resolution=65536: must be at most 8192"):
        from_json({"data": {"resolution": 65536}}).validate()


def test_texts_of_numbers_beyond_reason_are_one_line():
    with pytest.raises(ValueError, match=r"^'9{40}' is not a valid integer"):
        OPTIONS["run.batch"].parse("9" * 5000)
    with pytest.raises(ValueError, match=r"of type int, not '9{79}$"):
        OPTIONS["run.batch"].coerce("9" * 5000)


def test_limits_agree_with_those_of_what_they_limit():
    assert MAX_LAYERS == generator.MAX_LAYERS and MAX_RESOLUTION**2 <= archives.MAX_PIXELS < (2 * MAX_RESOLUTION) ** 2
