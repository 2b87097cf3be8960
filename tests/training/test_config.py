# SPDX-License-Identifier: Apache-2.0
"""The configuration: JSON round trip, mistakes, where values come from."""

import inspect
import json
import re

import pytest
from click.testing import CliRunner

import san
import train
from image_data import archives
from training import config, generator, losses, schedules
from training.config import (
    FLAGS,
    MAX_LAYERS,
    MAX_RESOLUTION,
    OPTIONS,
    SECTIONS,
    STEM_CBASE,
    STEM_CMAX,
    DataConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    TrainConfig,
    changes_of,
    describe,
    from_json,
    to_json,
)
from training.discriminator import ProjectedDiscriminator
from training.generator import Generator, MappingNetwork, build_stem, build_superres, plan_stem, plan_superres


def changed(**values) -> TrainConfig:
    return TrainConfig().override({name.replace("__", "."): value for name, value in values.items()})


def test_json_round_trip():
    cfg = changed(
        run__batch=24,
        run__metrics=["none10"],
        data__max_images=7,
        discriminator__backbone_weights={"a": "b"},
        optim__glr=1,
    )
    assert from_json(json.loads(json.dumps(to_json(cfg)))) == cfg
    assert cfg.optim.glr == 1.0 and cfg.run.metrics == ("none10",)


def test_older_files_take_defaults_and_unknown_keys_are_named():
    assert from_json({"run": {"batch": 8}}) == changed(run__batch=8)
    with pytest.raises(ValueError, match=r"unknown option 'run.batchs': did you mean 'batch'"):
        from_json({"run": {"batchs": 8}})
    with pytest.raises(ValueError, match="unknown section 'runs'"):
        from_json({"runs": {}})
    with pytest.raises(ValueError, match="an object of sections"):
        from_json({"run": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("run.batch", "8"), ("run.batch", True), ("data.cond", 1), ("run.metrics", [1]), ("run.kimg", None)],
)
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ValueError, match=f"'{name}' must be of type"):
        TrainConfig().override({name: value})


def test_every_number_has_a_smallest_value_and_its_default_is_no_smaller():
    TrainConfig().validate()
    for section, cls in SECTIONS.items():
        for key, value in to_json(TrainConfig())[section].items():
            low = cls.__dataclass_fields__[key].metadata["low"]
            if (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and key not in ("up_factor", "tick")
            ):
                assert low is not None, key
                with pytest.raises(ValueError, match=f"--{key.replace('_', '-')}="):
                    TrainConfig().override({f"{section}.{key}": low - 1}).validate()
            if isinstance(value, float):
                with pytest.raises(ValueError, match="nan"):
                    TrainConfig().override({f"{section}.{key}": float("nan")}).validate()


def test_a_mapping_network_that_does_not_learn_is_refused():
    with pytest.raises(ValueError, match="--map-lr-multiplier=0: must be positive"):
        changed(generator__map_lr_multiplier=0.0).validate()


def test_origins():
    rows = {
        name: (value, origin)
        for name, value, origin, _ in describe(changed(run__batch=24, run__seed=3), {"run.batch"})
    }
    assert rows["run.batch"] == ("24", "given")
    assert rows["run.seed"] == ("3", "saved in the run")
    assert rows["run.kimg"] == ("25000.0", "default (StyleGAN3)")


def test_every_flag_is_one_options_and_its_text_reads_back():
    assert len(FLAGS) == len({option.name for option in FLAGS.values()})
    for option in OPTIONS.values():
        if option.default is not None:
            assert option.coerce(option.parse(option.text(option.default))) == option.default, option.name
        assert option.about and option.source


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("batch", "24", 24),
        ("kimg", "2.5", 2.5),
        ("cond", "yes", True),
        ("cond", "0", False),
        ("batch_gpu", "Auto", "auto"),
        ("batch_gpu", "none", 0),
        ("metrics", "none", ()),
        ("metrics", "fid50k_full, is50k", ("fid50k_full", "is50k")),
        ("backbone_weights", "a=b=c.pth,d=e", {"a": "b=c.pth", "d": "e"}),
        ("desc", "x", "x"),
    ],
)
def test_texts_of_flags(flag, text, value):
    assert FLAGS[flag].parse(text) == value and FLAGS[flag].parse(FLAGS[flag].text(value)) == value
    config = TrainConfig().override(changes_of({flag: value, "seed": None, "no_flag": 3}))
    assert FLAGS[flag].of(config) == value and config.run.seed == 0


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("batch", "many", "'many' is not a valid integer"),
        ("kimg", "", "'' is not a valid float"),
        ("batch_gpu", "-x", "'-x' is not a valid integer or auto"),
        ("cond", "maybe", "'maybe' is not a valid boolean: give True or False"),
        ("backbone_weights", "a", "give NAME=FILE"),
    ],
)
def test_texts_that_mean_nothing(flag, text, message):
    with pytest.raises(ValueError, match=message):
        FLAGS[flag].parse(text)


def test_help_shows_every_flag_with_its_default_or_that_it_is_required():
    shown = {p.name: p for p in train.main.params}
    for flag, option in FLAGS.items():
        about = shown[flag].help
        assert f"--{flag}" in shown[flag].opts and f"--{flag.replace('_', '-')}" in shown[flag].opts
        assert about.startswith(option.about)
        assert ("[required for a new run]" in about) == option.required
        assert (f"[default: {option.default_text}]" in about) != option.required
        assert option.default_text.startswith(("not set", option.text(option.default).removesuffix(".0")))
    result = CliRunner().invoke(train.main, [])
    required = ["--outdir", *(f"--{flag}" for flag, option in FLAGS.items() if option.required)]
    assert result.exit_code == 1 and f"missing {', '.join(required)} " in result.output


def test_what_version_01_wrote_reads():
    assert from_json({"generator": {"map_depth": 2, "syn_layers": 7}}) == changed(generator__syn_layers=7)
    assert (
        CliRunner()
        .invoke(train.main, ["--map-depth=8"])
        .output.startswith("Error: --map-depth=8 is not supported")
    )


# functions whose parameters are options: they keep the same defaults, since pickles and users of parts call
# them alone
COPIES = [
    (build_stem, {"config": "cfg"}, GeneratorConfig),
    (build_superres, {"config": "cfg"}, GeneratorConfig),
    (plan_stem, {"num_layers": "syn_layers"}, GeneratorConfig),
    (plan_superres, {}, GeneratorConfig),
    (Generator, {}, GeneratorConfig),
    (MappingNetwork, {}, DataConfig),
    (MappingNetwork, {"lr_multiplier": "map_lr_multiplier"}, GeneratorConfig),
    (ProjectedDiscriminator, {}, DiscriminatorConfig),
    (losses.generator_adversarial, {"objective": "g_loss", "scale": "adversarial_scale"}, LossConfig),
    (losses.discriminator, {"objective": "d_loss", "scale": "adversarial_scale"}, LossConfig),
    (schedules.blur_sigma, {"fade_kimg": "blur_fade_kimg"}, LossConfig),
]


@pytest.mark.parametrize(
    ("function", "names", "section"), COPIES, ids=lambda value: getattr(value, "__name__", "")
)
def test_functions_of_their_own_have_the_configs_defaults(function, names, section):
    given = {"cbase": STEM_CBASE, "cmax": STEM_CMAX} if function is build_stem else {}
    compared = 0
    for name, parameter in inspect.signature(function).parameters.items():
        field = names.get(name, name)
        if field in section.__dataclass_fields__ and parameter.default is not inspect.Parameter.empty:
            assert parameter.default == given.get(field, getattr(section(), field)), name
            compared += 1
    assert compared
    assert (TrainConfig().blur_init_sigma, TrainConfig().ema_rampup) == (
        inspect.signature(schedules.blur_sigma).parameters["init_sigma"].default,
        inspect.signature(schedules.ema_beta).parameters["rampup"].default,
    )


def test_option_types_are_plain():
    assert OPTIONS["generator.cmax"].kind is int
    assert OPTIONS["data.path"].kind is str
    assert OPTIONS["loss.cls_weights"].kind is str


def test_the_help_of_losses_names_every_one_that_san_has():
    import san

    texts = {name: OPTIONS[f"loss.{name}"].about for name in ("d_loss", "g_loss")}
    about = {name: re.findall(r"\w+", text) for name, text in texts.items()}
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
        if value > option.maximum:
            with pytest.raises(ValueError, match=rf"^{option.shown_flag}=\S+: must be at most") as error:
                TrainConfig().override({name: value}).validate()
            assert len(str(error.value)) < 120
        option.check_range(option.kind(option.maximum))
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
    assert (
        MAX_LAYERS == generator.MAX_LAYERS
        and MAX_RESOLUTION**2 <= archives.MAX_PIXELS < (2 * MAX_RESOLUTION) ** 2
    )


def test_help_names_the_objectives_of_san():
    assert list(config.DISCRIMINATOR_LOSSES) == list(san.DISCRIMINATOR_LOSSES)
    assert list(config.GENERATOR_OBJECTIVES) == list(san.GENERATOR_OBJECTIVES)
    assert list(config.FALLING_OBJECTIVES) == list(san.FALLING_OBJECTIVES)
