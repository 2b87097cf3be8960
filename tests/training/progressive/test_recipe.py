# SPDX-License-Identifier: Apache-2.0
"""Recipes: the shipped ones hold the published constants; mistakes in a file get one line with its line
number.
"""

import json

import pytest

from tests import memory_limit
from training.progressive import recipe
from training.progressive.recipe import Recipe

GOOD = """\
name: two
about: two small stages
classes: 3
final_metric: fd_lite0_10
options:
  batch-gpu: 8
  cond: yes
  backbones: [tf_efficientnet_lite0]
  kimg: 4
stages:
  - resolution: 16
    syn_layers: 5
  - resolution: 64
    kimg: 2.5
    up_factor: 4
    metrics: none
"""


def load(tmp_path, text: str) -> Recipe:
    path = tmp_path / "two.yaml"
    path.write_text(text)
    return recipe.load(str(path))


def test_options_go_to_all_stages_and_a_stage_wins(tmp_path):
    found = load(tmp_path, GOOD)
    assert (found.name, found.classes, found.final_metric, found.about) == (
        "two",
        3,
        "fd_lite0_10",
        "two small stages",
    )
    shared = {"batch_gpu": 8, "cond": True, "backbones": ("tf_efficientnet_lite0",)}
    assert [s.resolution for s in found.stages] == [16, 64]
    assert found.stages[0].flags == {**shared, "kimg": 4.0, "syn_layers": 5}
    assert found.stages[1].flags == {**shared, "kimg": 2.5, "up_factor": 4, "metrics": ()}
    again = recipe.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == json.loads(json.dumps(found.to_json()))


def test_a_recipe_extends_another(tmp_path):
    load(tmp_path, GOOD)
    more = tmp_path / "more.yaml"
    more.write_text("name: more\nextends: two\noptions: {kimg: 7}\nstages: [{resolution: 128, glr: 0.001}]\n")
    found = recipe.load(str(more))
    assert [s.resolution for s in found.stages] == [16, 64, 128]
    assert [s.flags["kimg"] for s in found.stages] == [7.0, 7.0, 7.0]
    assert found.stages[2].flags["cond"] is True and "syn_layers" not in found.stages[2].flags
    assert (found.name, found.classes, found.final_metric) == ("more", 3, "fd_lite0_10")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kimg: 2.5", "kmig: 2.5", r"line 14: unknown flag of train.py 'kmig': did you mean 'kimg'"),
        ("kimg: 2.5", "kimg: many", r"line 14: kimg: 'many' is not a valid float"),
        ("kimg: 2.5", "kimg: {a: [1]}", r"line 14: kimg: give a value"),
        ("classes: 3", "clases: 3", r"line 3: unknown key 'clases': did you mean 'classes'"),
        ("classes: 3", "classes: three", r"line 3: classes must be a whole number"),
        ("resolution: 64", "resolution: 16", r"line 13: from 16 to 16 pixels: a stage multiplies"),
        ("resolution: 64", "resolution: 512", r"line 13: from 16 to 512 pixels"),
        ("resolution: 64", "resolution: 48", r"line 13: resolution 48: must be a power of two"),
        ("resolution: 64", "glr: 0.1", r"a stage has no resolution"),
        ("up_factor: 4", "up_factor: 2", r"line 15: up_factor 2, but 16 to 64 pixels is 4"),
        ("up_factor: 4", "data: x.zip", r"'data' cannot be set in a recipe: pass it on the command line"),
        ("up_factor: 4", "outdir: runs", r"'outdir' cannot be set in a recipe: pass it on the command line"),
        ("up_factor: 4", "recipe: small", r"'recipe' cannot be set in a recipe: use extends"),
        ("up_factor: 4", "kimg: 3", r"line 15: 'kimg' occurs twice"),
        ("name: two", "name: a/b", r"line 1: name 'a/b' becomes part of a folder name"),
        ("  kimg: 4", "  resolution: 8", r"line 9: 'resolution' must be set for each stage"),
        ("name: two", "name: two\nextends: nothing", r"line 2: extends 'nothing'"),
        ("name: two", "name: two\nextends: two", r"line 2: extends 'two', which extends this recipe"),
        ("name: two", "name: two\nextends: ../two", r"line 2: extends '../two'"),
        (
            "about: two small stages",
            "about: !!python/object/apply:os.system [ls]",
            r"line 2: about must be a text",
        ),
        ("about: two small stages", "about: 'two", r"two.yaml is not a YAML file"),
    ],
)
def test_mistakes_name_file_and_line(old, new, message, tmp_path):
    assert old in GOOD
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "just text", "name: x", "stages: []", "stages: {a: 1}", "stages: [1]", "\x00", "[" * 5000],
)
def test_damaged_files_are_refused_in_one_line(text, tmp_path):
    with pytest.raises(ValueError, match=r"two\.yaml") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "unknown key 'a0'"),
        (LAUGHS + "\nstages: *a39", "unknown key 'a0'"),
        ("about: &a [x]\nname: [*a, *a]", "must be a text"),
        (f"stages: [&s {{resolution: 16}}{', *s' * 10_000}]", "from 16 to 16 pixels"),
        ("x" * 65_537, "larger than 65,536 bytes"),
        ("- " * 30_000, "not a YAML file"),
        ("{" * 30_000, "not a YAML file"),
        ("stages: [{resolution: 99999999999999999999}]", "must be a whole number"),
        ("\xff", "not UTF-8 text"),
    ],
)
def test_bombs_are_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "two.yaml").write_text(text, encoding="latin-1")
    with memory_limit.limited(400), pytest.raises(ValueError, match=message) as caught:
        recipe.load(str(tmp_path / "two.yaml"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_long_chain_of_recipes_is_refused(tmp_path):
    for i in range(300):
        (tmp_path / f"r{i}.yaml").write_text(f"extends: r{i + 1}\n")
    with pytest.raises(ValueError, match="more than 16 recipes extend each other"):
        recipe.load(str(tmp_path / "r0.yaml"))


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(
        ValueError,
        match="cifar10, demo64, emoji64, fashion32, ffhq1024, ffhq256, imagenet1024, imagenet256, "
        "imagenet512, small",
    ):
        recipe.find("imagenet")


PUBLISHED = {  # SPEC: resolution, batch, head layers or stem layers, kimg where published
    "imagenet1024": [
        (16, 2048, 10, None), (32, 2048, 7, None), (64, 2048, 7, None), (128, 256, 7, None), (256, 256, 7,
        11000), (512, 128, 5, None),
        (1024, 128, 5, None),
    ],
    "cifar10": [(16, 2048, 6, 300000), (32, 2048, 7, 250000)],
    "ffhq1024": [
        (16, 2048, 6, 300000), (32, 2048, 7, 175000), (64, 256, 4, 95000), (128, 256, 4, 57000), (256, 256,
        4, 11000), (512, 128, 4, 4000),
        (1024, 128, 4, 4000),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_constants(name):
    stages = recipe.load(name).stages
    for index, (stage, (resolution, batch, layers, kimg)) in enumerate(
        zip(stages, PUBLISHED[name], strict=True)
    ):
        assert (stage.resolution, stage.flags["batch"]) == (resolution, batch)
        assert stage.flags["head_layers" if index else "syn_layers"] == layers
        assert kimg is None or stage.flags["kimg"] == kimg
        assert stage.flags["mirror"] is True
    if name == "ffhq1024":
        assert [s.flags["cfg"][-1] for s in stages] == list("rrttttt")


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_is_whole(name):
    found = recipe.load(name)
    assert found.name == name and len(found.about) > 40
    assert {row.recipe for row in recipe.measured_speeds()} <= set(recipe.shipped())


def test_a_damaged_speed_table_is_named(tmp_path):
    (tmp_path / "speed.yaml").write_text("- {recipe: x, speed: 3}\n")
    with pytest.raises(ValueError, match=r"speed\.yaml: not a table of measured speeds"):
        recipe.measured_speeds(tmp_path / "speed.yaml")
