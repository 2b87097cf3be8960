# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: columns in order, bounded in number, the same after a kill, whatever lies in the folder."""

import numpy as np
import PIL.Image
import pytest
import torch

import dnnlib.util
from tests.toy_data import write_dataset
from training import run_folder
from training.data.dataset import ImageDataset
from training.watch import sheets
from training.watch.sheets import ContactSheet


class _Grey(torch.nn.Module):
    """In a generator's place: one shade of grey."""

    z_dim = 4

    def __init__(self, shade, c_dim):
        super().__init__()
        self.shade, self.c_dim = shade, c_dim
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, c=None):
        assert (c is None) == (self.c_dim == 0)
        return torch.full((len(z), 3, 16, 16), self.shade / 127.5 - 1)


def _sheet(folder, names=("a", "b", "c")):
    folder.mkdir(exist_ok=True)
    data = folder / "d.zip"
    if not data.exists():
        write_dataset(data, 12, class_names=list(names) if names else None)
    dataset = ImageDataset(str(data), use_labels=bool(names))
    return ContactSheet(folder, dataset, seed=0, batch=4), len(names or ())


@pytest.fixture(autouse=True)
def few_columns(monkeypatch):
    monkeypatch.setattr(sheets, "MAX_COLUMNS", 7)


def _columns(folder):
    return sorted(int(p.stem) for p in (folder / run_folder.CONTACT_FOLDER).glob("0*.png"))


@pytest.mark.parametrize("names", [("a", "b", "c"), None, ("<b>only</b>",)])
def test_columns_are_times(tmp_path, names):
    sheet, c_dim = _sheet(tmp_path, names)
    for shown, shade in ((0, 40), (4000, 120), (8000, 200)):
        sheet.add(_Grey(shade, c_dim), shown)
    image = np.asarray(PIL.Image.open(tmp_path / run_folder.CONTACT_SHEET_FILE)).astype(int)
    cell = 48
    assert image.shape[0] > sheet.rows * cell and image.shape[1] > 4 * cell
    left = image.shape[1] - 4 * cell
    shades = [image[-cell // 2, left + int((i + 0.5) * cell)].tolist() for i in range(3)]
    assert [[abs(v - s) <= 1 for v in pixel] for pixel, s in zip(shades, (40, 120, 200), strict=True)] == [
        [True] * 3
    ] * 3
    assert image[-cell:, -cell:].std() > 10  # the data


def test_headings_tell_columns_apart():
    def texts(*shown):
        return sheets.headings([(nimg, np.zeros(0)) for nimg in shown])

    assert texts(0, 4000, 8000, None) == ["0", "4", "8", "data"]
    assert texts(0, 4096, 8192) == ["0", "4", "8"]
    assert texts(0, 512, 1024) == ["0.0", "0.5", "1.0"]
    assert texts(0, 25_000_064, 25_000_128) == ["0.00", "25000.06", "25000.13"]
    assert texts(16, 17) == ["0.016", "0.017"] and texts(None) == ["data"] and texts() == []


def test_classes_that_are_left_out_are_counted(tmp_path):
    """In the picture and in its text."""
    sheet, c_dim = _sheet(tmp_path / "few")
    sheet.add(_Grey(100, c_dim), 0, "n.pkl")
    few = PIL.Image.open(tmp_path / "few" / run_folder.CONTACT_SHEET_FILE)
    many, c_dim = _sheet(tmp_path / "many", [f"c{i}" for i in range(40)])
    many.add(_Grey(100, c_dim), 0, "n.pkl")
    picture = PIL.Image.open(tmp_path / "many" / run_folder.CONTACT_SHEET_FILE)
    rows = many.rows * 48
    below = np.asarray(picture)[-(picture.height - (few.height - sheet.rows * 48) - rows) :]
    assert len(below) > 10 and below.min() < 100, "a line of text"
    assert len(dnnlib.util.parse_int_list(picture.text["classes"])) == sheets.CLASSES == len(many.row_names())
    column = PIL.Image.open(tmp_path / "many" / run_folder.CONTACT_FOLDER / "000000000.png").text
    assert (column["nimg"], column["network"], column["run_seed"]) == ("0", "n.pkl", "0")
    assert str(tmp_path) not in str(picture.text) + str(column)


def test_bounded_and_spread(tmp_path):
    sheet, c_dim = _sheet(tmp_path)
    for i in range(3 * sheets.MAX_COLUMNS):
        sheet.add(_Grey(100, c_dim), 1000 * i)
    columns = _columns(tmp_path)
    assert (
        len(columns) == sheets.MAX_COLUMNS
        and columns[0] == 0
        and columns[-1] == 1000 * (3 * sheets.MAX_COLUMNS - 1)
    )
    assert max(np.diff(columns)) <= 6000


def test_a_kill_changes_nothing(tmp_path):
    """Every column is written twice, as by a run that dies before each checkpoint: the same files as
    without.
    """
    for name in ("whole", "killed"):
        sheet, c_dim = _sheet(tmp_path / name)
        for i in range(sheets.MAX_COLUMNS + 5):
            sheet.add(_Grey(100, c_dim), 1000 * i)
            if name == "killed" and i > 0:
                sheet = _sheet(tmp_path / name)[0]
                sheet.drop_after(1000 * (i - 1))
                assert _columns(tmp_path / name)[-1] == 1000 * (i - 1)
                sheet.add(_Grey(100, c_dim), 1000 * i)
    assert _columns(tmp_path / "whole") == _columns(tmp_path / "killed")
    assert (tmp_path / "whole" / run_folder.CONTACT_SHEET_FILE).read_bytes() == (
        tmp_path / "killed" / run_folder.CONTACT_SHEET_FILE
    ).read_bytes()


def test_damaged_columns_are_passed_over(tmp_path):
    sheet, c_dim = _sheet(tmp_path)
    sheet.add(_Grey(100, c_dim), 0)
    width = PIL.Image.open(tmp_path / run_folder.CONTACT_SHEET_FILE).width
    (tmp_path / run_folder.CONTACT_FOLDER / "000000500.png").write_bytes(b"no picture")
    PIL.Image.new("RGB", (16, 5)).save(tmp_path / run_folder.CONTACT_FOLDER / "000000600.png")
    (tmp_path / run_folder.CONTACT_FOLDER / "notes.png").write_bytes(b"")
    sheet.add(_Grey(100, c_dim), 1000)
    assert PIL.Image.open(tmp_path / run_folder.CONTACT_SHEET_FILE).width == width + 48
