# SPDX-License-Identifier: Apache-2.0
"""The results of benchmarks/gpu.py: the file, and its tables with predictions beside what was measured.

    python benchmarks/gpu_results.py benchmarks/results/gpu*.json
    python benchmarks/gpu_results.py benchmarks/results/gpu*.json --write docs/performance.md

--write replaces the lines between the two markers of the page, and nothing else.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dnnlib.util import atomic_write

BEGIN, END = "<!-- results of benchmarks/gpu.py -->", "<!-- end of the results -->"
ON_TENSOR_CORES = "filtered_lrelu on tensor cores"
# Predicted shares of a copy's bandwidth, forward: docs/kernels.md. The floors there are those of float16, so
# float32 moves twice the bytes in the same time until memory is the limit.
SHARES: tuple[tuple[str, dict[str, tuple[float, float]]], ...] = (
    ("bias_act", {"16": (0.8, 0.9), "32": (0.8, 0.9)}),
    ("upfirdn2d blur", {"16": (0.15, 0.3), "32": (0.15, 0.3)}),
    ("upfirdn2d", {"16": (0.2, 0.5), "32": (0.2, 0.5)}),
    (ON_TENSOR_CORES, {"16": (0.35, 0.55)}),
    ("filtered_lrelu radial", {"16": (1 / 14, 1 / 10), "32": (1 / 7, 1 / 5)}),
    ("filtered_lrelu", {"16": (1 / 7, 1 / 5), "32": (1 / 3.5, 1 / 2.5)}),
)
Row = dict[str, Any]


def rows_of(content: Row, part: str) -> list[Row]:
    """Return the results of a part."""
    return [row for row in content["results"] if row["part"] == part]


class Results:
    """The results file of a run, rewritten after every result; several processes write it in turns.

    Args:
        path: The file. It is read and not begun again if it exists.
        facts: Description of the machine, for a new file.
    """

    def __init__(self, path: Path, facts: Row | None = None) -> None:
        self.path = path
        if facts is not None:
            path.unlink(missing_ok=True)
            self._write({**facts, "results": []})

    @property
    def content(self) -> Row:
        """What the file has."""
        content: Row = json.loads(self.path.read_text())
        return content

    def _write(self, content: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path, "w") as f:
            f.write(json.dumps(content, indent=1) + "\n")

    def rows(self, part: str) -> list[Row]:
        """Return the results of a part."""
        return rows_of(self.content, part)

    def add(self, part: str, **result: Any) -> None:
        """Store and print a result."""
        content = self.content
        content["results"].append({"part": part, **result})
        self._write(content)
        values = {k: v for k, v in result.items() if k != "output" and not isinstance(v, dict | list)}
        shown = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        click.echo(f"{part:10s}" + "  ".join(shown))

    def complete(self, part: str, more: Iterable[Row]) -> None:
        """Add fields to the results of a part, in their order."""
        content = self.content
        for row, fields in zip(rows_of(content, part), more, strict=False):
            row |= fields
        self._write(content)


def one_line(error: BaseException) -> str:
    """Return the type and the message of an error, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def predicted_share(case: str, dtype: str) -> tuple[float, float]:
    """Return the least and the largest predicted share of a copy's bandwidth of an operation, forward."""
    group, width = _group(case), "32" if dtype == "float32" else "16"
    return next(shares[width] for name, shares in SHARES if group.startswith(name))


def _number(value: Any, form: str = ".3g") -> str:
    return f"{value:{form}}" if isinstance(value, int | float) else "" if value is None else str(value)


def _table(head: str, rows: Iterable[Iterable[Any]]) -> list[str]:
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return [head, "|---" * head.count(" | ") + "|---|", *lines, ""] if lines else []


def _gpu(content: Row) -> str:
    """Return which predictions are those of the device; H200 for others."""
    return "H100" if "H100" in content["device"] else "H200"


def _checks(content: Row) -> list[str]:
    rows = []
    for row in content["results"]:
        part = row["part"]
        if part in ("build", "tests", "sanitizer"):
            what = " ".join(str(row[key]) for key in ("tool", "over") if key in row)
            wanted = row.get("expected", "0")
            found = f"status {row['status']}: {row.get('last_line', '')}".replace("|", "/")
            rows.append((part, what, found, f"status {wanted}"))
        elif part == "networks":
            what = f"gradients of {row.get('step', '')}, {row.get('precision', '')}"
            found = _number(row.get("relative_error"), ".2g") or row["status"].replace("|", "/")
            rows.append((part, what, found, f"at most {_number(row.get('limit'))}"))
    return _table("| check | of | found | expected |", rows)


def _group(case: str) -> str:
    if case.startswith(ON_TENSOR_CORES):
        return ON_TENSOR_CORES
    if case.startswith("filtered_lrelu"):
        return "filtered_lrelu radial" if case.endswith("radial") else "filtered_lrelu"
    return case


def _operations(content: Row) -> list[str]:
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for result in content["results"]:
        for row in result.get("rows", ()):
            # compiled baselines are measured in a second run: both are rows of the same case
            cases = groups.setdefault((_group(row["case"]), row["dtype"]), {})
            cases[row["case"]] = cases.get(row["case"], {}) | row

    def median(cases: dict[str, Row], key: str, form: str) -> str:
        values = [row[key] for row in cases.values() if key in row]
        return f"{statistics.median(values):{form}}" if values else ""

    rows = []
    for (name, dtype), cases in groups.items():
        low, high = next(iter(cases.values()))["predicted_forward_copy_share"]
        rows.append(
            (
                name,
                dtype,
                len(cases),
                median(cases, "forward_copy_share", ".2f"),
                f"{low:.2f} to {high:.2f}",
                median(cases, "both_copy_share", ".2f"),
                *(median(cases, f"{kind}_both_ratio", ".1f") for kind in ("eager", "compiled", "without")),
            )
        )
    return _table(
        "| operation, medians | type | cases | share of a copy, forward | predicted | forward and backward "
        "| torch's own: times as long | compiled | without tensor cores |",
        rows,
    )


def _steps(content: Row) -> list[str]:
    gpu = _gpu(content)
    rows = []
    for row in rows_of(content, "steps"):
        speed, predicted = row.get("images_per_second"), row.get("predicted_images_per_second") or {}
        rows.append(
            (
                row.get("stage", ""),
                row.get("levers", ""),
                _number(row.get("batch")),
                _number(speed) if speed else row.get("status", "").replace("|", "/"),
                _number(predicted.get(gpu)),
                _number(1000 / speed) if speed else "",
                _number(row.get("peak_gb")),
                _number(row.get("predicted_gb")),
                _number(row.get("share_of_peak"), ".0%"),
            )
        )
    return _table(
        f"| stage | options | batch | images/s | predicted, {gpu}, at most | s/kimg | peak GiB | estimated "
        "| of peak FLOP/s |",
        rows,
    )


def _real(content: Row) -> list[str]:
    gpu = _gpu(content)
    rows = []
    for row in rows_of(content, "real"):
        numbers = row.get("last_statistics", {})
        rows.append(
            (
                row.get("stage", ""),
                _number(numbers.get("Progress/kimg"), ".1f"),
                _number(numbers.get("Timing/sec_per_kimg")),
                _number((row.get("predicted_sec_per_kimg") or {}).get(gpu)),
                _number(numbers.get("Resources/peak_gpu_mem_gb")),
                " ".join(f"{value:.1f}" for value in row.get("fd_lite0", ())),
                row["status"].replace("|", "/"),
            )
        )
    return _table(
        f"| stage | kimg | s/kimg | predicted, {gpu}, at least | peak GiB | fd_lite0_500 | status |",
        rows,
    )


def table(contents: Iterable[Row]) -> str:
    """Return the markdown tables of several results files, each below the machine and the command."""
    lines: list[str] = []
    for content in contents:
        versions = f"torch {content['torch']}, CUDA {content['cuda']}, Python {content['python']}"
        changed = " with changes" if content["changed"] else ""
        tiny = " Tiny networks: the numbers say nothing." if content["small"] else ""
        lines += [
            f"{content['device']}, {versions}, commit {content['commit'][:10] or 'unknown'}{changed}: "
            f"`{content['command']}`.{tiny}",
            "",
        ]
        lines += [*_checks(content), *_operations(content), *_steps(content), *_real(content)]
    return "\n".join(lines).strip() + "\n"


def replace_between_markers(page: Path, text: str) -> None:
    """Replace what a page has between its markers.

    Raises:
        click.ClickException: A marker is missing.
    """
    before, first, rest = page.read_text(encoding="utf-8").partition(BEGIN + "\n")
    _, last, after = rest.partition(END)
    if not first or not last:
        raise click.ClickException(f"{page} does not have the lines '{BEGIN}' and '{END}'")
    with atomic_write(page, "w") as f:
        f.write(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--write", type=click.Path(path_type=Path), help="Page with markers.")
def main(results: tuple[Path, ...], write: Path | None) -> None:
    """Print the tables; the help text is the module's docstring."""
    for path in (*results, *([] if write is None else [write])):
        if not path.is_file():
            raise click.ClickException(f"{path} is not a file")
    text = table(json.loads(path.read_text()) for path in results)
    click.echo(text)
    if write is not None:
        replace_between_markers(write, text)


if __name__ == "__main__":
    main()
