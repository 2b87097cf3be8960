# SPDX-License-Identifier: Apache-2.0
"""Statistics of training in one process; test_distributed.py has two."""

import json
import math

import numpy as np
import pytest
import torch

from torch_utils import training_stats
from torch_utils.training_stats import Collector, report, report0


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(training_stats, "_names", set())
    monkeypatch.setattr(training_stats, "_process", None)
    training_stats._host.clear()


def test_moments():
    collector = Collector()
    x = torch.tensor([1.0, 2.0, 6.0])
    assert report("a", x) is x
    report("a", [[3, 4]])
    report("a", 5)
    collector.update()
    values = torch.tensor([1.0, 2, 6, 3, 4, 5], dtype=torch.float64)
    assert collector.num("a") == 6 and collector["a"] == collector.mean("a") == 3.5
    assert collector.std("a") == pytest.approx(values.std(correction=0).item(), rel=1e-12)
    assert (
        collector.as_dict() == {"a": {"num": 6, "mean": 3.5, "std": collector.std("a")}}
        and collector.as_dict().a.num == 6
    )


def test_reports_before_a_collector_are_not_its_own():
    report("a", 1)
    collector = Collector()
    collector.update()
    assert collector.num("a") == 0 and math.isnan(collector["a"])


def test_intervals_and_keep_previous():
    keeps, drops = Collector(keep_previous=True), Collector(keep_previous=False)
    report("a", [1, 3])
    keeps.update()
    drops.update()  # two collectors do not take values from each other
    assert keeps["a"] == drops["a"] == 2
    report("a", 10)
    keeps.update()
    drops.update()
    assert keeps["a"] == drops["a"] == 10 and keeps.num("a") == 1
    keeps.update()
    drops.update()
    assert keeps["a"] == 10 and drops.num("a") == 0 and math.isnan(drops["a"]) and math.isnan(drops.std("a"))


def test_regex_and_names():
    losses = Collector(regex="Loss/.*")
    report("Loss/G", 1)
    report("Loss/D", [])
    report("other Loss/G", 2)
    assert losses.names() == ["Loss/D", "Loss/G"]
    losses.update()
    assert list(losses.as_dict()) == ["Loss/D", "Loss/G"] and losses.num("Loss/D") == 0
    with pytest.raises(ValueError, match="other"):
        losses.mean("other Loss/G")


def test_report0(monkeypatch):
    collector = Collector()
    assert report0("a", 2) == 2
    training_stats.init_multiprocessing(rank=1, sync_device=None)
    assert report0("a", 100) == 100
    collector.update()
    assert collector.num("a") == 1 and collector["a"] == 2


def test_sums_are_float64():
    collector = Collector()
    for _ in range(2):
        report("a", torch.full((1000,), 1e8, dtype=torch.float32) + torch.arange(1000) % 2 * 8)
    report("half", torch.full((300,), 1000.0, dtype=torch.float16))
    collector.update()
    assert collector["a"] == 1e8 + 4 and collector["half"] == 1000
    assert collector.std("a") == pytest.approx(4, abs=0.2)


def test_non_finite_values_show_and_pass():
    collector = Collector()
    report("a", [1.0, float("nan")])
    report("b", [1.0, float("inf")])
    collector.update()
    assert (
        math.isnan(collector["a"])
        and math.isnan(collector.std("a"))
        and collector["b"] == math.inf
        and math.isnan(collector.std("b"))
    )
    report("a", 3.0)
    collector.update()
    assert collector["a"] == 3


def test_gradients_do_not_flow():
    x = torch.ones(3, requires_grad=True)
    assert report("a", x * 2).requires_grad


def test_a_checkpoint_within_an_interval_changes_no_bit():
    """Sums are exact: where the interval is cut does not matter, nor does a value that cancels large ones."""
    random = np.random.RandomState(0)
    values = [
        np.append(random.randn(5) * 10.0 ** random.randint(-8, 8, 5), 1e16 * (-1) ** i) for i in range(40)
    ]
    found = []
    for cuts in ((), (1, 2, 7, 30), range(40)):
        collector = Collector()
        for i, value in enumerate(values):
            report("exact", value)
            if i in cuts:
                collector.load_state_dict(json.loads(json.dumps(collector.state_dict())))
        collector.update()
        found.append((collector.num("exact"), collector.mean("exact"), collector.std("exact")))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == math.fsum(np.sum(v) for v in values) / 240


def test_rounded_sums_of_version_0_1_go_on():
    collector = Collector()
    collector.load_state_dict({"current": {"a": (2.0, 3.0, 5.0)}, "pending": {"a": (1.0, 4.0, 16.0)}})
    assert collector["a"] == 1.5
    report("a", 6)
    collector.update()
    assert collector.num("a") == 2 and collector["a"] == 5


def test_infinite_and_nan_sums_stay_so():
    collector = Collector()
    for value in (1.0, math.inf, 2.0):
        report("inf", value)
        report("nan", -value)
        report("nan", value)
        report("large", 1.7e308)
    collector.update()
    assert collector["inf"] == math.inf and math.isnan(collector["nan"]) and collector["large"] == math.inf


def test_recorded_tensors_are_added_later_with_the_values_that_they_have_then():
    collector, x = Collector("r/.*"), torch.ones(2)
    with training_stats.recorded() as reports:
        report("r/a", x)
        training_stats.sample("r/a", x)
    collector.update()
    assert collector.num("r/a") == 0
    for value in (3.0, 5.0):
        x.fill_(value)
        for add in reports:
            add()
    collector.update()
    assert (collector.num("r/a"), collector["r/a"]) == (4, 4.0)
    assert training_stats.samples()["r/a"].tolist() == [5.0, 5.0]
