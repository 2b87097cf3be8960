# SPDX-License-Identifier: Apache-2.0
"""Export a generator to two ONNX files, mapping and synthesis, and compare them with onnxruntime.

    NAME.mapping.onnx    z [N, z_dim] float32, labels [N] int64 (if there are classes), truncation_psi []
                         float32 -> ws [N, num_ws, w_dim]
    NAME.synthesis.onnx  ws [N, num_ws, w_dim] float32 -> images [N, img_channels, R, R] float32

N is free. The matrix synthesis.input.transform is stored as it is at the time of the export. The export uses
the reference operations. It needs the extra `onnx` (onnx, onnxscript, onnxruntime).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import dnnlib
from training import generator as generator_module
from training.generator import Generator

OPSET = 20  # the first opset with the operators of an affine grid


class MappingForExport(torch.nn.Module):
    """G.mapping without the checks of its arguments, and with psi as an input."""

    def __init__(self, mapping: generator_module.MappingNetwork) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(
        self, z: torch.Tensor, labels: torch.Tensor | None, truncation_psi: torch.Tensor
    ) -> torch.Tensor:
        """Return ws [N, num_ws, w_dim] for latents, labels and psi."""
        m = self.mapping
        w = m.styles(z, labels)
        w_avg = m.w_avg if labels is None or m.linear_labels else m.w_avg[labels]
        w = w_avg + truncation_psi * (w - w_avg)
        return w[:, None, :].repeat(1, m.num_ws, 1)


class SynthesisForExport(torch.nn.Module):
    """G.synthesis as a function of ws only."""

    def __init__(self, synthesis: generator_module.SynthesisNetwork) -> None:
        super().__init__()
        self.synthesis = synthesis

    def forward(self, ws: torch.Tensor) -> torch.Tensor:
        """Return images for ws [N, num_ws, w_dim]."""
        images: torch.Tensor = self.synthesis(ws, noise_mode="const", force_fp32=True)
        return images


@contextlib.contextmanager
def reference_ops() -> Iterator[None]:
    """Context in which generators use impl='ref': torch's own operations, which an exporter can trace.

    The computation is then the same for every batch size.
    """
    names = ("bias_act", "filtered_lrelu")
    saved = {name: getattr(generator_module, name) for name in (*names, "_is_one_image")}
    try:
        for name in names:
            setattr(
                generator_module,
                name,
                SimpleNamespace(**{name: functools.partial(getattr(saved[name], name), impl="ref")}),
            )
        generator_module._is_one_image = lambda x: False
        yield
    finally:
        for name, value in saved.items():
            setattr(generator_module, name, value)


def export(G: Generator, prefix: str | os.PathLike[str]) -> list[Path]:
    """Write PREFIX.mapping.onnx and PREFIX.synthesis.onnx for a generator on the CPU.

    The files get their names only when both are complete.

    Returns:
        The two paths.

    Raises:
        ValueError: The extra is not installed, or a network exceeds the size limit of ONNX files (2 GB).
    """
    require_onnx()
    z, ws = torch.randn(2, G.z_dim), torch.randn(2, G.num_ws, G.w_dim)
    labels = torch.zeros(2, dtype=torch.int64) if G.c_dim else None
    batch = torch.export.Dim("batch", min=1, max=65535)
    parts: list[tuple[str, torch.nn.Module, tuple[Any, ...], list[str], str, tuple[Any, ...]]] = [
        (
            "mapping",
            MappingForExport(G.mapping),
            (z, labels, torch.tensor(1.0)),
            ["z", "labels", "truncation_psi"] if G.c_dim else ["z", "truncation_psi"],
            "ws",
            ({0: batch}, {0: batch} if G.c_dim else None, None),
        ),
        ("synthesis", SynthesisForExport(G.synthesis), (ws,), ["ws"], "images", ({0: batch},)),
    ]
    contents = {
        Path(f"{os.fspath(prefix)}.{name}.onnx"): _export_one(module.eval(), args, inputs, output, shapes)
        for name, module, args, inputs, output, shapes in parts
    }
    with contextlib.ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(dnnlib.util.atomic_write(path)).write(content)
    return list(contents)


def require_onnx() -> None:
    """Check that the extra `onnx` is installed.

    Raises:
        ValueError: It is not; the message has the remedy.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"ONNX export needs the package {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None


def _export_one(
    module: torch.nn.Module, args: tuple[Any, ...], inputs: list[str], output: str, shapes: tuple[Any, ...]
) -> bytes:
    with reference_ops(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() >= 2**31:
        raise ValueError("this network is larger than 2 GB, the limit of an ONNX file")
    return bytes(proto.SerializeToString())


def compare(G: Generator, paths: list[Path], batch: int = 3, seed: int = 0) -> dict[str, float]:
    """Compare the files under onnxruntime with the generator.

    Returns:
        Largest absolute differences {'ws': ..., 'images': ...}.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("the comparison needs onnxruntime: pip install onnxruntime") from None
    sessions = [
        onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"]) for path in paths
    ]
    random = np.random.RandomState(seed)
    z = random.randn(batch, G.z_dim).astype(np.float32)
    labels = random.randint(0, G.c_dim, batch).astype(np.int64) if G.c_dim else None
    feed = {
        "z": z,
        "truncation_psi": np.array(0.7, np.float32),
        **({"labels": labels} if labels is not None else {}),
    }
    ws = sessions[0].run(None, feed)[0]
    images = sessions[1].run(None, {"ws": ws})[0]
    with torch.no_grad():
        expected = G.mapping(
            torch.from_numpy(z), None if labels is None else torch.from_numpy(labels), truncation_psi=0.7
        )
        drawn = G.synthesis(expected, force_fp32=True)
    return {
        "ws": float(np.abs(ws - expected.numpy()).max()),
        "images": float(np.abs(images - drawn.numpy()).max()),
    }
