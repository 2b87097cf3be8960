# SPDX-License-Identifier: Apache-2.0
"""directions.py on a small network."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import convert
import directions
import gen_images
from generation import Network, direction_command, direction_files, direction_labels, direction_methods
from tests.support import run


@pytest.fixture(scope="module")
def made(toy_networks, tmp_path_factory) -> Path:
    """Direction files of the toy network."""
    folder = tmp_path_factory.mktemp("made")
    for method, more in (("sefa", ["--layers=1-3"]), ("pca", ["--class=0,cat"])):
        flags = ["--network", toy_networks / "cond.pkl", "--num=3", "--samples=50", "--device=cpu", *more]
        output = run(directions.main, method, *flags, "--dest", folder / f"{method}.safetensors").output
        assert "3 directions (" in output
    return folder


def test_files_contain_their_provenance(made, toy_networks):
    network = Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")
    found = direction_files.read(str(made / "sefa.safetensors"))
    about = found.about
    assert (len(found), found.layers, about["method"]) == (3, (1, 2, 3), "sefa")
    assert (about["network"], about["network_sha256"]) == ("cond.pkl", network.sha256)
    assert about["command"].startswith("python directions.py sefa --network=cond.pkl --dest=sefa.safetensors")
    assert "--layers=1-3" in about["command"] and len(about["shares"]) == 3
    centred = direction_methods.within_classes(*direction_methods.sample(network, 50, 0))
    expected = direction_methods.sefa(network, [1, 2, 3], 3, centred).directions
    np.testing.assert_allclose(found.w.numpy(), expected, rtol=1e-5, atol=1e-6)
    pca = direction_files.read(str(made / "pca.safetensors"))
    assert pca.layers is None and "--class=0,cat" in pca.about["command"]
    shown = json.loads(run(directions.main, "info", made / "pca.safetensors").output)
    assert shown["directions"] == 3 and shown["mapping_sha256"] == about["mapping_sha256"]
    assert str(toy_networks) not in json.dumps(shown)


def test_labels_come_from_a_list_from_folders_or_from_classes(toy_networks, tmp_path):
    network = Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")
    (tmp_path / "l.csv").write_text("\ufeffseed,label,class\n3,1,cat\n4,no,2\n5,0,\n")
    (tmp_path / "l.json").write_text(
        '[{"seed": 3, "label": true, "class": 0}, {"seed": 4, "label": 0, "class": 2}]'
    )
    (tmp_path / "map.json").write_text('{"3": 1, "4": false}')
    sample = direction_methods.Sample
    found = direction_labels.read_list(str(tmp_path / "l.csv"), network, 0.5)
    assert found == [sample(3, True, 0, 0.5), sample(4, False, 2, 0.5), sample(5, False, None, 0.5)]
    assert direction_labels.read_list(str(tmp_path / "l.json"), network, 0.5) == found[:2]
    assert [item.label for item in direction_labels.read_list(str(tmp_path / "map.json"), network, 1)] == [
        True,
        False,
    ]
    flags = ["--network", toy_networks / "cond.pkl", "--device=cpu"]
    run(gen_images.main, *flags, "--seeds=3,9", "--class=2", "--trunc=0.7", "--outdir", tmp_path / "a")
    run(gen_images.main, *flags, "--seeds=4", "--outdir", tmp_path / "b")
    drawn = int(np.random.RandomState(4).randint(0, 3, 1)[0])
    folders = direction_labels.read_folder("--positive", str(tmp_path / "a"), True, network)
    folders += direction_labels.read_folder("--negative", str(tmp_path / "b"), False, network)
    assert folders == [sample(3, True, 2, 0.7), sample(9, True, 2, 0.7), sample(4, False, drawn, 1.0)]
    codes = direction_methods.codes_of(network, folders)
    np.testing.assert_array_equal(codes[1], network.styles(9, 2, 0.7)[0, 0].double().numpy())
    of_classes = ["--positive-class=cat", "--negative-class=2", "--per-class=20", "--name=cat"]
    dest = tmp_path / "cat.safetensors"
    output = run(directions.main, "attribute", *flags, *of_classes, "--layers=0-2", "--dest", dest).output
    assert "1 direction from 40 images, right in " in output
    about = direction_files.read(str(dest)).about
    assert about["name"] == "cat" and about["samples"] == 40 and 0.5 <= about["accuracy"] <= 1


def test_a_sheet_has_a_row_per_direction_and_seed(made, toy_networks, tmp_path):
    flags = ["--network", toy_networks / "cond.pkl", "--device=cpu", "--seeds=0,1", "--strengths=-2,0,2"]
    edits = [f"--edit={made / 'sefa.safetensors'}#1", f"--edit={made / 'pca.safetensors'}#0"]
    output = run(directions.main, "sheet", *flags, *edits, "--scale=2", "--output", tmp_path / "s.png").output
    assert "4 rows of 3 strengths" in output
    with PIL.Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    everything = [f"--edit={made / 'pca.safetensors'}", "--output", tmp_path / "all.png"]
    assert "6 rows of 3 strengths" in run(directions.main, "sheet", *flags, *everything).output
    cells = pixels[-4 * 32 :, -3 * 32 :].reshape(4, 32, 3, 32, 3).swapaxes(1, 2)[:, :, ::2, ::2]
    network = Network.from_pretrained(toy_networks / "cond.pkl", device="cpu")
    for row, (file, seed) in enumerate((name, seed) for name in ("sefa", "pca") for seed in (0, 1)):
        for column, strength in enumerate((-2, 0, 2)):
            with network.edited(f"{made / file}.safetensors#{1 if file == 'sefa' else 0}:{strength}"):
                assert (cells[row, column] == network.generate(seed)[0]).all(), (file, seed, strength)


def test_samples_beyond_memory_are_refused(toy_networks, tmp_path, monkeypatch):
    monkeypatch.setattr(direction_command.memory, "host_free_bytes", lambda: 2**30)
    flags = [f"--network={toy_networks / 'cond.pkl'}", "--device=cpu", "--dest", tmp_path / "d.safetensors"]
    output = run(directions.main, "pca", *flags, "--samples=1000000", code=1).output
    assert "--samples=1000000: they take 15.3 GiB of memory, but only 1.0 GiB are free" in output


def test_mistakes_are_one_line(made, toy_networks, tmp_path):
    (tmp_path / "label.csv").write_text("seed,label\n1,maybe\n")
    (tmp_path / "seed.csv").write_text("seed,label\n-1,1\n")
    (tmp_path / "columns.csv").write_text("1,1\n")
    (tmp_path / "long.csv").write_text(f"seed,label\n1,{'0' * 2**18}\n")
    (tmp_path / "class.json").write_text('[{"seed": 1, "label": 1, "class": 7}]')
    (tmp_path / "few.json").write_text('{"1": 1, "2": 0}')
    (tmp_path / "text.json").write_text('"x"')
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "mixed" / "x.png")
    (tmp_path / "bomb").mkdir()
    PIL.Image.new("1", (2**14, 2**14)).save(tmp_path / "bomb" / "x.png")
    dest = ["--dest", tmp_path / "d.safetensors"]
    for args, message in (
        (["sefa", "--dest=d.pt"], "--dest=d.pt: end the name with .safetensors"),
        (["sefa", *dest, "--layers=0-99"], "--layers=0-99: "),
        (["sefa", *dest, "--layers=x"], "--layers: cannot parse"),
        (["pca", *dest, "--num=4000"], "--num=4000: w has 512 dimensions"),
        (["sefa", *dest, "--layers=0"], "--layers=0: the affine weights of these layers are 0"),
        (["attribute", *dest, "--positive-class=0", "--negative-class=cat"], "are the same class: give two"),
        (["attribute", *dest, f"--labels={tmp_path / 'class.json'}"], "'class': 7}: class 7: the network's"),
        (["pca", *dest, "--samples=5"], "--samples=5: give at least 6, that is two for each class"),
        (["pca", *dest, "--class=7"], "class 7: the network's classes are 0 to 2"),
        (["attribute", *dest], "give the labelled images by one of --labels"),
        (["attribute", *dest, "--positive=a"], "--positive and --negative belong together"),
        (["attribute", *dest, f"--labels={tmp_path / 'label.csv'}"], "the label must be 0 or 1"),
        (["attribute", *dest, f"--labels={tmp_path / 'seed.csv'}"], "the seed must be an integer"),
        (["attribute", *dest, f"--labels={tmp_path / 'columns.csv'}"], "must name the columns seed,label"),
        (["attribute", *dest, f"--labels={tmp_path / 'text.json'}"], "or a list of objects"),
        (["attribute", *dest, f"--labels={tmp_path / 'few.json'}"], "give at least 5 of each"),
        (["attribute", *dest, f"--labels={tmp_path / 'long.csv'}"], "not a CSV file (field larger than"),
        (["attribute", *dest, f"--labels={tmp_path / 'no.csv'}"], "No such file"),
        (["attribute", *dest, "--positive", tmp_path / "bomb", "--negative=x"], "decompression bomb?"),
        (["attribute", *dest, "--positive", tmp_path / "empty", "--negative=x"], "contains no PNG files"),
        (
            ["attribute", *dest, "--positive", tmp_path / "mixed", "--negative=x"],
            "does not name its one seed",
        ),
        (["sheet", "--seeds=0", "--output=x.gif"], "--output=x.gif: end the name with .png"),
        (["sheet", "--seeds=0", "--output=x.png"], "give at least one direction"),
    ):
        output = run(
            directions.main, args[0], f"--network={toy_networks / 'cond.pkl'}", *args[1:], code=1
        ).output
        assert message in output and output.count("\n") == 1, (args, output)
    assert not (tmp_path / "d.safetensors").exists()


def test_a_network_is_not_replaced_by_directions(toy_networks, tmp_path):
    dest = tmp_path / "net.safetensors"
    run(convert.main, f"--source={toy_networks / 'cond.pkl'}", f"--dest={dest}")
    before = dest.read_bytes()
    sefa = ["sefa", f"--network={toy_networks / 'cond.pkl'}", "--samples=20", "--num=1", "--device=cpu"]
    result = run(directions.main, *sefa, f"--dest={dest}", code=1)
    assert "is no direction file" in result.output and dest.read_bytes() == before
    for _ in range(2):  # a direction file is replaced
        run(directions.main, *sefa, f"--dest={tmp_path / 'sefa.safetensors'}")
