# SPDX-License-Identifier: Apache-2.0
"""gen_images.py --to: one image per seed in every container, with several processes, resumed after a kill."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import gen_images
from dnnlib.locks import Lock
from generation import bulk, containers
from image_data.npz import open_images
from tests.support import run
from tests.toy_networks import NAMES
from training.data.dataset import ImageDataset

SEEDS = list(range(3, 10))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two images, here and in the processes that get a job from here."""
    monkeypatch.setattr(bulk, "PART_IMAGES", 2)


@pytest.fixture(scope="module")
def pictures(toy_networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images by --outdir."""
    out = tmp_path_factory.mktemp("pictures")
    args = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=3-9", "--trunc=0.7"]
    run(gen_images.main, *args, "--rotate=20", "--translate=0.25,0", "--outdir", out)
    return out


def write(toy_networks: Path, target: object, *more: object, code: int = 0) -> str:
    args = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=3-9", "--trunc=0.7"]
    args += ["--rotate=20", "--translate=0.25,0", "--to", target]
    return run(gen_images.main, *args, *more, code=code).output


def images_of(path: Path) -> np.ndarray:
    dataset = ImageDataset(str(path), use_labels=False)
    return np.stack([dataset[i][0] for i in range(len(dataset))])


def test_every_container_has_the_images_of_outdir(toy_networks, pictures, tmp_path):
    write(toy_networks, tmp_path / "folder")
    names = [f"seed{seed:04d}.png" for seed in SEEDS]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == names
    expected = [(pictures / name).read_bytes() for name in names]
    assert [(tmp_path / "folder" / name).read_bytes() for name in names] == expected

    labels = [int(np.random.RandomState(seed).randint(0, 3, 1)[0]) for seed in SEEDS]
    write(toy_networks, tmp_path / "x.zip", "--gpus=2")
    dataset = ImageDataset(str(tmp_path / "x.zip"), use_labels=True)
    assert dataset.class_names == NAMES and list(dataset.labels) == labels
    pixels = images_of(tmp_path / "x.zip")
    assert (pixels == images_of(pictures)).all()

    write(toy_networks, tmp_path / "x.npz")
    rows, found = open_images(str(tmp_path / "x.npz"))
    assert rows[0].shape == (16, 16, 3) and list(found) == labels
    with np.load(tmp_path / "x.npz") as arrays:
        assert (arrays["arr_0"].transpose(0, 3, 1, 2) == pixels).all()

    write(toy_networks, tmp_path / "x-{08..10}.tar")
    shards = [tmp_path / f"x-{number}.tar" for number in ("08", "09", "10")]
    content = []
    for shard, count in zip(shards, (2, 2, 3), strict=True):
        with tarfile.open(shard) as tar:
            files = [(member.name, tar.extractfile(member).read()) for member in tar]
        assert len(files) == 2 * count
        content += files
    assert content[::2] == list(zip(names, expected, strict=True))
    assert [(name, int(text)) for name, text in content[1::2]] == [
        (f"seed{seed:04d}.cls", label) for seed, label in zip(SEEDS, labels, strict=True)
    ]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["folder", "x.zip", "x.npz", "x-{0..2}.tar"])
def test_a_kill_loses_at_most_a_part(toy_networks, tmp_path, monkeypatch, name):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    write(toy_networks, whole / name)
    real, written = containers.Parts.write, []

    def part(self, index, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        real(self, index, *rest)
        written.append(index)

    with monkeypatch.context() as patch:
        patch.setattr(containers.Parts, "write", part)
        assert "the same command resumes" in write(toy_networks, killed / name, code=1)
    assert not list(killed.glob("x*.zip")) and not list(killed.glob("x*.tar"))

    def fail(parts, labels, class_names, done):
        if parts.target.kind == "tar":
            containers._write_shards(parts, labels, lambda count: (_ for _ in ()).throw(KeyboardInterrupt))
        raise KeyboardInterrupt

    if name.startswith("x"):  # and once more while the target is written
        with monkeypatch.context() as patch:
            patch.setattr(bulk, "assemble", fail)
            write(toy_networks, killed / name, code=1)
    monkeypatch.setattr(containers.Parts, "write", lambda *args: written.append(args[1]) or real(*args))
    output = write(toy_networks, killed / name)
    assert "of 7 images are finished already" in output and "7 images in" in output
    assert len(written) == (2 if name.startswith("x") else 4) and written[:2] == [0, 1]
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(killed): path.read_bytes() for path in killed.rglob("*") if path.is_file()
    }


def test_a_target_that_exists_or_belongs_to_another_command_is_refused(toy_networks, tmp_path):
    write(toy_networks, tmp_path / "x.npz", "--seeds=1")
    assert f"{tmp_path}/x.npz exists: remove it, or choose another name" in write(
        toy_networks, tmp_path / "x.npz", code=1
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    assert "contains files: remove it" in write(toy_networks, tmp_path / "full", code=1)
    work = tmp_path / "y.zip.partial"
    work.mkdir()
    (work / "job.json").write_text('{"seeds": "0-3"}')
    assert f"{work} is of a command with another network" in write(toy_networks, tmp_path / "y.zip", code=1)
    (work / "job.json").unlink()
    lock = Lock(work / ".lock")
    assert lock.acquire()
    lock.write_holder()
    assert "writes it already" in write(toy_networks, tmp_path / "y.zip", code=1)
    lock.release()
    (work / "part-0000000.tar").write_bytes(b"of a target that was finished")
    assert "7 images in" in write(toy_networks, tmp_path / "y.zip")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--to=x.zip", "--outdir=x"], "give either --outdir=DIR, or --to="),
        ([], "give either --outdir=DIR, or --to="),
        (["--to=x.zip", "--scale=2"], "remove --grid, --classes, --batch-sz and --scale"),
        (["--to=x.zip", "--batch-sz=2"], "--to writes one image per seed"),
        (["--outdir=x", "--gpus=2"], "--gpus=2 needs --to in place of --outdir"),
        (["--to=x.zip", "--seeds=1,1"], "--seeds: with --to every seed may be given only once"),
        (["--to=x-{0..7}.tar"], "has 8 shards for 7 images"),
        (["--to=x-{7..0}.tar"], "write shards as NAME-{000000..000099}.tar"),
        (["--to=x-{0..7}.zip"], "write shards as NAME-{000000..000099}.tar"),
        (["--to=x.png"], "--to=x.png: give a folder, NAME.zip"),
        (["--to=https://host/x.zip"], "--to=https://host/x.zip is a URL"),
        (["--to=x.zip", "--class=dog"], "unknown class 'dog'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(toy_networks, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    args = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=0-6", *more]
    output = run(gen_images.main, *args, code=1).output
    assert message in output and len(output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_scale_repeats_pixels(toy_networks, tmp_path):
    from tests.support import read_pixels

    args = ["--network", toy_networks / "cond.pkl", "--device=cpu"]
    for name, more in (
        ("seed0004.png", ["--seeds=4"]),
        ("grid.png", ["--seeds=0-3", "--grid=2x2"]),
        ("classes.png", ["--seeds=0", "--classes=all", "--samples-per-class=2", "--scale=2"]),
    ):
        run(gen_images.main, *args, *more, "--outdir", tmp_path / "a")
        run(gen_images.main, *args, *more, "--outdir", tmp_path / "b", "--scale=4")
        small, large = read_pixels(tmp_path / "a" / name), read_pixels(tmp_path / "b" / name)
        factor = 2 if name == "classes.png" else 4
        cells = large[:, -2 * 64 :] if name == "classes.png" else large
        small = small[:, -2 * 32 :] if name == "classes.png" else small
        assert (cells[::factor, ::factor] == small).all()
