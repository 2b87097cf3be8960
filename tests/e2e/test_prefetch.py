# SPDX-License-Identifier: Apache-2.0
"""train.py --prefetch against a hub in this process, then a run of the same flags without a network."""

import hashlib
import http.server
import json
import os
import shlex
import subprocess
import sys
import threading

import pytest
import timm
from click.testing import CliRunner
from safetensors.torch import save

import calc_metrics
import train
from dnnlib.util import make_cache_dir_path
from metrics import detectors
from tests import waiting
from tests.quick_processes import quick_environment
from tests.support import ROOT
from tests.toy_data import make_zip
from tests.toy_runs import FLAGS
from torch_utils import timm_weights
from torch_utils.ops.backend import extension

pytestmark = pytest.mark.e2e

NETWORK, REPOSITORY = (
    "test_efficientnet",
    "timm/test_efficientnet.r160_in1k",
)  # timm's own network for tests: 0.36 M parameters


class Hub(http.server.ThreadingHTTPServer):
    """Answers for one file of one repository as the hub does for large files: its SHA-256 is its ETag. Notes
    what it is asked for.
    """

    def __init__(self, body: bytes, sha256: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.body, self.sha256 = body, sha256 or hashlib.sha256(body).hexdigest()
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path != f"/{REPOSITORY}/resolve/main/model.safetensors":
            return self.send_error(404)
        self.send_response(200)
        for name, value in {
            "X-Repo-Commit": "a" * 40,
            "ETag": f'"{self.server.sha256}"',
            "Content-Length": str(len(self.server.body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def weights() -> bytes:
    return save(
        {k: v.contiguous() for k, v in timm.create_model(NETWORK, pretrained=False).state_dict().items()}
    )


@pytest.fixture
def hub(weights):
    server = Hub(weights)
    yield server
    server.shutdown()
    server.server_close()


def environment(**more: str) -> dict[str, str]:
    ours = {"HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "DNNLIB_CACHE_DIR"}
    quick = quick_environment(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1")
    return {**{k: v for k, v in quick.items() if k not in ours}, **more}


def run_train(arguments: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return waiting.run([sys.executable, str(ROOT / "train.py"), *arguments], env=environment(**env))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_zip(tmp_path_factory.mktemp("data"), "three16", classes=3, count=12)


def training_flags(data, outdir) -> list[str]:
    rest = [f for f in FLAGS if not f.startswith(("--backbone", "--kimg", "--class-embedding"))]
    base = [f"--outdir={outdir}", f"--data={data}", "--cfg=stylegan3-t", "--gpus=1", "--cond=True", *rest]
    return [*base, "--kimg=0.008", f"--backbones={NETWORK}"]


def test_a_run_or_plan_that_lacks_a_file_names_the_exact_command(data, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    flags = training_flags(data, tmp_path / "two words")
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    result = CliRunner().invoke(train.main, flags)
    assert result.exit_code == 1 and not (tmp_path / "two words").exists()
    (line,) = [
        line
        for line in result.output.splitlines()
        if line.startswith(f"Error: weights of {NETWORK}: cannot fetch")
    ]
    command = shlex.split(line.split("on a machine with internet access, run: ")[1])
    assert command == ["python", "train.py", "--prefetch", *flags]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "-n"])
    result = CliRunner().invoke(train.main, [*flags, "-n"])
    assert (
        result.exit_code == 0 and f"Download what is available with: {shlex.join(command)}\n" in result.output
    )


def test_what_was_fetched_is_found_without_a_network(hub, weights, data, tmp_path):
    shared = tmp_path / "a folder"
    flags = training_flags(data, tmp_path / "runs")
    fetched = run_train(
        [f"--prefetch={shared}", *flags], HF_ENDPOINT=hub.address, HF_HUB_CACHE=str(tmp_path / "unused")
    )
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    file = (
        shared
        / "hub"
        / "models--timm--test_efficientnet.r160_in1k"
        / "snapshots"
        / ("a" * 40)
        / "model.safetensors"
    )
    assert (
        file.read_bytes() == weights
        and not (tmp_path / "unused").exists()
        and not (tmp_path / "runs").exists()
    )
    assert f"Downloading model.safetensors of {REPOSITORY} ({len(weights):,} bytes)" in fetched.stdout
    assert f"{NETWORK} (backbone)\n  {file}\n  {len(weights):,} bytes, sha256 {hub.sha256}" in fetched.stdout
    assert "tf_efficientnet_lite0 (class embedding)" in fetched.stdout
    assert (
        f"export DNNLIB_CACHE_DIR='{shared}' HF_HUB_CACHE='{shared}/hub' HF_HUB_OFFLINE=1" in fetched.stdout
    )

    asked = len(hub.asked)
    kernels = {
        extension.FOLDER_VARIABLE: make_cache_dir_path("ops")
    }  # not compiled once more for this cache folder
    trained = run_train(
        flags, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(shared / "hub"), DNNLIB_CACHE_DIR=str(shared), **kernels
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert json.loads(next((tmp_path / "runs").glob("*/status.json")).read_text())["outcome"] == "finished"
    assert len(hub.asked) == asked


def test_a_damaged_file_is_refused_and_the_rest_is_fetched(weights, tmp_path):
    server = Hub(weights, sha256="0" * 64)
    result = run_train(
        [f"--prefetch={tmp_path}", f"--backbones={NETWORK},tf_efficientnet_lite0", "--metrics=none"],
        HF_ENDPOINT=server.address,
    )
    server.shutdown()
    server.server_close()
    assert result.returncode == 1 and "is damaged (its sha256 is not 0000" in result.stdout
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith(f"Error: 1 of 2 downloads failed: {NETWORK} (backbone)")
    )
    assert "tf_efficientnet_lite0 (backbone): available" in result.stdout and "1 file" in result.stdout


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What --prefetch asks for, with nothing downloaded."""
    calls = []

    def fake(name, weights=None, cache=None, say=None):
        calls.append((name, weights, cache))
        path = tmp_path / name.replace("/", "_").replace(":", "_")
        path.write_bytes(name.encode())
        return path

    monkeypatch.setattr(timm_weights, "fetch", fake)
    monkeypatch.setattr(detectors, "find_inception", lambda *args: fake("inception"))
    monkeypatch.setattr(train.dnnlib.util, "open_url", lambda url, **kwargs: fake(url))
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "/nowhere")  # so that a test's own change of it is undone
    return calls


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], {"deit_base_distilled_patch16_224", "tf_efficientnet_lite0", "inception"}),
        (["--metrics=none", "--backbones=tf_efficientnet_lite0"], {"tf_efficientnet_lite0"}),
        (["--metrics=fd_lite0", "--backbones=resnet18"], {"tf_efficientnet_lite0", "resnet18"}),
        (["--metrics=none", "--backbones=resnet18", "--cond=1"], {"tf_efficientnet_lite0", "resnet18"}),
        (["--metrics=none", "--backbones=resnet18", "--cond=1", "--class-embedding=random"], {"resnet18"}),
        (
            ["--metrics=none", "--backbones=resnet18", "--init-from=http://h/x.pkl"],
            {"resnet18", "http://h/x.pkl"},
        ),
        (
            ["--recipe=imagenet256"],
            {
                "deit_base_distilled_patch16_224",
                "tf_efficientnet_lite0",
                "deit_small_distilled_patch16_224",
                "inception",
            },
        ),
        (
            ["--recipe=imagenet256", "--stages=16"],
            {"deit_base_distilled_patch16_224", "tf_efficientnet_lite0", "inception"},
        ),
    ],
)
def test_every_network_that_the_flags_need_is_asked_for(arguments, names, asked):
    result = CliRunner().invoke(train.main, ["--prefetch", *arguments])
    assert result.exit_code == 0, result.output
    assert {name for name, _, _ in asked} == names
    assert (
        all(cache is None for _, _, cache in asked)
        and "Jobs find them in the same cache folders: /nowhere and " in result.output
    )


def test_files_of_ones_own_are_listed_and_a_folder_takes_the_place_of_the_caches(asked, tmp_path):
    arguments = [
        f"--prefetch={tmp_path / 'all'}",
        "--metrics=none",
        "--backbones=resnet18",
        "--backbone-weights=resnet18=mine.pth",
    ]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 0 and asked == [("resnet18", "mine.pth", str(tmp_path / "all" / "hub"))], (
        result.output
    )
    assert os.environ["DNNLIB_CACHE_DIR"] == str(tmp_path / "all")


def test_mistakes_get_one_line(asked):
    for arguments, message in (
        (["--metrics=fid50kfull"], "fid50k_full"),
        (["--recipe=nowhere"], "--recipe=nowhere"),
        (["--superres"], "--path_stem"),
    ):
        result = CliRunner().invoke(train.main, ["--prefetch", *arguments])
        assert result.exit_code == 1 and message in result.output and not asked


def test_metrics_without_their_network_name_the_command(data, tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_OFFLINE", "1")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(detectors.INCEPTION_ENV, raising=False)
    result = CliRunner().invoke(
        calc_metrics.main, [f"--images={data}", f"--data={data}", "--metrics=fid50k_full", "--device=cpu"]
    )
    assert result.exit_code == 1 and len(result.output.strip().splitlines()) == 1
    assert result.output.strip().endswith(
        "run: python train.py --prefetch --metrics=fid50k_full --backbones=tf_efficientnet_lite0"
    )
