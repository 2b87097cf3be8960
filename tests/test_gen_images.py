# SPDX-License-Identifier: Apache-2.0
"""gen_images.py and gen_class_samplesheet.py on small networks."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import dnnlib.util
import gen_class_samplesheet
import gen_images
from generation import pictures, render
from tests import file_server, memory_limit
from tests.support import read_pixels as pixels
from tests.support import run
from tests.toy_networks import NAMES
from torch_utils.images import to_uint8
from training.networks.reader import load


@pytest.fixture
def folder(toy_networks: Path) -> Path:
    return toy_networks


def generate(folder: Path, out: Path, *args: object, network: str = "cond") -> Path:
    run(gen_images.main, "--network", folder / f"{network}.pkl", "--device", "cpu", "--outdir", out, *args)
    return out


def test_a_seed_is_numpys_random_state(folder, tmp_path):
    out = generate(folder, tmp_path, "--seeds=7,12", "--class=2")
    G = load(str(folder / "cond.pkl"))
    for seed in (7, 12):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim))
        with torch.no_grad():
            expected = to_uint8(G(z, torch.tensor([2])))[0].permute(1, 2, 0).numpy()
        assert (pixels(out / f"seed{seed:04d}.png") == expected).all()
    assert sorted(path.name for path in out.iterdir()) == ["seed0007.png", "seed0012.png"]
    assert pixels(out / "seed0007.png").std() > 10


@pytest.mark.parametrize("network", ["cond", "uncond"])
def test_the_same_seed_gives_the_same_image_in_any_company(folder, tmp_path, network):
    together = generate(folder, tmp_path / "a", "--seeds=0-4", "--batch=5", network=network)
    for options in (["--seeds=3", "--batch=1"], ["--seeds=3,9", "--batch=2"]):
        alone = generate(folder, tmp_path / "b", *options, network=network)
        assert (alone / "seed0003.png").read_bytes() == (together / "seed0003.png").read_bytes()


def test_precision(folder, tmp_path):
    exact = pixels(generate(folder, tmp_path / "a", "--seeds=3") / "seed0003.png").astype(int)
    reduced = pixels(
        generate(folder, tmp_path / "b", "--seeds=3", "--precision=bf16") / "seed0003.png"
    ).astype(int)
    assert 0 < np.abs(reduced - exact).mean() < 3
    network = render.load_network(str(folder / "cond.pkl"))
    for saved, asked, wanted in [
        (torch.float16, "auto", None),  # drawn on a CPU
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, "fp32", None),
        (None, "fp16", torch.float16),
    ]:
        network.G.synthesis.reduced_dtype = saved
        render.set_precision(network.G, asked)
        assert network.G.synthesis.reduced_dtype is wanted


def test_labels_without_class_are_random_states_too(folder, tmp_path):
    seed = next(s for s in range(20) if np.random.RandomState(s).randint(0, 3, 1)[0] == 2)
    free = pixels(generate(folder, tmp_path / "a", f"--seeds={seed}") / f"seed{seed:04d}.png")
    images = [
        pixels(generate(folder, tmp_path / "b", f"--seeds={seed}", f"--class={c}") / f"seed{seed:04d}.png")
        for c in range(3)
    ]
    assert (free == images[2]).all() and not (free == images[0]).all()


def test_class_by_name_index_and_range(folder):
    network = render.load_network(str(folder / "cond.pkl"))
    assert render.class_indices(network, "0,1-2, CAT,red-panda,Grinning face") == [0, 1, 2, 0, 2, 1]
    assert render.class_indices(network, "all") == [0, 1, 2]


def test_several_images_per_seed_are_tiled(folder, tmp_path):
    picture = pixels(generate(folder, tmp_path, "--seeds=5", "--batch-sz=3", "--class=1") / "seed0005.png")
    assert picture.shape == (32, 32, 3)
    network = render.load_network(str(folder / "cond.pkl"))
    z = torch.from_numpy(np.random.RandomState(5).randn(3, network.G.z_dim).astype(np.float32))
    expected = render.render(network, z, torch.tensor([1, 1, 1])).permute(0, 2, 3, 1).numpy()
    assert (picture[:16, :16] == expected[0]).all() and (picture[16:, :16] == expected[2]).all()
    assert not picture[16:, 16:].any()


def test_grid_holds_the_seeds_in_reading_order(folder, tmp_path):
    out = generate(folder, tmp_path, "--seeds=0-5", "--class=cat")
    grid = pixels(generate(folder, tmp_path, "--seeds=0-5", "--class=cat", "--grid=3x2") / "grid.png")
    assert grid.shape == (32, 48, 3)
    for seed in range(6):
        row, column = divmod(seed, 3)
        assert (
            grid[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
            == pixels(out / f"seed{seed:04d}.png")
        ).all()


def test_class_sheet_cells_are_the_seeds_images(folder, tmp_path):
    out = generate(folder, tmp_path, "--seeds=4", "--classes=cat,2", "--samples-per-class=3")
    sheet = pixels(out / "classes.png")
    factor = 2  # cells below 24 pixels are magnified to leave room for the labels
    cells = sheet[:, -3 * 16 * factor :][::factor, ::factor]
    assert sheet.shape[1] > 3 * 16 * factor
    for row, index in enumerate((0, 2)):
        for column, seed in enumerate((4, 5, 6)):
            image = pixels(
                generate(folder, tmp_path / "single", f"--seeds={seed}", f"--class={index}")
                / f"seed{seed:04d}.png"
            )
            assert (cells[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] == image).all()


def test_published_sheet_command(folder, tmp_path):
    args = (
        "--network",
        folder / "cond.pkl",
        "--classes=0-2",
        "--outdir",
        tmp_path,
        "--samples-per-class=4",
        "--grid-width=6",
        "--device=cpu",
    )
    run(gen_class_samplesheet.main, *args, "--desc=x")
    sheet = pixels(tmp_path / "sheet-x.png")
    assert sheet.shape[0] == 2 * 16 * 2
    last = sheet[32:64:2, -16 * 2 :: 2]
    expected = pixels(generate(folder, tmp_path, "--seeds=45", "--class=2") / "seed0045.png")
    assert (last == expected).all()


def test_truncation_to_zero_is_the_class_mean(folder, tmp_path):
    out = generate(folder, tmp_path, "--seeds=0,1", "--class=1", "--trunc=0")
    assert (pixels(out / "seed0000.png") == pixels(out / "seed0001.png")).all()
    G = load(str(folder / "cond.pkl"))
    with torch.no_grad():
        expected = (
            to_uint8(G.synthesis(G.mapping.w_avg[1].repeat(1, G.num_ws, 1)))[0].permute(1, 2, 0).numpy()
        )
    assert (pixels(out / "seed0000.png") == expected).all()


def test_centroids_pull_towards_the_nearest(folder, tmp_path):
    G = load(str(folder / "cond.pkl"))
    z, c = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(0)), torch.tensor([0])
    ws = G.mapping(z, c)
    near, far = ws[0, 0] + 0.1, ws[0, 0] + 5
    found = render.styles(G, z, c, 0.5, torch.stack([far, near]))
    torch.testing.assert_close(found, (ws + near) / 2)
    np.save(tmp_path / "c.npy", torch.stack([far, near]).numpy())
    generate(folder, tmp_path, "--seeds=0", "--trunc=0.5", "--centroids-path", tmp_path / "c.npy")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 7)))
    with pytest.raises(ValueError, match=r"wrong\.npy: expected numbers \[K, 512\], got float64 \[3, 7\]"):
        render.load_centroids(str(tmp_path / "wrong.npy"), 512)


def test_centroids_come_from_addresses_and_bad_ones_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    np.save(tmp_path / "c.npy", np.ones((3, 7)))
    good = (tmp_path / "c.npy").read_bytes()
    with file_server.running() as server:
        server.answers["/c.npy"] = b"<html>"
        with pytest.raises(
            ValueError, match=rf"--centroids-path={server.root}/c\.npy: not a \.npy array .*is removed"
        ):
            render.load_centroids(f"{server.root}/c.npy", 7)
        server.answers["/c.npy"] = good
        assert render.load_centroids(f"{server.root}/c.npy", 7).shape == (3, 7)
    assert render.load_centroids((tmp_path / "c.npy").as_uri(), 7).shape == (3, 7)
    (tmp_path / "huge.npy").write_bytes(good.replace(b"(3, 7)", b"(999999999, 7)"))
    (tmp_path / "page.npy").write_bytes(b"<html>")
    np.save(tmp_path / "nan.npy", np.full((3, 7), np.nan))
    np.save(tmp_path / "text.npy", np.full((3, 7), "a"))
    for name in ("huge", "page", "nan", "text", "none"):
        with (
            memory_limit.limited(300),
            pytest.raises(
                (ValueError, OSError), match=rf"^--centroids-path={tmp_path}/{name}\.npy: "
            ) as error,
        ):
            render.load_centroids(str(tmp_path / f"{name}.npy"), 7)
        assert "\n" not in str(error.value)


def test_translate_and_rotate_move_the_picture(folder, tmp_path):
    still = pixels(generate(folder, tmp_path / "a", "--seeds=0", "--class=0") / "seed0000.png").astype(float)
    right = pixels(
        generate(folder, tmp_path / "b", "--seeds=0", "--class=0", "--translate=0.25,0") / "seed0000.png"
    ).astype(float)
    turned = pixels(
        generate(folder, tmp_path / "c", "--seeds=0", "--class=0", "--rotate=90") / "seed0000.png"
    ).astype(float)

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a[4:12, 4:12] - b[4:12, 4:12]).mean())

    shifted = np.roll(still, 4, axis=1)
    assert difference(right, shifted) < 0.3 * difference(right, still)
    assert difference(right, shifted) < 0.3 * difference(right, np.roll(still, -4, axis=1))
    # a -t network is not exactly equivariant to rotation, but anticlockwise it is, roughly
    assert difference(turned, np.rot90(still)) < min(
        difference(turned, np.rot90(still, -1)), difference(turned, still)
    )


def test_class_names_from_a_data_set(folder, tmp_path):
    from tests.toy_data import write_dataset

    data = write_dataset(tmp_path / "data.zip", class_names=["x", "y", "z"])
    network = render.load_network(str(folder / "nameless.pkl"), data=str(data))
    assert render.class_index(network, "y") == 1 and network.label_text(2) == "2 z"
    assert render.load_network(str(folder / "nameless.pkl")).class_names is None


def test_the_network_of_a_run_folder_is_its_best(folder, tmp_path):
    for name, source in (("network-snapshot.pkl", "uncond.pkl"), ("best_model.pkl", "cond.pkl")):
        (tmp_path / name).write_bytes((folder / source).read_bytes())
        network = render.load_network(str(tmp_path))
        assert network.path == str(tmp_path / name) and network.G.c_dim == (3 if source == "cond.pkl" else 0)


def text_of(path: Path) -> dict[str, str]:
    with PIL.Image.open(path) as image:
        return {**image.text}


def test_every_png_says_how_it_was_made(folder, tmp_path):
    sha256 = hashlib.sha256((folder / "cond.pkl").read_bytes()).hexdigest()
    common = {"Software": "StyleSAN-XL", "network": "cond.pkl", "network_sha256": sha256}
    centres = tmp_path / "centres.npy"
    np.save(centres, np.zeros((2, 512), np.float32))
    generate(folder, tmp_path, "--seeds=7", "--class=2", "--trunc=0.7", "--centroids-path", centres)
    own = {"seed": "7", "class": "2", "class_name": "red-panda", "truncation": "0.7"}
    assert text_of(tmp_path / "seed0007.png") == {**common, **own, "centroids": "centres.npy"}
    generate(folder, tmp_path, "--seeds=5", "--batch-sz=4", "--rotate=90", "--translate=0.5,0")
    drawn = np.random.RandomState(5).randint(0, 3, 4).tolist()
    found = text_of(tmp_path / "seed0005.png")
    assert dnnlib.util.parse_int_list(found.pop("classes")) == drawn
    own = {"seed": "5", "truncation": "1", "images_per_seed": "4", "rotate": "90.0", "translate": "0.5,0"}
    assert {**found, "truncation": f"{float(found['truncation']):g}"} == {**common, **own}
    generate(folder, tmp_path, "--seeds=0-3", "--grid=2x2", "--class=cat")
    found = text_of(tmp_path / "grid.png")
    assert (found["seeds"], found["class_name"], found["grid"]) == ("0-3", "cat", "2x2")
    generate(folder, tmp_path, "--seeds=4", "--classes=all", "--samples-per-class=2")
    found = text_of(tmp_path / "classes.png")
    assert (found["seeds"], found["classes"]) == ("4-5", "0-2")
    args = ["--network", folder / "cond.pkl", "--device=cpu", "--classes=2,0", "--outdir", tmp_path]
    run(gen_class_samplesheet.main, *args, "--samples-per-class=1")
    found = text_of(tmp_path / "sheet.png")
    assert (found["seed"], found["classes"], found["network_sha256"]) == ("42", "2,0", sha256)
    for path in tmp_path.glob("*.png"):
        assert str(tmp_path) not in str(text_of(path)) and str(folder) not in str(text_of(path))


def test_a_picture_names_the_network_of_a_run_folder_or_an_address(folder, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(folder / "uncond.pkl", tmp_path / "run" / "best_model.pkl")
    address = (folder / "uncond.pkl").as_uri()
    for network, name in ((tmp_path / "run", "best_model.pkl"), (address, "uncond.pkl")):
        run(gen_images.main, "--network", network, "--device=cpu", "--seeds=1", "--outdir", tmp_path)
        found = text_of(tmp_path / "seed0001.png")
        assert found["network"] == name and found["seed"] == "1" and "class" not in found
        assert found["network_sha256"] == hashlib.sha256((folder / "uncond.pkl").read_bytes()).hexdigest()


def test_labels_of_classes_that_are_called_by_their_number():
    network = render.Network("x", None, {}, {}, ["0", "1", "seven", "03", ""])
    assert [network.label_text(i) for i in range(6)] == ["0", "1", "2 seven", "3 03", "4", "5"]


def test_a_row_of_several_classes_names_them():
    network = render.Network("x", None, {}, {}, list("abcdefg"))
    rows = [render._row_label(network, classes) for classes in ([3], [1, 2], [1, 2, 3], [5, 1, 2])]
    assert rows == ["3 d", "1 b, 2 c", "1 b to 3 d", "5 f, 1 b, 2 c"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds=0-1000000000"], "--seeds: '0-1000000000' contains more than 2,000,000 integers"),
        (["--seeds", "9" * 5000], f"--seeds: cannot parse '{'9' * 40}'"),
        (["--seeds=0", "--grid=100000x100000"], "--grid=100000x100000 has 10000000000 cells"),
        (["--seeds=0", f"--grid={'9' * 5000}x1"], f"--grid={'9' * 40}: write columns x rows"),
        (
            ["--seeds=0-1999999", "--grid=2000000x1"],
            "--grid=2000000x1: 2,000,000 images of 16x16 pixels are too many for one picture",
        ),
        (["--seeds=0", "--batch-sz=1000000000"], "--batch-sz=1000000000: "),
        (
            ["--seeds=0", "--classes=all", "--samples-per-class=1000000000"],
            "--samples-per-class=1000000000: at most 2,000,000",
        ),
        (
            ["--seeds=0", "--classes=all", "--samples-per-class=1000000"],
            "with 1000000 images of each: 3,000,000 images",
        ),
        (["--seeds=0", "--classes=0-1000000000"], "contains more than 2,000,000 integers"),
    ],
)
def test_numbers_beyond_reason_are_one_line(folder, tmp_path, args, message):
    with memory_limit.limited(1500):
        result = run(
            gen_images.main,
            "--network",
            folder / "cond.pkl",
            "--device=cpu",
            "--outdir",
            tmp_path / "out",
            *args,
            code=1,
        )
    assert message in result.output and len(result.output) < 400 and not list(tmp_path.rglob("*.png"))


def test_sheets_beyond_reason_are_one_line(folder, tmp_path):
    for count, message in (
        (10**9, "at most 2,000,000"),
        (10**6, "3,000,000 images of 16x16 pixels are too many"),
    ):
        args = [
            "--network",
            folder / "cond.pkl",
            "--device=cpu",
            "--classes=all",
            "--outdir",
            tmp_path / "out",
        ]
        result = run(gen_class_samplesheet.main, *args, f"--samples-per-class={count}", code=1)
        assert message in result.output and not list(tmp_path.rglob("*.png"))


def test_a_large_batch_takes_no_more_memory_than_a_picture(folder, tmp_path, monkeypatch):
    """--batch is for GPUs; what is held before it is written must not grow with it."""
    monkeypatch.setattr(pictures.images, "MAX_PICTURE_PIXELS", 2 * 16 * 16)
    rendered = []
    real = pictures.render_seeds
    monkeypatch.setattr(
        pictures,
        "render_seeds",
        lambda network, seeds, *rest, **kwargs: (
            rendered.append(len(seeds)) or real(network, seeds, *rest, **kwargs)
        ),
    )
    generate(folder, tmp_path, "--seeds=0-4", "--batch=1000000000")
    assert rendered == [2, 2, 1]


def test_of_many_classes_the_nearest_name_is_told(folder):
    network = render.load_network(str(folder / "cond.pkl"))
    network.G.c_dim, network.class_names = 30, [*NAMES, *(f"class {i}" for i in range(27))]
    with pytest.raises(ValueError, match=r"unknown class 'cot'; the closest of 30 names is 'cat' \(0\)"):
        render.class_index(network, "cot")
    network.G.c_dim, network.class_names = (
        6,
        ["smileys-emotion", "people-body", "food", "travel", "objects", "caf\u00e9"],
    )
    for text, near in (
        ("smileys", r"is 'smileys-emotion' \(0\)$"),
        ("fod", r"is 'food' \(2\)$"),
        ("object", r"is 'objects' \(4\)$"),
        ("e", r"are 'smileys-emotion' \(0\), 'people-body' \(1\), 'travel' \(3\)$"),
    ):
        with pytest.raises(ValueError, match=rf"unknown class '{text}'; the closest of 6 names {near}"):
            render.class_index(network, text)
    everything = "the classes are 0 smileys-emotion, 1 people-body, 2 food, 3 travel, 4 objects, 5 caf\u00e9$"
    with pytest.raises(ValueError, match=f"unknown class 'xylophone'; {everything}"):
        render.class_index(network, "xylophone")
    assert render.class_index(network, "CAFE\u0301") == 5  # the other spelling of the accent


def test_no_name_is_suggested_that_is_not_similar(folder):
    network = render.load_network(str(folder / "cond.pkl"))
    network.G.c_dim, network.class_names = 10, [str(digit) for digit in range(10)]
    with pytest.raises(ValueError, match=r"unknown class 'three'; the classes are 0 to 9$"):
        render.class_index(network, "three")
    network.G.c_dim, network.class_names = 30, [f"n{i:08d}" for i in range(30)]
    with pytest.raises(ValueError, match=r"19 n00000019, \.\.\. \(0 to 29\)$"):
        render.class_index(network, "three")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--network={}/cond.pkl", "--seeds=0", "--class=cot"],
            "unknown class 'cot'; the classes are 0 cat, 1 grinning face, 2 red-panda",
        ),
        (["--network={}/cond.pkl", "--seeds=0", "--class=3"], "class 3: the network's classes are 0 to 2"),
        (["--network={}/uncond.pkl", "--seeds=0", "--class=0"], "is unconditional"),
        (["--network={}/uncond.pkl", "--seeds=0", "--classes=all"], "is unconditional"),
        (["--network={}/nameless.pkl", "--seeds=0", "--class=cat"], "has no class names"),
        (["--network={}/none.pkl", "--seeds=0"], "no such file"),
        (
            ["--network={}", "--seeds=0"],
            "the folder contains neither best_model.pkl nor network-snapshot.pkl",
        ),
        (["--network={}/cond.pkl", "--seeds=4-2"], "--seeds: range '4-2' in '4-2' is descending"),
        (["--network={}/cond.pkl", "--seeds="], "--seeds: the list is empty"),
        (["--network={}/cond.pkl", "--seeds=4294967296"], "the largest seed is 4294967295"),
        (
            ["--network={}/cond.pkl", "--seeds=0-3", "--grid=3x2"],
            "--grid=3x2 has 6 cells, but --seeds and --batch-sz make 4 images",
        ),
        (["--network={}/cond.pkl", "--seeds=0", "--class=0-2"], "'0-2': only one class is possible here"),
        (["--network={}/cond.pkl", "--seeds=0-3", "--grid=four"], "--grid=four: write columns x rows"),
        (
            ["--network={}/cond.pkl", "--seeds=0,1", "--classes=0", "--samples-per-class=3"],
            "does not match 2 seeds",
        ),
        (["--network={}/cond.pkl", "--seeds=0", "--samples-per-class=3"], "needs --classes"),
        (["--network={}/cond.pkl", "--seeds=0", "--class=0", "--classes=0"], "remove --class and --grid"),
        (["--network={}/cond.pkl", "--seeds=0", "--translate=1"], "--translate=1: give two numbers"),
        (["--network={}/cond.pkl", "--seeds=0", "--translate=a,b"], "--translate=a,b: 'a' is not a number"),
        (["--network={}/cond.pkl", "--seeds=0", "--translate=0,inf"], "--translate=0,inf: inf is not a"),
        (["--network={}/cond.pkl", "--seeds=0", "--trunc=nan"], "--trunc=nan is not a finite number"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, tmp_path, args, message):
    result = run(
        gen_images.main,
        *(arg.format(folder) for arg in args),
        "--device=cpu",
        "--outdir",
        tmp_path / "out",
        code=1,
    )
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_network_is_one_line(tmp_path):
    (tmp_path / "n.pkl").write_bytes(b"not a pickle")
    result = run(
        gen_images.main,
        "--network",
        tmp_path / "n.pkl",
        "--seeds=0",
        "--outdir",
        tmp_path / "out",
        "--device=cpu",
        code=1,
    )
    assert "n.pkl" in result.output and len(result.output.strip().splitlines()) == 1


def test_style_codes_are_written_and_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = generate(folder, tmp_path / "a", "--seeds=7,12", "--trunc=0.7", "--save-w=w.npz")
    stored = np.load("w.npz")["w"]
    network = render.load_network(str(folder / "cond.pkl"))
    assert stored.shape == (2, network.G.num_ws, network.G.w_dim) and stored.dtype == np.float32
    flags = ["--network", folder / "cond.pkl", "--device=cpu", "--outdir", "b", "--projected-w=w.npz"]
    result = run(gen_images.main, *flags, "--seeds=1", "--trunc=0.5")
    assert "note: --seeds, --trunc have no effect with --projected-w" in result.output
    assert sorted(path.name for path in Path("b").iterdir()) == ["proj00.png", "proj01.png"]
    for row, seed in enumerate((7, 12)):
        assert (pixels(tmp_path / "b" / f"proj{row:02d}.png") == pixels(out / f"seed{seed:04d}.png")).all()
    text = PIL.Image.open("b/proj01.png").text
    assert (
        (text["w_file"], text["w_row"]) == ("w.npz", "1") and "truncation" not in text and "seed" not in text
    )
    run(gen_images.main, *flags, "--grid=1x2", "--scale=2")
    assert pixels(tmp_path / "b" / "grid.png").shape == (64, 32, 3)
    np.savez("plain.npz", w=stored[:, 0])  # of another tool: one code for all layers
    run(gen_images.main, *flags[:-1], "--projected-w=plain.npz")
    for args, message in (
        (["--projected-w=w.npz", "--to=x"], "--projected-w makes PNG files in --outdir"),
        (["--projected-w=w.npz", "--batch-sz=2"], "--projected-w has one image per style code"),
        (
            ["--projected-w=w.npz", "--grid=3x3"],
            "--grid=3x3 has 9 cells, but --projected-w=w.npz has 2 images",
        ),
        (["--projected-w=none.npz"], "--projected-w=none.npz: no such file"),
        ([], "give --seeds=LIST, or --projected-w=FILE"),
        (["--seeds=0", "--classes=0", "--save-w=x.npz"], "remove --to and --classes"),
        (["--seeds=0", "--save-w=x.json"], "--save-w=x.json: end the name with .npz"),
    ):
        output = run(gen_images.main, *flags[:4], "new", *args, code=1).output
        assert message in output and output.count("\n") == 1, output
    assert not Path("new").exists()
