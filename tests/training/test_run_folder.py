# SPDX-License-Identifier: Apache-2.0
"""Names of snapshots: the published ones, and unique where those are not."""

import pytest

from training import run_folder
from training.state import Progress


def numbers(shown: list[int]) -> list[str]:
    """The number of a snapshot at each of these images shown, one after the other."""
    progress = Progress()
    found = []
    for nimg in shown:
        progress.nimg = nimg
        assert progress.number_snapshot() == progress.number_snapshot()
        found.append(progress.snapshot)
    return found


def test_whole_kimg_have_the_published_names():
    """Also where ticks drift away from whole kimg, as batches make them."""
    shown = [4096, 8192, 12288, 16384, 25_000_064, 1_234_567_890]
    assert numbers(shown) == ["000004", "000008", "000012", "000016", "025000", "1234567"]


def test_ticks_within_one_kimg_have_names_of_their_own():
    shown = [8, 16, 512, 999, 1000, 1008, 2048, 10_000, 10_496]
    found = numbers(shown)
    assert found[:6] == ["000000", "000000_016", "000000_512", "000000_999", "000001", "000001_008"]
    assert found[6:] == ["000002", "000010", "000010_496"]
    assert len(set(found)) == len(found)
    names = [f"network-snapshot-{number}.pkl" for number in found]
    assert sorted(names) == names


def test_a_run_that_goes_on_names_its_snapshots_alike():
    shown = [256 * i for i in range(1, 30)]
    whole = numbers(shown)
    progress = Progress()
    for i, nimg in enumerate(shown):
        progress.nimg = nimg
        assert progress.number_snapshot() == whole[i]
        progress = Progress.restored(dict(vars(progress)))
        assert progress.number_snapshot() == whole[i]  # its score is made up for


def test_a_checkpoint_of_version_0_1():
    saved = {"nimg": 4500, "step": 9, "tick": 1, "tick_start_nimg": 4500, "seconds": 1.0, "unscored": True}
    progress = Progress.restored(saved)
    assert progress.number_snapshot() == "000004"  # as that version named it
    progress.nimg = 4900
    assert progress.number_snapshot() == "000004_900"


def test_files_in_the_order_of_training(tmp_path):
    ours = ["000000", "000000_512", "000001", "000010", "000010_008", "000010_496", "999999", "1000000"]
    other = ["best", "000001_5", "000001-500", "", "x000001"]
    for number in [*ours, *other]:
        (tmp_path / f"network-snapshot-{number}.pkl").touch()
        (tmp_path / f"fakes{number}.png").touch()
    (tmp_path / "fakes_init.png").touch()
    assert run_folder.snapshot_files(tmp_path) == [run_folder.snapshot_file(tmp_path, number) for number in ours]
    assert run_folder.fakes_files(tmp_path) == [run_folder.fakes_file(tmp_path, number) for number in ours]
    assert [run_folder.named_kimg(p) for p in run_folder.fakes_files(tmp_path)][:3] == [0, 0.512, 1]


@pytest.mark.parametrize(
    ("kimg", "text"),
    [(0, "0"), (0.5, "0.5"), (4.096, "4.096"), (20.0, "20"), (25000.064, "25000.064"), (float("nan"), "?")],
)
def test_kimg_as_text(kimg, text):
    assert run_folder.kimg_text(kimg) == text
