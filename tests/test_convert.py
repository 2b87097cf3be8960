# SPDX-License-Identifier: Apache-2.0
"""convert.py and --trust-pickle, as a user runs them."""

import os

import huggingface_hub
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import convert
import gen_images
from tests.support import FolderHub
from tests.toy_networks import network, same
from torch_utils.persistence import save_network_pickle
from training.networks import files
from training.networks import onnx as onnx_export


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network_pickle(
        "a.pkl",
        dict(
            G=network(0),
            D=None,
            G_ema=network(1),
            augment_pipe=None,
            training_set_kwargs=None,
            provenance={"nimg": 1},
        ),
    )
    return tmp_path


def run(*args, command=convert.main, code=0):
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_there_and_back(folder):
    assert "wrote b.safetensors and b.json" in run("--source=a.pkl", "--dest=b.safetensors")
    run("--source=b.safetensors", "--dest=c.pkl")
    first, last = files.read("a.pkl"), files.read("c.pkl")
    last.tensors.clear()
    same(first, last)
    run("--source=a.pkl", "--dest=e.safetensors", "--networks=G_ema")
    assert list(files.read("e.safetensors").generators) == ["G_ema"]
    run("--source=a.pkl", "--dest=weights", "--format=pkl")
    assert list(files.read("weights").generators) == ["G", "G_ema"]


def test_nothing_of_value_is_replaced(folder):
    before = (folder / "a.pkl").read_bytes()
    assert "a.pkl is --source" in run("--source=a.pkl", "--dest=./a.pkl", code=1)
    (folder / "options.json").write_text('{"seed": 1}')
    assert "options.json belongs to another program" in run(
        "--source=a.pkl", "--dest=options.safetensors", code=1
    )
    assert (
        sorted(path.name for path in folder.iterdir()) == ["a.pkl", "options.json"]
        and (folder / "a.pkl").read_bytes() == before
    )
    for _ in range(2):  # its own files a network may replace
        run("--source=a.pkl", "--dest=b.safetensors")


def test_images_from_safetensors(folder):
    run("--source=a.pkl", "--dest=b.safetensors")
    for source in ("a.pkl", "b.safetensors"):
        run(
            f"--network={source}",
            "--seeds=0",
            "--class=1",
            f"--outdir=out-{source}",
            "--device=cpu",
            command=gen_images.main,
        )
    first, second = (
        PIL.Image.open(folder / name / "seed0000.png") for name in ("out-a.pkl", "out-b.safetensors")
    )
    assert first.tobytes() == second.tobytes()
    assert {key for key in first.text if first.text[key] != second.text[key]} == {"network", "network_sha256"}


def test_a_repository(folder, monkeypatch):
    hub = FolderHub(folder / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    (folder / "metric-fid.jsonl").write_text('{"results": {"fid": 1.5}, "snapshot_pkl": "a.pkl"}\n')
    assert "uploaded: https://hub/me/x/commit/1" in run("--source=a.pkl", "--dest=hf://me/x", "--license=mit")
    assert "| fid | 1.5000 |" in (folder / "hub/me/x/README.md").read_text()
    run("--source=hf://me/x", "--dest=d.pkl")
    same(files.read("a.pkl").only("G_ema"), files.read("d.pkl").only("G_ema"))
    run("--network=hf://me/x", "--seeds=0", "--outdir=out", "--device=cpu", command=gen_images.main)
    assert (folder / "out/seed0000.png").is_file()


def test_onnx_files_that_differ_are_not_kept(folder, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    written = [folder / "n.mapping.onnx", folder / "n.synthesis.onnx"]

    def export(G, prefix):
        for path in written:
            path.write_bytes(b"x")
        return written

    monkeypatch.setattr(onnx_export, "export", export)
    monkeypatch.setattr(onnx_export, "compare", lambda G, paths: {"ws": 0.0, "images": 0.5})
    assert "differ by 0.5" in run("--source=a.pkl", "--dest=n.onnx", code=1)
    assert not any(path.exists() for path in written)
    monkeypatch.setattr(onnx_export, "compare", lambda G, paths: {"ws": 0.0, "images": 1e-6})
    assert "images by 1.0e-06" in run("--source=a.pkl", "--dest=n.onnx") and all(
        path.exists() for path in written
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source=a.pkl", "--dest=b.bin"], "--dest=b.bin: use the extension .pkl, .safetensors or .onnx"),
        (["--source=a.pkl", "--dest=b.pkl", "--format=onnx"], "--format=onnx does not match --dest=b.pkl"),
        (["--source=a.pkl", "--dest=b", "--format=hub"], "hf://OWNER/NAME"),
        (["--source=a.pkl", "--dest=hf://x"], "hf://OWNER/NAME"),
        (["--source=a.pkl", "--dest=b.pkl", "--license=mit"], "are only for a model repository"),
        (["--source=a.pkl", "--dest=no/where/b.pkl"], "the folder no/where does not exist"),
        (["--source=absent.pkl", "--dest=b.pkl"], "absent.pkl: file not found"),
        (["--source=metric.txt", "--dest=b.pkl"], "not a network pickle"),
    ],
)
def test_mistakes_are_one_line(args, message, folder):
    (folder / "metric.txt").write_text("nonsense")
    before = sorted(os.listdir(folder))
    output = run(*args, code=1)
    assert message in output and output.count("\n") == 1 and output.startswith("Error: ")
    assert sorted(os.listdir(folder)) == before


def test_trust_is_asked_for_and_said(foreign, monkeypatch):
    monkeypatch.chdir(foreign.parent)
    arguments = ["--network=foreign.pkl", "--seeds=0", "--class=1", "--outdir=out", "--device=cpu"]
    assert "a generator has the parts mapping and synthesis" in run(
        *arguments, command=gen_images.main, code=1
    )
    assert "WEIGHTS_TEST_RAN" not in os.environ and not os.path.exists("out")
    output = run(*arguments, "--trust-pickle", command=gen_images.main)
    assert "warning: --trust-pickle runs the code in foreign.pkl" in output and os.path.exists(
        "out/seed0000.png"
    )
    assert os.environ.pop("WEIGHTS_TEST_RAN") == "yes"
    assert "it has no StyleGAN3 input layer" in run(
        *arguments, "--trust-pickle", "--rotate=5", command=gen_images.main, code=1
    )
    os.environ.pop("WEIGHTS_TEST_RAN", None)
    output = run("--source=foreign.pkl", "--dest=x.pkl", "--trust-pickle", code=1)
    assert "a generator has the parts" in output and "--trust-pickle can generate images from it" in output
    assert (
        "WEIGHTS_TEST_RAN" not in os.environ and "warning" not in output
    )  # what cannot be converted is not run


def test_trust_changes_nothing_for_a_file_that_can_be_read(folder):
    output = run("--source=a.pkl", "--dest=b.pkl", "--trust-pickle")
    assert "warning" not in output
    same(files.read("a.pkl").only("G"), files.read("b.pkl").only("G"))
    assert torch.is_tensor(files.read("b.pkl").generators["G"].mapping.w_avg)
