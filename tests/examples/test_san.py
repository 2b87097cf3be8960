# SPDX-License-Identifier: Apache-2.0
"""The notebook examples/san.ipynb runs, and is stored with outputs and without traces of a machine."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "san.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    """The cells of the notebook."""
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_the_cells_run_and_show_what_the_text_says(cells, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(str(ROOT))
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    names: dict = {"__name__": "notebook"}
    try:
        for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
            exec(compile("".join(cell["source"]), f"code cell {number + 1}", "exec"), names)
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
        names["plt"].close("all")
    printed = capsys.readouterr().out
    assert "outputs before and after agree: True" in printed and "fun equals dir: True" in printed
    assert "dir trains 4.weight\n" in printed and "Linear True" in printed
    late = {name: sum(c[len(c) // 2 :]) for name, (_, _, c) in names["results"].items()}
    assert late["SAN"] > late["GAN"]


def test_it_is_stored_executed_small_and_without_machine_paths(cells) -> None:
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert not any(output["output_type"] == "error" for output in outputs)
    text = NOTEBOOK.read_text()
    assert len(text) < 150_000
    assert not re.search(r"/(home|root|Users|tmp|work|usr|var)/|[A-Z]:\\\\", text)
