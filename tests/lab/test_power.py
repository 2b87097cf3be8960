# SPDX-License-Identifier: Apache-2.0
"""Power calculations against simulated experiments and values of tables."""

import math

import numpy as np
import pytest
from click.testing import CliRunner

from lab import power, shared


@pytest.mark.parametrize(("seeds", "difference"), [(3, 2.0), (5, 1.0), (16, 0.6)])
def test_power_is_the_share_of_experiments_that_see_the_difference(seeds, difference):
    draws = np.random.RandomState(0).normal(difference, 1, (4000, seeds))
    seen = [shared.verdict(shared.interval(x)) == "better" for x in draws[:1000]]
    assert power.power(difference, 1.0, seeds) == pytest.approx(np.mean(seen), abs=0.05)


def test_values_of_tables():
    """A paired t-test at 5% with a power of 80%: 34 pairs for half a standard deviation (Cohen, 1988)."""
    assert power.seeds_needed(0.5, 1.0) == 34
    assert power.detectable(1.0, 34) == pytest.approx(0.5, abs=0.01)
    assert power.detectable(0.2, 34) == pytest.approx(0.2 * power.detectable(1.0, 34))
    low, high = power.std_interval(1.0, 3)
    assert (low, high) == (pytest.approx(0.5207, abs=1e-3), pytest.approx(6.285, abs=1e-2))


def test_more_seeds_show_less():
    found = [power.detectable(0.1, seeds) for seeds in (2, 3, 5, 10, 30)]
    assert found == sorted(found, reverse=True) and found[1] > 0.3
    assert power.seeds_needed(0.05, 0.04) < power.seeds_needed(0.02, 0.04)
    for seeds in (2, 7, 40):
        smallest = power.detectable(0.1, seeds)
        assert power.seeds_needed(smallest * 1.001, 0.1) == seeds
    with pytest.raises(ValueError, match="needs more than"):
        power.seeds_needed(1e-6, 1.0)


def test_degenerate_experiments():
    assert power.detectable(0.1, 1) == math.inf and power.power(1.0, 1.0, 1) == 0
    assert power.detectable(0.0, 5) == 0 and power.power(0.0, 0.0, 5) == 0
    assert power.std_interval(0.1, 1) == (0.0, math.inf)


def test_correlation_of_pairs():
    random = np.random.RandomState(0)
    common = random.normal(size=500)
    x, y = (common + 0.5 * random.normal(size=500) for _ in range(2))
    found = power.correlation(x.std(ddof=1), y.std(ddof=1), (x - y).std(ddof=1))
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert math.isnan(power.correlation(0.0, 1.0, 1.0))


def test_command(tmp_path):
    values = {"GAN": [1.0, 2.0, 4.0], "SAN": [1.5, 2.0, 5.0], "improvement": [0.5, 0.0, 1.0]}
    cells = {name: shared.interval(x) for name, x in values.items()}
    shared.write(tmp_path, "dcgan", {"table": {"conditional": {"accuracy": cells}}})
    result = CliRunner().invoke(power.main, [f"--results={tmp_path}", "--minutes=6", "--budget=2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "dcgan, conditional: accuracy: 3 seeds, std of differences 0.5 (0.26 to 3.14)"
    )
    assert "in 2 hours (10 seeds): 0.498" in result.output
    for options, says in ((["--minutes=1"], "give both or neither"), ([], "no comparison")):
        result = CliRunner().invoke(power.main, [f"--results={tmp_path / 'x'}", *options])
        assert result.exit_code == 1 and says in result.output
