# SPDX-License-Identifier: Apache-2.0
"""Snapshots as published: D is made of classes by reference, from modules that are not here, and the networks
behind it still open.
"""

import io
import sys
import types

import pytest
import torch

from tests.fuzz.hostile import LOAD, blob, call, integer, name, small_generator, storage, tensor, text, watch
from torch_utils.persistence import read_network_pickle
from training.networks.reader import from_stub

# Every global that the published D and its feature networks refer to.
CLASSES = {
    "pg_modules.discriminator": ["ProjectedDiscriminator", "MultiScaleD", "SingleDisc", "SingleDiscCond"],
    "pg_modules.projector": ["F_RandomProj"],
    "pg_modules.blocks": ["DownBlock", "FeatureFusionBlock"],
    "pg_modules.san_modules": ["SANEmbedding", "SANConv2d"],
    "feature_networks.vit": ["Slice", "Transpose"],
    "timm.models.efficientnet_blocks": ["DepthwiseSeparableConv", "InvertedResidual"],
    "timm.models.layers.conv2d_same": ["Conv2dSame"],
    "timm.models.layers.mlp": ["Mlp"],
    "timm.models.layers.patch_embed": ["PatchEmbed"],
    "timm.models.vision_transformer": ["VisionTransformer", "Block", "Attention"],
    "torch.nn.modules.container": ["Sequential", "ModuleDict"],
    "torch.nn.modules.conv": ["Conv2d", "ConvTranspose2d"],
    "torch.nn.modules.linear": ["Linear", "Identity"],
    "torch.nn.modules.batchnorm": ["BatchNorm2d"],
    "torch.nn.modules.normalization": ["LayerNorm"],
    "torch.nn.modules.activation": ["LeakyReLU", "ReLU6", "GELU"],
    "torch.nn.modules.dropout": ["Dropout"],
    "torch.nn.modules.flatten": ["Unflatten"],
    "torch.nn.modules.module": ["Module", "_WrappedHook"],
    "torch.nn.utils.spectral_norm": [
        "SpectralNorm",
        "SpectralNormStateDictHook",
        "SpectralNormLoadStateDictPreHook",
    ],
    "torch.ao.nn.quantized.modules.functional_modules": ["FloatFunctional"],
    "torch.nn.quantized.modules.functional_modules": ["FloatFunctional"],
}
FUNCTIONS = {
    "feature_networks.vit": ["forward_flex", "_resize_pos_embed", "__dict__"],
    "torch": ["Size"],
    "builtins": ["getattr", "setattr"],
    "dill": ["_dill"],
    "dill._dill": ["_create_function", "_create_code", "_create_cell", "_load_type"],
}


def module_opcodes(module, class_name, children=b""):
    """An object of a class by reference: NEWOBJ without arguments, BUILD with a module's state."""
    parameter = call(
        name("torch._utils", "_rebuild_parameter"),
        tensor(call(LOAD, blob(storage([1.0, 2, 3, 4])))),
        b"\x88",
        b"}",
    )
    state = b"".join(
        (
            text("training") + b"\x89",
            text("_parameters")
            + call(name("collections", "OrderedDict"))
            + text("weight")
            + parameter
            + b"s",
            text("_buffers") + b"}" + text("running") + tensor(call(LOAD, blob(storage([0.0] * 4)))) + b"s",
            text("_modules") + call(name("collections", "OrderedDict")) + children,
            text("_forward_hooks")
            + call(name("collections", "OrderedDict"))
            + integer(0)
            + name("dill._dill", "_create_function")
            + b")Rs",
            text("kernel") + b"K\x03K\x03\x86",
        )
    )
    return name(module, class_name) + b")\x81}(" + state + b"ub"


def published_discriminator():
    """D with a child of every class, and a use of every function."""
    children, at = b"", 0
    for module, names in CLASSES.items():
        for class_name in names:
            children += text(f"part{at}") + module_opcodes(module, class_name) + b"s"
            at += 1
    D = module_opcodes("pg_modules.discriminator", "ProjectedDiscriminator", children)
    uses = b""
    for module, names in FUNCTIONS.items():
        for function in names:
            argument = b"K\x01K\x02\x86" if function == "Size" else text("print")
            uses += call(name(module, function), argument)
            uses += call(name("builtins", "getattr"), name(module, function), text("__globals__"))
    D += b"}" + text("pretrained") + b"}" + text("activations") + b"](" + uses + b"es" + b"sb"
    return D, at


def test_every_listed_global_is_inert():
    D, parts = published_discriminator()
    content = b"\x80\x04}(" + text("G") + b"N" + text("D") + D + b"u."
    with watch() as events:
        data = read_network_pickle(io.BytesIO(content))
        tensors = data["D"].named_tensors()
    assert not events
    listed = {
        f"{module}.{attribute}"
        for table in (CLASSES, FUNCTIONS)
        for module, names in table.items()
        for attribute in names
    }
    assert listed <= set(data.globals_used)
    assert len(tensors) == 2 * (parts + 1) and tensors["part3.weight"].tensor().tolist() == [1, 2, 3, 4]
    assert (
        tensors["part3.weight"].is_parameter
        and data["D"].origin == "pg_modules.discriminator.ProjectedDiscriminator"
    )
    assert "pg_modules" not in sys.modules and "feature_networks" not in sys.modules


def test_a_snapshot_written_by_dill_from_modules_that_are_gone(tmp_path, monkeypatch):
    """The published way to write one: classes by reference, a hook that is a closure, by dill; then the
    modules are gone.
    """
    dill = pytest.importorskip("dill")
    names = {
        "pg_modules": [],
        "feature_networks": [],
        **{m: c for m, c in CLASSES.items() if m.startswith(("pg_modules", "feature_networks"))},
    }
    for module_name, classes in names.items():
        module = types.ModuleType(module_name)
        for class_name in classes:
            setattr(module, class_name, type(class_name, (torch.nn.Module,), {"__module__": module_name}))
        monkeypatch.setitem(sys.modules, module_name, module)
    D = sys.modules["pg_modules.discriminator"].ProjectedDiscriminator()
    D.block = sys.modules["pg_modules.blocks"].DownBlock()
    D.block.conv = torch.nn.utils.spectral_norm(torch.nn.Conv2d(2, 2, 1))
    activations = {}

    def make_hook(key):
        def hook(module, inputs, output):
            activations[key] = output

        return hook

    D.block.conv.register_forward_hook(make_hook("1"))
    D.block.conv(torch.ones(1, 2, 1, 1))
    G = small_generator().eval().requires_grad_(False)
    z, c = torch.randn(2, 4), torch.tensor([0, 1])
    expected = G(z, c)
    for protocol in (2, 3, 4, 5):
        content = dill.dumps(
            dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None), protocol=protocol
        )
        with monkeypatch.context() as gone:
            for module_name in names:
                gone.delitem(sys.modules, module_name)
            with watch() as events:
                data = read_network_pickle(io.BytesIO(content))
                twin = from_stub(data["G_ema"])
            assert not events
            assert data["G"] is data["G_ema"]
            assert torch.equal(twin(z, c), expected)
            assert {"block.conv.weight_orig", "block.conv.weight_u", "block.conv.bias"} <= set(
                data["D"].named_tensors()
            )
            assert any(used.startswith("dill._dill._create_") for used in data.globals_used)
