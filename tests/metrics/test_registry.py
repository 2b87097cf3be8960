# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from metrics import registry


@pytest.mark.parametrize(
    ("name", "canonical", "num_gen", "num_real"),
    [
        ("fid50k_full", "fid50k_full", 50_000, None),
        ("fid50000_full", "fid50k_full", 50_000, None),
        ("fid", "fid50k_full", 50_000, None),
        ("fid10k_full", "fid10k_full", 10_000, None),
        ("fid50k", "fid50k", 50_000, 50_000),
        ("is50k", "is50k", 50_000, 50_000),
        ("is", "is50k", 50_000, 50_000),
        ("kid5k_full", "kid5k_full", 5000, None),
        ("pr_inception_10k_full", "pr_inception_10k_full", 10_000, None),
        ("fd_lite0", "fd_lite0", 50_000, None),
        ("fd_lite0_50k", "fd_lite0", 50_000, None),
        ("fd_lite0_full", "fd_lite0", 50_000, None),
        ("fd_lite0_2k", "fd_lite0_2k", 2000, 10_000),
        ("fd_lite0_1797", "fd_lite0_1797", 1797, 10_000),
        ("fd_lite0_20k", "fd_lite0_20k", 20_000, 20_000),
        ("fd_lite0_2k_full", "fd_lite0_2k_full", 2000, None),
        ("eqt50k_int", "eqt50k_int", 50_000, 50_000),
        ("pr50k3_full", "pr50k3_full", 50_000, 200_000),
        ("pr10k3", "pr10k3", 10_000, 10_000),
        ("pr_vgg16_50k3_full", "pr_vgg16_50k3_full", 50_000, 200_000),
        ("sfid50k_full", "sfid50k_full", 50_000, None),
        ("fd_dinov2", "fd_dinov2", 50_000, None),
        ("kd_lite0_2k", "kd_lite0_2k", 2000, 10_000),
        ("prdc_dinov2", "prdc_dinov2_10k", 10_000, 10_000),
        ("prdc_dinov2_full", "prdc_dinov2_10k_full", 10_000, None),
        ("closer_lite0", "closer_lite0_10k_full", 10_000, None),
        ("vendi_lite0", "vendi_lite0_10k", 10_000, 10_000),
        ("cmmd", "cmmd_10k", 10_000, 10_000),
        ("ppl2_wend", "ppl2_wend", 50_000, None),
        ("ppl2_wend_1k", "ppl2_wend_1k", 1000, 1000),
        ("eqt_frac", "eqt50k_frac", 50_000, 50_000),
        ("eqr2k", "eqr2k", 2000, 2000),
    ],
)
def test_names(name, canonical, num_gen, num_real):
    metric = registry.parse_metric(name)
    assert (metric.name, metric.num_gen, metric.num_real) == (canonical, num_gen, num_real)
    assert registry.parse_metric(metric.name).num_real == metric.num_real


def test_a_count_replaces_the_one_in_the_name():
    names = [
        registry.parse_metric(name, num_gen=1500).name
        for name in ("fid50k_full", "fid50k", "is50k", "fd_lite0")
    ]
    assert names == ["fid1500_full", "fid1500", "is1500", "fd_lite0_1500"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("fid50kfull", "fid50k_full"),
        ("fd_lite", "fd_lite0"),
        ("IS50k", "is50k"),
        ("fd_lite0_full2", "fd_lite0"),
    ],
)
def test_unknown_names_get_the_nearest_known_one(wrong, near):
    with pytest.raises(
        ValueError, match=f"unknown metric '{wrong}'; the nearest known one is '{near}"
    ) as error:
        registry.parse_metric(wrong)
    assert "\n" not in str(error.value)


def test_unlike_names_get_no_suggestion():
    with pytest.raises(ValueError, match=r"^unknown metric 'speed' \(known: "):
        registry.parse_metric("speed")


def test_impossible_counts_and_references():
    with pytest.raises(ValueError, match="at least 2"):
        registry.parse_metric("fid1_full")
    with pytest.raises(ValueError, match="say 'is50k'"):
        registry.parse_metric("is50k_full")
    for name, least in (("is9", 10), ("pr_inception_3", 4), ("kid1", 2)):
        with pytest.raises(ValueError, match=f"needs at least {least} generated images"):
            registry.parse_metric(name)


@pytest.mark.parametrize(
    "family",
    [f for f in registry.FAMILIES.values() if not f.of_network and not f.name.startswith("closer")],
    ids=lambda f: f.name,
)
def test_declared_minimum_and_good_end_are_true(family):
    kind = registry.FeatureArray if family.keep == "array" else registry.Moments

    def store(n, seed=0, offset=0.0):
        kept = kind(3)
        rows = np.random.RandomState(seed).rand(n, 3) + offset
        kept.append(rows / rows.sum(1, keepdims=True) if family.output == "probabilities" else rows)
        return kept

    def number(generated, real):
        return next(
            iter(family.compute(generated, real if family.needs_real else None, registry.Rules()).values())
        )

    assert np.isfinite(number(store(family.min_images), store(family.min_images, 1)))
    if family.needs_real:  # the data itself, and something far away
        good, bad = number(store(50), store(50)), number(store(50, 1, 9.0), store(50))
    else:  # certain and varied, and all alike
        sharp, flat = registry.FeatureArray(3), registry.FeatureArray(3)
        sharp.append(np.eye(3)[np.arange(60) % 3])
        flat.append(np.full((60, 3), 1 / 3))
        good, bad = number(sharp, None), number(flat, None)
    assert (good < bad) == family.lower_is_better and good != bad


def test_every_example_is_spelt_as_it_is_returned_and_every_family_has_one():
    families = {registry.parse_metric(name).family.name for name in registry.EXAMPLES}
    assert families == set(registry.FAMILIES)
    for name in registry.EXAMPLES:
        metric = registry.parse_metric(name)
        assert registry.parse_metric(metric.name) == metric


def test_names_whose_published_meaning_is_another_warn():
    assert "first 50,000 images" in str(registry.parse_metric("fid50k").warning)
    assert "fid50k_full takes every image" in str(registry.parse_metric("fid50k").warning)
    assert "random weights" in str(registry.parse_metric("rfid50k_full").warning)
    assert all(
        registry.parse_metric(name).warning is None for name in ("fid50k_full", "pr50k3_full", "is50k")
    )


def test_lists():
    assert [m.name for m in registry.parse_list("fid50k_full, is50k,fid50000_full")] == [
        "fid50k_full",
        "is50k",
    ]
    assert registry.parse_list("none") == registry.parse_list("") == registry.parse_list([]) == []
