# SPDX-License-Identifier: Apache-2.0
"""gen_video.py on small networks."""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

import gen_images
import gen_video
from generation import render, walk
from generation import video as videos
from tests import waiting
from tests.quick_processes import Script
from tests.support import read_pixels as pixels
from tests.support import run


@pytest.fixture
def folder(toy_networks: Path) -> Path:
    return toy_networks


def video(folder: Path, out: Path, *args: object, network: str = "cond", code: int = 0):
    return run(
        gen_video.main,
        "--network",
        folder / f"{network}.pkl",
        "--device=cpu",
        "--output",
        out,
        *args,
        code=code,
    )


def read(path: Path) -> list[np.ndarray]:
    with PIL.Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            found.append(np.asarray(image.convert("RGB")))
    return found


def test_keyframes_are_the_images_of_gen_images_and_the_loop_closes(folder, tmp_path):
    video(folder, tmp_path / "v.png", "--seeds=3,5,8", "--class=1", "--w-frames=4", "--trunc=0.8")
    found = read(tmp_path / "v.png")
    assert len(found) == 12
    run(
        gen_images.main,
        "--network",
        folder / "cond.pkl",
        "--seeds=3,5,8",
        "--class=1",
        "--trunc=0.8",
        "--device=cpu",
        "--outdir",
        tmp_path,
    )
    for keyframe, seed in enumerate((3, 5, 8)):
        assert np.abs(found[4 * keyframe].astype(int) - pixels(tmp_path / f"seed{seed:04d}.png")).max() <= 1
    steps = [np.abs(a.astype(int) - b).mean() for a, b in zip(found, found[1:] + found[:1], strict=True)]
    assert 0 < max(steps) < 4 * np.mean(steps)  # also from the last frame to the first


def test_a_range_of_classes_and_a_grid_with_a_comma_are_those_of_the_published_commands(folder, tmp_path):
    video(folder, tmp_path / "a.png", "--seeds=0-3", "--class=0-1", "--grid=2,1", "--w-frames=1")
    video(folder, tmp_path / "b.png", "--seeds=0,1,2,3", "--classes=cat,1", "--grid=2x1", "--w-frames=1")
    assert all(
        (a == b).all() for a, b in zip(read(tmp_path / "a.png"), read(tmp_path / "b.png"), strict=True)
    )


def test_grids_and_formats(folder, tmp_path):
    for ending in ("gif", "webp"):
        video(
            folder,
            tmp_path / f"v.{ending}",
            "--seeds=0-3",
            "--grid=2x1",
            "--w-frames=2",
            "--fps=10",
            network="uncond",
        )
        found = read(tmp_path / f"v.{ending}")
        assert len(found) == 4 and found[0].shape == (16, 32, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.gif", "v.webp"]


def delays(path: Path) -> list[int]:
    """Milliseconds of every frame of a file."""
    with PIL.Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            found.append(round(image.info["duration"]))
    return found


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
@pytest.mark.parametrize("fps", [1, 24, 30, 50, 60, 100, 120])
def test_pictures_last_as_long_as_is_printed(folder, tmp_path, ending, fps):
    """Browsers show a GIF's delays below 20 ms, and others below 11 ms, for 100 ms; files round delays."""
    path = tmp_path / f"v.{ending}"
    result = video(folder, path, "--seeds=0-2", "--w-frames=6", "--fps", fps, network="uncond")
    found = delays(path)
    shortest, unit = (20, 10) if ending == "gif" else (11, 1)
    assert abs(sum(found) - 18_000 / fps) <= unit / 2 and min(found) >= shortest
    every = {60: 2, 100: 2, 120: 3}.get(fps, 1) if ending == "gif" else {100: 2, 120: 2}.get(fps, 1)
    printed = f"{18 // every} frames, {sum(found) / 1000:g} seconds"
    assert printed.removesuffix(" seconds") in result.output
    assert ("browsers slow down" in result.output) == (every > 1)
    if ending != "webp":  # whose encoder makes one frame of two that look alike
        assert len(found) == 18 // every and max(found) - min(found) <= unit


def test_of_a_fast_video_every_second_frame_is_shown(folder, tmp_path):
    video(folder, tmp_path / "all.png", "--seeds=0-2", "--w-frames=4", "--fps=60", network="uncond")
    video(folder, tmp_path / "half.png", "--seeds=0-2", "--w-frames=4", "--fps=120", network="uncond")
    every, half = read(tmp_path / "all.png"), read(tmp_path / "half.png")
    assert len(every) == 12 and len(half) == 6
    assert all((a == b).all() for a, b in zip(half, every[::2], strict=True))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 121])
@pytest.mark.parametrize("fps", [7, 29, 60, 119, 120])
@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4"])
def test_timing_of_any_length(total, fps, ending):
    unit, shortest = videos.DELAYS.get(ending, (1, 0))
    plan = videos.timing(total, fps, ending)
    assert len(plan.frames) == len(plan.milliseconds) >= 1 and plan.frames[0] == 0 and plan.frames[-1] < total
    assert min(plan.milliseconds) >= shortest and all(delay % unit == 0 for delay in plan.milliseconds)
    assert abs(sum(plan.milliseconds) - max(1000 * total / fps, shortest)) <= unit / 2 + 0.5
    if ending == ".mp4":
        assert plan.frames == list(range(total))


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_a_picture_that_stands_still(folder, tmp_path, ending):
    path = tmp_path / f"v.{ending}"
    result = video(folder, path, "--seeds=0", "--w-frames=50", "--fps=25", network="uncond")
    assert "50 frames, 2.0 seconds" in result.output and "does not move" in result.output
    assert len(read(path)) == 1  # frames that are alike are one


def test_an_animated_png_says_what_it_shows(folder, tmp_path):
    video(folder, tmp_path / "v.png", "--seeds=3,5", "--class=2", "--w-frames=2", "--trunc=0.7")
    text = PIL.Image.open(tmp_path / "v.png").text
    assert text["seeds"] == "3,5" and text["class"] == "2" and text["truncation"] == "0.7"
    assert text["network"] == "cond.pkl" and len(text["network_sha256"]) == 64


def test_mp4(folder, tmp_path):
    av = pytest.importorskip("av")
    video(
        folder,
        tmp_path / "v.mp4",
        "--seeds=0,1",
        "--grid=2x1",
        "--num-keyframes=2",
        "--w-frames=5",
        "--fps=25",
    )
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (32, 16, 25)
        assert len(list(container.decode(video=0))) == 10


def test_a_video_that_the_user_does_not_name_can_be_written(monkeypatch):
    for av, ending in (
        (None, ".webp"),  # not installed, or cannot be imported
        (SimpleNamespace(codecs_available={"gif"}), ".webp"),
        (SimpleNamespace(codecs_available={"mpeg4"}), ".mp4"),
    ):
        monkeypatch.setitem(sys.modules, "av", av)
        assert videos.default_ending() == ending


def test_arrangement():
    assert videos.arrange(4, 2, None, None).tolist() == [[0, 1], [2, 3]]
    assert videos.arrange(3, 2, 2, None).tolist() == [[0, 1], [2, 0]]
    shuffled = videos.arrange(20, 2, None, 1)
    assert sorted(shuffled.ravel()) == list(range(20)) and shuffled.ravel().tolist() != list(range(20))
    assert (shuffled == videos.arrange(20, 2, None, 1)).all()


@pytest.mark.parametrize(
    ("args", "name", "message"),
    [
        (["--seeds=0-4", "--grid=2x1"], "v.gif", "5 keyframes cannot be divided evenly among 2 grid cells"),
        (["--seeds=0"], "v.avi", "supported extensions are .mp4"),
        (["--seeds=0", "--class=9"], "v.gif", "class 9: the network's classes are 0 to 2"),
        (["--seeds=0", "--trunc=inf"], "v.gif", "--trunc=inf is not a finite number"),
        (["--seeds=0", "--grid=2"], "v.gif", "--grid=2: write columns x rows"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, tmp_path, args, name, message):
    result = video(folder, tmp_path / name, *args, code=1)
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_videos_beyond_memory_are_refused(folder, tmp_path, monkeypatch):
    network = ["--network", folder / "uncond.pkl", "--device=cpu", "--output"]
    for name, args, message in (
        (
            "a.gif",
            ["--seeds=0-3", "--num-keyframes=1000000000"],
            "--num-keyframes=1000000000: 1 cells would have more than",
        ),
        (
            "a.gif",
            ["--seeds=0-3", "--w-frames=1000000000"],
            "4,000,000,000 frames, but at most 10,000,000 are allowed",
        ),
        (
            "a.gif",
            ["--seeds=0-3", "--grid=1000x1200", "--num-keyframes=1"],
            "--grid=1000x1200: 1,200,000 images of 16x16 pixels",
        ),
        ("a.gif", ["--seeds=0-3", "--grid=100000x100000"], "--seeds: 4 keyframes cannot be divided"),
    ):
        result = run(gen_video.main, *network, tmp_path / name, *args, code=1)
        assert message in result.output and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(walk, "seed_styles", lambda *args: pytest.fail("keyframes before the check"))
    monkeypatch.setattr(videos.memory, "host_free_bytes", lambda: 2**20)
    result = run(gen_video.main, *network, tmp_path / "a.webp", "--seeds=0-3", "--w-frames=1000", code=1)
    assert (
        "4,000 frames of 1 cells with 4 keyframes take 0.0 GiB" in result.output
        and "write .mp4 or .gif" in result.output
    )
    monkeypatch.setattr(videos.memory, "host_free_bytes", lambda: 2**10)
    run(gen_video.main, *network, tmp_path / "a.gif", "--seeds=0-3", "--w-frames=2", code=1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_no_file(folder, tmp_path, monkeypatch):
    def broken(network, ws, noise_mode="const"):
        raise ValueError("the network returned NaN or Inf")

    monkeypatch.setattr(render, "synthesize", broken)
    video(folder, tmp_path / "v.gif", "--seeds=0,1", "--w-frames=2", code=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["v.gif", "v.mp4"])
def test_a_stopped_video_leaves_no_file(folder, tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    network = f"--network={folder / 'uncond.pkl'}"
    arguments = [network, "--seeds=0-15", "--w-frames=100000", "--device=cpu", f"--output={tmp_path / name}"]
    process = Script(gen_video.__file__, arguments, split=True)
    waiting.until(lambda: any(tmp_path.iterdir()), process)
    assert process.poll() is None and [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    process.send_signal(signal.SIGTERM)
    ((_, output),) = waiting.finish(process)
    assert process.returncode == 1 and "Traceback" not in output and not list(tmp_path.iterdir())
