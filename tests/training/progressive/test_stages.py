# SPDX-License-Identifier: Apache-2.0
"""Schedules: configurations of stages, plans at full size against the published parameter counts, what
lineage records.
"""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.parity.fill import GOLDENS
from training.generator import build_stem
from training.progressive import plan, recipe, stages
from training.progressive.recipe import Recipe, Stage
from training.progressive.stages import Override, Schedule, Upsampled
from training.run import plan as run_plan


def whole(name: str, *overrides: Override) -> Schedule:
    source = recipe.load(name)
    return Schedule(source, "", overrides, tuple(s.resolution for s in source.stages))


@pytest.mark.parametrize(
    ("name", "golden"),
    [("imagenet256", "imagenet_t_syn10"), ("cifar10", "cifar10_r_syn6"), ("ffhq256", "ffhq_syn6")],
)
def test_full_size_parameters_of_every_stage(name, golden):
    info = json.loads((GOLDENS / f"structure_{golden}.json").read_text())
    generators = plan.plan_generators(whole(name), info["c_dim"])
    for G, published in zip(generators, info["stages"], strict=True):
        assert (G.img_resolution, G.num_ws) == (published["img_resolution"], published["num_ws"])
        # the published class table has 1000 rows whatever the data; here one per class
        rows = G.mapping.embed.weight.numel() if hasattr(G.mapping, "embed") else 0
        assert (
            sum(p.numel() for p in G.parameters()) - rows
            == published["params"]["total"] - published["params"]["mapping_embed"]
        )
        if published["stage"] == "superres":
            assert (
                sum(p.numel() for p in G.parameters() if p.requires_grad) == published["params"]["head_only"]
            )
        names = [layer["name"] for layer in published["layers"]]
        assert ["input", *G.synthesis.layer_names][-len(names) :] == names


def test_the_tables_of_ffhq_1024_and_image_net_1024_can_be_planned():
    for name, c_dim in (("ffhq1024", 0), ("imagenet1024", 1000)):
        assert plan.plan_generators(whole(name), c_dim)[-1].img_resolution == 1024


def test_overrides_apply_to_their_stages_in_order():
    schedule = whole("demo64", Override({"kimg": 3.0}), Override({"kimg": 9.0, "glr": 0.1}, (32,)))
    configs = {s.resolution: schedule.config(s, Path("f")) for s in schedule.stages}
    assert {r: c.run.kimg for r, c in configs.items()} == {16: 3.0, 32: 9.0, 64: 3.0}
    assert configs[64].generator.path_stem == "f/stage-032x032" and configs[64].generator.up_factor == 2
    assert not configs[16].generator.superres and configs[16].data.resolution == 16
    assert stages.from_json(json.loads(json.dumps(schedule.to_json()))).to_json() == json.loads(
        json.dumps(schedule.to_json())
    )
    with pytest.raises(ValueError, match=r"stage 32: --batch=15 is not a multiple"):
        whole("demo64", Override({"batch": 15, "gpus": 2}, (32,))).config(schedule.stages[1])


def test_a_pattern_names_a_data_set_per_stage():
    schedule = Schedule(whole("demo64").recipe, "data/emoji{res}.zip", (), (16, 32))
    assert [schedule.config(s).data.path for s in schedule.stages] == ["data/emoji16.zip", "data/emoji32.zip"]


def test_part_of_a_schedule_needs_a_stem(tmp_path):
    schedule = Schedule(whole("demo64").recipe, "", (), (32, 64))
    with pytest.raises(
        ValueError, match="stage 32 needs the network of stage 16, which is not yet: pass --path_stem"
    ):
        plan.check_stems(schedule, None, 9)
    with pytest.raises(ValueError, match=r"stage 16 of demo64 is a stem itself"):
        whole("demo64", Override({"path_stem": "x.pkl"}, (16,))).config(schedule.recipe.stages[0])


@pytest.mark.parametrize(("text", "selected"), [(None, (16, 32, 64)), ("64", (64,)), ("64, 16", (16, 64))])
def test_selected_stages(text, selected):
    assert stages.parse_selected(text, whole("demo64").recipe) == selected
    with pytest.raises(ValueError, match=r"'48' is not a stage of recipe demo64; its stages are 16, 32, 64"):
        stages.parse_selected("16,48", whole("demo64").recipe)
    with pytest.raises(ValueError, match="'²' is not a stage of recipe demo64"):
        stages.parse_selected("²", whole("demo64").recipe)


def test_differences_name_what_changed():
    a = Recipe("x", "", None, None, (Stage(16, {"kimg": 3.0, "metrics": ("m",)}),))
    assert (
        stages.differences(
            a, Recipe("x", "other words", None, None, (Stage(16, {"kimg": 3.0, "metrics": ["m"]}),))
        )
        == ""
    )
    assert (
        stages.differences(a, Recipe("x", "", None, None, (Stage(16, {"kimg": 4.0, "metrics": ("m",)}),)))
        == "stage 16: kimg 3.0 against 4.0"
    )
    assert stages.differences(a, Recipe("x", "", None, None, (Stage(32, {}),))) == "stages 16 against 32"
    assert "final_metric" in stages.differences(a, Recipe("x", "", None, "m", a.stages))


def test_time_comes_from_measurements_of_this_stage_alone():
    row = recipe.Speed("demo64", 32, "a CPU", 2, 16, 16, 86.4, "abc", "command")
    schedule = whole("demo64", Override({"kimg": 1000.0}))
    planned = {p.stage.resolution: p for p in plan.plan(schedule, None)}
    assert plan.time_lines(schedule, planned[32], [row])[0].startswith(
        "2.0 device-days at 86.4 s/kimg, measured on a CPU x 2"
    )
    assert plan.time_lines(schedule, planned[64], [row]) == []
    assert "not measured for this stage" in "\n".join(plan.stage_lines(planned[64], []))
    wider = whole("demo64", Override({"cmax": 32}))
    assert plan.time_lines(wider, plan.plan(wider, None)[1], [row]) == ["not measured with these overrides"]


def row(resolution: int, **parts: float) -> recipe.Speed:
    return recipe.Speed("demo64", resolution, "a CPU", 1, 16, 16, 10.0, "abc", "command", **parts)


def test_a_stages_time_includes_what_comes_with_ticks_and_snapshots():
    schedule = whole("demo64")
    first = plan.plan(schedule, None)[0]  # 16 kimg in 32 ticks, a snapshot every 8
    parts = {"sec_per_tick": 2.0, "sec_per_snapshot": 20.0, "sec_once": 30.0}
    assert row(16).seconds(first.config.run) == 160 and not row(16).is_whole
    assert row(16, **parts).seconds(first.config.run) == 160 + 28 * 2 + 4 * 20 + 30
    assert "training only" in plan.time_lines(schedule, first, [row(16)])[0]
    assert plan.time_lines(schedule, first, [row(16, **parts)])[0].startswith("5.4 device-minutes")
    assert "snapshots    4, metrics: fd_lite0_500" in "\n".join(plan.stage_lines(first, []))


def test_totals_say_images_time_and_disk_and_what_was_not_measured():
    schedule = whole("demo64")
    planned = plan.plan(schedule, None)
    parts = {"sec_per_tick": 0.0, "sec_per_snapshot": 0.0, "sec_once": 0.0}
    text = "\n".join(plan.total_lines(schedule, planned, [row(16, **parts), row(64, **parts)]))
    assert "Total   32,000 images in 3 stage(s)" in text
    assert "3.7 device-minutes on a CPU x 1, without stages 32, which were not measured" in text
    assert re.search(r"disk: at most \d+\.\d MiB for snapshots and checkpoints \(estimate\)", text)
    assert "time: not measured for any of these stages" in "\n".join(plan.total_lines(schedule, planned, []))
    patient = whole("demo64", Override({"patience": 3}))
    assert "Total   at most 32,000 images" in plan.total_lines(patient, plan.plan(patient, None), [])[0]


def test_disk_is_what_a_run_writes_at_most():
    one, all_kept = (
        plan.plan(whole("demo64", *o), None)[0]
        for o in ((Override({"keep_snapshots": 1, "metrics": ()}),), ())
    )
    saved = 2 * sum(t.numel() for t in one.generator.state_dict().values()) + sum(
        t.numel() for t in one.discriminator.saved_state_dict().values()
    )
    trained = sum(
        p.numel() for net in (one.generator, one.discriminator) for p in net.parameters() if p.requires_grad
    )
    assert one.disk == run_plan.Disk(4 * (saved + 3 * (saved + 2 * trained)), 0)
    assert all_kept.disk.run - one.disk.run == 4 * 4 * saved  # three snapshots more, and the best one


def test_upsampled_images_say_so():
    G = build_stem("stylegan3-t", 16, 2, syn_layers=4, cbase=64, cmax=4, w_dim=8, z_dim=4, margin_size=2)
    source = Upsampled(G, 64)
    z, labels = torch.randn(3, 4), torch.tensor([0, 1, 1])
    native, images = G(z, labels), source(z, labels)
    assert images.shape == (3, 3, 64, 64)
    assert torch.allclose(images.mean(dim=(2, 3)), native.mean(dim=(2, 3)), atol=0.02)
    assert source.details() == {"upsampled": {"from": 16, "to": 64, "filter": "bicubic, antialiased"}}
    assert torch.equal(Upsampled(G, 16)(z, labels), native) and Upsampled(G, 16).details() == {
        "upsampled": None
    }
