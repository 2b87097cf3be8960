# SPDX-License-Identifier: Apache-2.0
"""The pages: links and anchors resolve, prose keeps to 110 columns, Python examples run."""

import ast
import collections
import re
from pathlib import Path

import pytest
import yaml

from training.progressive import recipe
from training.progressive.stages import Schedule

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "san" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COLUMNS = 110
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """The text with code blocks blanked; the number of lines stays."""
    blank = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
    return blank.sub(lambda block: "\n" * block[0].count("\n"), text)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub names them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page to files that do not exist, or to headings that do not."""
    broken = []
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def long_lines(text: str) -> list[str]:
    """Lines of prose beyond COLUMNS that could be wrapped: no table, no heading, more than one word."""
    lines = prose(text).splitlines()
    return [
        line
        for line in lines
        if len(line) > COLUMNS and not line.lstrip().startswith(("|", "#", "![")) and " " in line.strip()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page(page):
    assert broken_links(page) == []
    assert long_lines(page.read_text(encoding="utf-8")) == []


def texts_of_the_code() -> str:
    """Every string of the code, a line each; what an f-string fills in is a NUL."""
    found = []
    for path in ROOT.rglob("*.py"):
        if {"tests", ".venv", "build"} & set(path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_that_are_explained_are_messages_of_the_code():
    """What docs/troubleshooting.md quotes in bold and backticks; '...' stands for anything."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^\*\*(.*?)\*\*", page, flags=re.MULTILINE | re.DOTALL)
    quoted = [" ".join(quote.split()) for text in headings for quote in re.findall(r"`([^`]+)`", text)]
    assert len(quoted) >= 15
    code = texts_of_the_code()
    parts = {part.strip(" :;()") for quote in quoted for part in quote.split("...")}
    parts = {part.removeprefix("WARNING: ").removeprefix("discriminator: ") for part in parts}
    assert sorted(part for part in parts if len(part) > 4 and part not in code) == []


def test_every_module_is_in_the_list_of_files():
    """The tree in docs/architecture.md names every module, and a name of two files at least twice."""
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Every file")[1]
    ops = re.search(r"one op per file: (.*)", tree)[1].split(", ")
    listed = collections.Counter(re.findall(r"\w+\.py", tree.split("```")[1]) + [f"{op}.py" for op in ops])
    folders = ("dnnlib", "generation", "image_data", "metrics", "san", "torch_utils", "training")
    paths = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    modules = collections.Counter(path.name for path in paths if path.name != "__init__.py")
    assert modules - listed == collections.Counter()


def recipe_rows() -> list[str]:
    """A table row for each stage of every recipe, without the stages that `extends` brings."""
    rows = []
    for path in (ROOT / "recipes").glob("*.yaml"):
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == recipe.SPEED_TABLE:
            continue
        schedule = Schedule(recipe.load(path.stem), "")
        own = {stage["resolution"] for stage in text["stages"]}
        for stage in (stage for stage in schedule.recipe.stages if stage.resolution in own):
            config = schedule.config(stage)
            gen, run = config.generator, config.run
            layers = f"head {gen.head_layers}" if gen.superres else f"stem {gen.syn_layers}"
            cells = [f"`{path.stem}`", stage.resolution, gen.cfg[-1], layers, run.batch, f"{run.kimg:g}"]
            cells += [f"{config.loss.cls_weight:g}", f"{run.tick * run.snap:g}", (*run.metrics, "none")[0]]
            rows.append("| " + " | ".join(map(str, [*cells, run.patience or "none"])) + " |")
    return rows


def test_the_table_of_recipes_is_that_of_the_files():
    lines = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    names = tuple(f"| `{path.stem}` | " for path in (ROOT / "recipes").glob("*.yaml"))
    found = [line for line in lines if line.startswith(names) and line.count("|") == 11]
    assert sorted(found) == sorted(recipe_rows())


def test_faults_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](#a-b-c) [y](#d) [z](page.md#a-b-c) [v](none.md)\n```\n[w](u.md)\n```\n")
    assert broken_links(page) == ["#d", "none.md"]
    assert long_lines("word " * 30 + "\n```\n" + "code " * 30 + "\n```\n| " + "cell " * 30) == ["word " * 30]


def test_the_lines_that_load_a_network_run(tmp_path, monkeypatch):
    """The Python example of docs/networks.md, on a small file of the published format."""
    text = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    sample = ROOT / "tests/parity/goldens/pickles/superres_t_16to32_cond10.pkl"
    assert "imagenet256.pkl" in code
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace("imagenet256.pkl", str(sample)), names)
    assert names["pictures"].shape == (4, 32, 32, 3) and names["pictures"].std() > 5
    assert (tmp_path / "out.png").stat().st_size > 1000
