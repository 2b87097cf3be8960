# SPDX-License-Identifier: Apache-2.0
"""Which class an image belongs to: the rule, its refusals, and the line that says what was decided."""

import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import dataset_tool
from image_data import archives, labels
from tests.toy_data import png, write_folder, write_zip
from training.data.dataset import ImageDataset

IMAGE = png(0, 8)
SYNSETS = "n01440764 tench, Tinca tinca\nn02012849 crane\n"


def index(names: list[str], values: list[int] | None = None, **metadata: Any) -> bytes:
    pairs = [[name, value] for name, value in zip(names, values or range(len(names)), strict=True)]
    return json.dumps({"labels": pairs, "metadata": metadata}).encode()


@pytest.fixture(params=["folder", "zip"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Writes images by name, and other files by content, as a folder or as a zip; returns the archive."""

    def make(*names: str, **others: bytes) -> archives.Archive:
        files: dict[str, bytes | None] = {name: IMAGE for name in names} | {
            key.replace("__", "/"): value for key, value in others.items()
        }
        path = (
            write_folder(tmp_path / "set", files)
            if request.param == "folder"
            else write_zip(tmp_path / "set.zip", files)
        )
        return archives.open_archive(path)

    return make


def write_index(archive: archives.Archive, name: str, content: bytes) -> archives.Archive:
    path = Path(archive.path)
    if path.is_dir():
        (path / name).write_bytes(content)
    else:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, content)
    return archives.open_archive(path)


def found(
    archive: archives.Archive, mode: str = "auto", subfolder: str = ""
) -> tuple[list[str] | None, list[int] | None, list[str]]:
    result = labels.label(archive, mode, subfolder)
    assert result.labels is None or result.labels.dtype == np.int64
    names = [entry.name for entry in result.archive.images]
    for entry in result.archive.images:
        assert result.archive.reader.read(entry) == IMAGE
    return result.class_names, None if result.labels is None else result.labels.tolist(), names


def test_folders_are_classes(write: Any) -> None:
    archive = write("dog/1.png", "cat/1.png", "cat/deep/2.png")
    assert found(archive) == (["cat", "dog"], [0, 0, 1], ["cat/1.png", "cat/deep/2.png", "dog/1.png"])
    assert (
        labels.label(archive).summary()
        == "2 classes, from the folders cat, dog, 1 folders inside them are not classes; left out: nothing"
    )
    assert found(archive, "none")[:2] == (None, None)
    with pytest.raises(labels.Undecided, match=r"there is no dataset\.json"):
        labels.label(archive, "json")


def test_a_wrapper_does_not_hide_a_dataset_json(write: Any) -> None:
    names = [f"mydata/{i // 2:05d}/img{i:08d}.png" for i in range(4)]
    inner = [name.removeprefix("mydata/") for name in names]
    archive = write_index(
        write(*names), "mydata/dataset.json", index(inner, [1, 0, 1, 0], class_names=["even", "odd"])
    )
    assert found(archive) == (["even", "odd"], [1, 0, 1, 0], inner)
    assert labels.label(archive).summary() == "2 classes, from mydata/dataset.json; left out: nothing"


def test_a_data_set_among_class_folders_is_refused(write: Any) -> None:
    archive = write_index(
        write("cat/1.png", "dog/1.png", "small/00000/img00000000.png"),
        "small/dataset.json",
        b'{"labels": null}',
    )
    with pytest.raises(
        labels.Undecided, match=r"it contains a data set \(small/dataset\.json\) beside other images"
    ) as caught:
        labels.label(archive)
    assert "--subfolder=small" in str(caught.value)
    assert found(archive, "folders")[0] == ["cat", "dog", "small"]
    assert found(archive, subfolder="small") == (None, None, ["00000/img00000000.png"])


def test_a_dataset_json_without_images_is_counted(write: Any) -> None:
    archive = write("images/cat/1.png", "images/dog/1.png", meta__dataset_json=b"{}")
    archive = write_index(archive, "meta/dataset.json", b'{"labels": null}')
    result = labels.label(archive)
    assert result.num_classes == 0 or result.class_names == ["cat", "dog"]
    assert "1 dataset.json in subfolders (meta/dataset.json)" in result.summary()


@pytest.mark.parametrize(
    "folders",
    [
        ["train", "val"],
        ["Train", "Test"],
        ["training_set", "test_set"],
        ["train2017", "val2017"],
        ["seg_train", "seg_test"],
        ["trainA", "trainB", "testA"],
        ["train", "val", "test", "extra"],
        ["train", "unlabeled"],
    ],
)
def test_splits_are_no_classes(write: Any, folders: list[str]) -> None:
    archive = write(*(f"set/{folder}/{kind}/1.png" for folder in folders for kind in ("cat", "dog")))
    with pytest.raises(
        labels.Undecided,
        match=r"are splits, not classes: select one \(dataset_tool\.py --subfolder=set/(train|Train|seg)",
    ) as caught:
        labels.label(archive)
    assert "\n" not in str(caught.value)
    assert found(archive, "folders")[0] == sorted(folders)
    assert found(archive, "none")[1] is None
    assert found(archive, subfolder=f"set/{folders[0]}")[0] == ["cat", "dog"]


def test_splits_with_a_flat_or_an_empty_one(write: Any, tmp_path: Path) -> None:
    with pytest.raises(labels.Undecided, match="train and val are splits"):
        labels.label(write("train/cat/1.png", "train/dog/1.png", "val/1.png"))
    write_folder(tmp_path / "empty", {"train/cat/1.png": IMAGE, "train/dog/1.png": IMAGE, "val": None})
    with pytest.raises(labels.Undecided, match="train and val are splits"):
        labels.label(archives.open_archive(tmp_path / "empty"))


@pytest.mark.parametrize(
    "folders",
    [
        ["bus", "train"],
        ["bedroom_train", "church_train"],
        ["trainA", "trainB"],
        ["tester", "valve"],
        ["cat", "dev"],
    ],
)
def test_names_that_are_like_splits_and_are_classes(write: Any, folders: list[str]) -> None:
    assert found(write(*(f"{folder}/1.png" for folder in folders)))[0] == folders


@pytest.mark.parametrize(
    "names",
    [
        [f"{i:05d}/img{i:08d}.png" for i in range(3)],
        [f"{i // 1000 * 1000:05d}/{i:05d}.png" for i in (0, 999, 1000, 69999)],
        [f"{i // 1000:05d}/{i:05d}.png" for i in (0, 999, 1000, 69999)],
        [f"ffhq/{i // 1000 * 1000:05d}/{i:05d}.png" for i in (0, 1000)],
    ],
)
def test_numbered_folders_of_stylegan_and_ffhq_are_no_classes(write: Any, names: list[str]) -> None:
    archive = write(*names)
    assert found(archive)[:2] == (None, None)
    assert "numbered parts of a set" in labels.label(archive).summary()
    assert len(found(archive, "folders")[0] or []) == len({name.rpartition("/")[0] for name in names})


@pytest.mark.parametrize(
    "names",
    [
        [f"{i:05d}/{j}.png" for i in range(3) for j in range(3)],  # like FFHQ's, and like GTSRB's classes
        [f"{i:04d}/a{j}.png" for i in range(3) for j in range(2)],
        [f"{i:02d}/{10 * i + j:04d}.png" for i in range(3) for j in range(10)],  # the numbers go on
        ["0a/0abc.png", "1f/1fde.png", "ff/ff01.png"],  # by the first digits of a hash
    ],
)
def test_other_numbered_folders_are_asked_for(write: Any, names: list[str]) -> None:
    archive = write(*names)
    with pytest.raises(
        labels.Undecided,
        match=r"of one set or classes: use dataset_tool.py --labels=folders .* --labels=none",
    ):
        labels.label(archive)
    assert len(found(archive, "folders")[0] or []) == len({name.partition("/")[0] for name in names})


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}/{j}.png" for i in range(10) for j in range(2)],
        [f"{i:02d}/{j}.png" for i in range(3) for j in range(2)],  # every folder begins anew
        [f"{i % 10}/{i:04d}.png" for i in range(30)],  # the demo's digits
        ["cafe/cafe1.png", "bead/bead1.png"],
        [f"{year}/{j}.png" for year in (1990, 2000) for j in range(2)],
    ],
)
def test_numbers_that_are_classes(write: Any, names: list[str]) -> None:
    assert len(found(write(*names))[0] or []) == len({name.partition("/")[0] for name in names})


@pytest.mark.parametrize("folder", ["images", "JPEGImages", "train", "val", "set"])
def test_one_folder_around_all_images_is_no_class(write: Any, folder: str) -> None:
    archive = write(f"{folder}/1.png", f"{folder}/2.png")
    assert (
        found(archive)[:2] == (None, None)
        and f"the only folder, {folder}, contains all images" in labels.label(archive).summary()
    )


def test_one_folder_of_another_name_is_one_class(write: Any) -> None:
    assert found(write("cats/1.png", "cats/2.png"))[:2] == (["cats"], [0, 0])


@pytest.mark.parametrize("top", ["", "ILSVRC/Data/CLS-LOC/", "my/imagenet/"])
@pytest.mark.parametrize("flat", [True, False])
def test_an_ilsvrc_tree(write: Any, top: str, flat: bool) -> None:
    val = "val/x.JPEG" if flat else "val/n02012849/x.JPEG"
    train = f"{top}train/"
    archive = write(
        f"{train}n02012849/b.JPEG", f"{train}n01440764/a.JPEG", f"{top}{val}", LOC_synset_mapping=b""
    )
    archive = write_index(archive, "LOC_synset_mapping.txt", SYNSETS.encode())
    for mode in ("auto", "folders"):
        assert found(archive, mode) == (
            ["tench, Tinca tinca", "crane"],
            [0, 1],
            ["n01440764/a.JPEG", "n02012849/b.JPEG"],
        )
    assert found(archive, "none") == (None, None, ["n01440764/a.JPEG", "n02012849/b.JPEG"])
    result = labels.label(archive)
    assert result.kind == "ilsvrc" and result.metadata == {"class_ids": ["n01440764", "n02012849"]}
    assert f"2 classes, from the n######## folders of {train}; left out: " in result.summary()
    assert f"1 outside {train}" in result.summary()


def test_a_tree_with_a_folder_around_every_classs_images(write: Any) -> None:
    archive = write(
        "train/n01440764/images/a.JPEG",
        "train/n02012849/images/b.JPEG",
        "val/images/c.JPEG",
        "test/images/d.JPEG",
    )
    assert (
        found(archive)[0] == ["n01440764", "n02012849"]
        and "2 outside train/" in labels.label(archive).summary()
    )
    assert found(archive, subfolder="val")[:2] == (None, None)
    assert found(archive, subfolder="train")[0] == ["n01440764", "n02012849"]


def test_null_labels_beside_class_folders_are_told(write: Any) -> None:
    archive = write_index(write("cat/1.png", "dog/1.png"), "dataset.json", b'{"labels": null}')
    assert found(archive)[:2] == (None, None)
    expected = (
        "no classes (dataset.json has no labels; use dataset_tool.py --labels=folders to treat the folders "
        "cat, dog as classes); left out: nothing"
    )
    assert labels.label(archive).summary() == expected
    assert found(archive, "folders")[0] == ["cat", "dog"]
    assert (
        "1 dataset.json, as requested"
        in labels.label(archives.open_archive(archive.path), "folders").summary()
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a/0.png": 0}', r"has no \"labels\" \(found 'a/0\.png'\): write"),
        (b'{"Labels": [["cat/1.png", 0]]}', r"has no \"labels\" \(found 'Labels'\)"),
        (b'{"metadata": {}}', r"has no \"labels\""),
        (b'{"labels": 0}', r"must be a list of \[file name, class index\] or null"),
        (b'{"labels": ""}', "must be a list"),
    ],
)
def test_a_dataset_json_without_labels(write: Any, content: bytes, message: str) -> None:
    archive = write_index(write("cat/1.png", "dog/1.png"), "dataset.json", content)
    with pytest.raises(ValueError, match=message):
        labels.label(archive)
    assert found(archive, "folders")[0] == ["cat", "dog"] and found(archive, "none")[0] is None


def test_a_dataset_json_outside_of_the_subfolder_is_told(write: Any) -> None:
    archive = write_index(
        write("train/a/1.png", "val/a/1.png"), "dataset.json", index(["train/a/1.png", "val/a/1.png"])
    )
    assert "1 dataset.json outside train/" in labels.label(archive, subfolder="train").summary()
    assert found(archive)[1] == [0, 1]


def test_an_empty_dataset_json_says_nothing(write: Any) -> None:
    assert found(write_index(write("cat/1.png", "dog/1.png"), "dataset.json", b"{}"))[0] == ["cat", "dog"]


def test_names_of_labels_and_of_files_are_compared_in_their_shortest_form(write: Any, tmp_path: Path) -> None:
    """As `find .` and `zip` write them; what leads out of the folder stays refused."""
    archive = write_index(
        write("a/0.png", "a/1.png"), "dataset.json", index(["./a/0.png", "./a//././1.png"], [1, 0])
    )
    assert found(archive)[1:] == ([1, 0], ["a/0.png", "a/1.png"])
    path = write_zip(tmp_path / "dots.zip", {"./": b"", "./a/0.png": IMAGE, "a/./1.png": IMAGE})
    archive = write_index(archives.open_archive(path), "./dataset.json", index(["a/0.png", "./a/1.png"]))
    assert found(archive)[1:] == ([0, 1], ["a/0.png", "a/1.png"])
    assert str(archive.left_out) == "nothing"
    for name, message in (
        ("./../0.png", "leads out of the folder"),
        ("/a/0.png", "leads out of the folder"),
        ("a/0.png", "two labels for a/0.png"),
    ):
        folder = write_folder(tmp_path / "bad", {"a/0.png": IMAGE})
        (Path(folder) / "dataset.json").write_bytes(index(["./a/0.png", name]))
        with pytest.raises(ValueError, match=message):
            labels.label(archives.open_archive(folder))
    twice = write_zip(tmp_path / "twice.zip", {"a.png": IMAGE, "./a.png": IMAGE})
    assert archives.open_archive(twice).duplicates == ["a.png"]


@pytest.mark.parametrize("name", ["Dataset.json", "top/DATASET.JSON"])
def test_a_dataset_json_in_another_letter_case_is_refused_where_it_would_be_read(
    write: Any, name: str
) -> None:
    archive = write_index(write("top/cat/1.png", "top/dog/1.png"), name, index(["cat/1.png", "dog/1.png"]))
    for mode in ("auto", "json"):
        with pytest.raises(labels.Undecided, match=rf"{name} is not read .*: rename it to dataset\.json"):
            labels.label(archive, mode)
    assert found(archive, "folders")[0] == ["cat", "dog"]
    told = f"1 not read because of the letter case of its name (rename it to lower case) ({name})"
    assert str(archive.left_out) == told
    with pytest.raises(ValueError, match="rename it to dataset"):
        ImageDataset(archive.path, use_labels=True)
    assert "is not read because of its letter case" in ImageDataset(archive.path).labels_summary
    result = CliRunner().invoke(dataset_tool.main, ["--check", archive.path])
    assert result.exit_code == 1 and f"{name} is not read because of its letter case" in result.output


def test_other_files_in_another_letter_case_are_counted(write: Any) -> None:
    archive = write("cat/1.png", "dog/1.png")
    archive = write_index(archive, "cat/Dataset.json", b"{}")
    archive = write_index(archive, "Metadata.csv", b"id,text")
    assert found(archive)[0] == ["cat", "dog"]
    assert (
        labels.label(archive)
        .summary()
        .endswith(
            "left out: 2 not read because of the letter case of its name (rename it to lower case) "
            "(Metadata.csv 1, cat/Dataset.json 1)"
        )
    )
    archive = write_index(archive, "dataset.json", index(["cat/1.png", "dog/1.png"]))
    assert found(archive)[1] == [0, 1]


def test_labels_of_files_that_are_not_used_say_why(write: Any) -> None:
    archive = write("a.png", raw=b"x")
    archive = write_index(archive, "b.heic", b"x")
    archive = write_index(archive, "dataset.json", index(["a.png", "b.heic"]))
    with pytest.raises(
        labels.Undecided,
        match=r"labels for 1 images that are missing, the first is b\.heic \(it exists, but its extension",
    ):
        labels.label(archive)


@pytest.mark.parametrize("stored, said", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_in_either_spelling(write: Any, stored: str, said: str) -> None:
    name = "caf\u00e9/cr\u00eape.png"
    archive = write(unicodedata.normalize(stored, name), "plain.png")
    archive = write_index(
        archive, "dataset.json", index([unicodedata.normalize(said, name), "plain.png"], [1, 0])
    )
    assert found(archive)[1] == [1, 0]


def test_class_names_are_composed(write: Any) -> None:
    assert found(write(unicodedata.normalize("NFD", "caf\u00e9/1.png"), "the/1.png"))[0] == [
        "caf\u00e9",
        "the",
    ]


def test_two_spellings_of_one_class_are_refused(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "set.zip",
        {unicodedata.normalize(form, "caf\u00e9/1.png"): IMAGE for form in ("NFC", "NFD")},
    )
    with pytest.raises(ValueError, match="the class folders contain the name 'caf\u00e9' twice"):
        labels.label(archives.open_archive(path))


def test_a_folder_that_is_not_there(write: Any) -> None:
    with pytest.raises(ValueError, match="contains no folder tain; its folders are: train, val"):
        labels.label(write("train/1.png", "val/1.png"), subfolder="tain")


def test_class_names_beside_the_labels_are_read(write: Any) -> None:
    index = b'{"labels": {"1.png": 1, "2.png": 0}, "class_names": ["ant", "bee"]}'
    assert found(write_index(write("1.png", "2.png"), "dataset.json", index))[:2] == (["ant", "bee"], [1, 0])


@pytest.mark.parametrize(("folder", "table"), [("", "labels.csv"), ("images/", "annotations/all.json")])
def test_tables_of_other_names_are_told(write: Any, folder: str, table: str) -> None:
    summary = labels.label(write(f"{folder}1.png", f"{folder}2.png", table)).summary()
    assert f"; {table} not read: labels are in metadata.csv, with the columns file_name and label" in summary


def test_names_of_labels_are_shown_if_none_fits(write: Any) -> None:
    archive = write_index(write("images/1.png"), "dataset.json", b'{"labels": {"1.png": 0}}')
    with pytest.raises(labels.Undecided, match=r"the first is images/1\.png; it has labels for 1\.png$"):
        labels.label(archive)
