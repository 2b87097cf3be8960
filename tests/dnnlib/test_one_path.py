# SPDX-License-Identifier: Apache-2.0
"""A shell expands a pattern without quotes: the commands do not take its last file for the whole set."""

import pytest
from click.testing import CliRunner

import avg_spectra
import calc_metrics
import dataset_tool
import gen_images
import run_inversion
import train
import train_classifier
from tests.support import run


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (dataset_tool.main, "--source"),
        (gen_images.main, "--to"),
        (train.main, "--data"),
        (train_classifier.main, "--data"),
        (calc_metrics.main, "--data"),
        (calc_metrics.main, "--images"),
        (avg_spectra.calc, "--source"),
    ],
)
def test_an_expanded_pattern_is_refused(command, flag):
    error = run(command, *(f"{flag}=t-{i}.tar" for i in range(3)), code=2).output
    assert f"{flag} has 3 files, t-0.tar to t-2.tar, as if the shell had expanded a pattern" in error


def test_other_values_may_be_repeated_and_the_last_one_counts():
    assert (
        "b.zip" in run(dataset_tool.main, "--source=a.zip", "--source=b.zip", "--dest=c.zip", code=1).output
    )
    assert "--source and --dest are required" in run(dataset_tool.main, "--dest=c.zip", code=1).output


@pytest.mark.parametrize("command", [calc_metrics.main, gen_images.main, run_inversion.main])
def test_networks_of_which_one_would_be_used_are_refused(command):
    error = run(command, *(f"--network=n-{i}.pkl" for i in range(2)), code=2).output
    assert "--network has 2 files, n-0.pkl to n-1.pkl, of which only the last" in error
    again = ["--network=a.pkl", "--network=a.pkl", "--target=x", "--outdir=y", "--seeds=0"]
    assert "of which only" not in CliRunner().invoke(command, again).output
