# SPDX-License-Identifier: Apache-2.0
"""Every command line printed in README.md, docs/, benchmarks/ and the scripts' own help parses, and what it
names is there.
"""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from metrics.registry import parse_metric

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "train",
    "dataset_tool",
    "gen_images",
    "gen_video",
    "gen_class_samplesheet",
    "calc_metrics",
    "avg_spectra",
    "convert",
    "demo",
    "viewer",
    "directions",
    "style_mixing",
    "run_stylemc",
    "run_inversion",
    "train_classifier",
)
BENCHMARKS = tuple(path.stem for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py")))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
INLINE = re.compile(r"`((?:python (?:-m )?|torchrun |make |(?:" + "|".join(SCRIPTS) + r")\.py )[^`]+)`")


def printed(path: Path) -> list[str]:
    """Lines of code blocks, continued ones joined, and inline commands of a page; the indented commands of a
    script's docstring.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        text = str(importlib.import_module(name).__doc__)
        return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [
        " ".join(found.split())
        for found in INLINE.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    ]


def words_of(line: str) -> list[str]:
    """The words of a line up to a comment or another command."""
    try:
        words = shlex.split(re.sub(r"(^|\s)#.*", "", line))
    except ValueError:
        return []  # prose
    return words[: next((i for i, word in enumerate(words) if word in ("&&", "|", ";", "&")), len(words))]


def commands() -> list[tuple[str, str]]:
    """(where, line) of every printed command that runs something of the project."""
    scripts = [*SCRIPTS, *(f"benchmarks/{name}" for name in BENCHMARKS)]
    pages = [*PAGES, *(ROOT / f"{name}.py" for name in scripts)]
    lines = [(str(path.relative_to(ROOT)), line) for path in pages for line in printed(path)]
    return [(where, line) for where, line in lines if target_of(words_of(line)) is not None]


def target_of(words: list[str]) -> tuple[str, str, list[str]] | None:
    """('script' or 'benchmark', name, arguments), ('module', name, arguments) or ('make', target, []); None
    for other lines.
    """
    if words[:1] == ["make"] and len(words) > 1:
        return "make", words[1], []
    for i, word in enumerate(words):
        if word == "-m" and i and words[i - 1] in ("python", "python3") and i + 1 < len(words):
            return "module", words[i + 1], words[i + 2 :]
        run = words[i - 1 : i] == ["python"] or (
            words[i + 1 : i + 2] and words[i + 1].startswith(("-", "..."))
        )  # not named in a sentence
        if word.startswith("benchmarks/") and words[i - 1 : i] == ["python"]:
            return "benchmark", word.removeprefix("benchmarks/").removesuffix(".py"), words[i + 1 :]
        if word.endswith(".py") and word[:-3] in SCRIPTS and run:
            return "script", word[:-3], words[i + 1 :]
    return None


def test_commands_are_found():
    found = commands()
    assert len(found) > 80
    for name in SCRIPTS:
        assert any(target_of(words_of(line))[:2] == ("script", name) for _, line in found), name
    gpu = [line for where, line in found if where == "benchmarks/README.md" and "gpu.py --parts" in line]
    assert len(gpu) == 3, "one line for each third of the half hour with a GPU"
    assert any(
        where.startswith("docs") and "--recipe=demo64" in line for where, line in found
    )  # inside of a table


@pytest.mark.parametrize(("where", "line"), commands())
def test_a_printed_command_parses(where, line):
    kind, name, arguments = target_of(words_of(line))
    if kind == "make":
        assert re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if kind == "module":
        assert importlib.util.find_spec(name) is not None
        return
    given = [word for word in arguments if word != "..."]
    command = importlib.import_module(name if kind == "script" else f"benchmarks.{name}").main
    if not isinstance(command, click.Command):
        return  # of argparse
    if isinstance(command, click.Group) and given[:1] and given[0] in command.commands:
        command, given = command.commands[given[0]], given[1:]
    try:
        context = command.make_context(f"{name}.py", list(given))
    except click.exceptions.Exit:
        assert "--help" in given
        return
    except click.MissingParameter:
        assert "..." in arguments
        return
    metrics = context.params.get("metrics") or ()
    for metric in metrics.split(",") if isinstance(metrics, str) else metrics:
        assert metric == "none" or parse_metric(metric)
    if name == "train" and (recipe := context.params.get("recipe")):
        assert (ROOT / "recipes" / f"{recipe}.yaml").is_file()


def test_scripts_that_the_readme_calls_missing_are_missing():
    """And the scripts that it says work are there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    works = re.search(r"published command lines of (.*?)\.\n", readme, flags=re.DOTALL)[1]
    missing = re.search(r"Published scripts that are still missing: (.*?)\. ", readme, flags=re.DOTALL)[1]
    named = [re.findall(r"`(\w+\.py)`", text) for text in (works, missing)]
    assert len(named[0]) >= 6 and named[1]
    assert [name for name in named[0] if not (ROOT / name).is_file()] == []
    assert [name for name in named[1] if (ROOT / name).exists()] == [], "the README may say so"


def test_a_wrong_flag_would_be_found():
    import train

    with pytest.raises(click.UsageError, match="--no-such-flag"):
        train.main.make_context("train.py", ["--no-such-flag=1"])
