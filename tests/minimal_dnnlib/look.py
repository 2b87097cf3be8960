# SPDX-License-Identifier: Apache-2.0
"""Load a network pickle as other projects do, and use its networks as their scripts do.

python look.py network-snapshot.pkl seed result.npz resaved.pkl
"""

import copy
import importlib.util
import pickle
import sys

import numpy as np
import torch

assert not any(importlib.util.find_spec(name) for name in ("training", "metrics")), (
    "only dnnlib and torch_utils may be here"
)
with open(sys.argv[1], "rb") as file:
    data = pickle.load(file)
for key in ("G", "D", "G_ema"):
    assert isinstance(data[key], torch.nn.Module), key
assert data["augment_pipe"] is None and isinstance(data["training_set_kwargs"], dict)
assert all(not p.requires_grad for p in data["G_ema"].parameters()) and not data["G_ema"].training
G = copy.deepcopy(data["G_ema"]).eval().requires_grad_(False)

random = np.random.RandomState(int(sys.argv[2]))
z = torch.from_numpy(random.randn(2, G.z_dim))
c = torch.eye(G.c_dim)[[1, 0]] if G.c_dim else torch.zeros([2, 0])
out = {"image": G(z, c, truncation_psi=0.7, noise_mode="const")}
ws = G.mapping(z, c, truncation_psi=0.7)
assert ws.shape == (2, G.num_ws, G.w_dim) == (2, G.mapping.num_ws, G.w_dim)
again = G.synthesis(ws, noise_mode="none", force_fp32=True)
assert again.shape == (2, G.img_channels, G.img_resolution, G.img_resolution) and again.dtype == torch.float32
assert torch.equal(again, out["image"])
if G.c_dim:
    assert torch.equal(G.mapping(z, torch.zeros([2, G.c_dim])), G.mapping(z, torch.eye(G.c_dim)[[0, 0]]))
assert G.mapping.w_avg.shape[-1] == G.w_dim
assert hasattr(G.synthesis, "input") and G.synthesis.input.transform.shape == (3, 3)
matrix = np.eye(3)
matrix[0, 2] = 0.25
G.synthesis.input.transform.copy_(torch.from_numpy(matrix))
out["moved"] = G.synthesis(ws)
G.synthesis.input.transform.copy_(torch.eye(3))

# A visualizer hooks every module; scripts build a network anew from its arguments, and write it again.
seen = []
hooks = [
    module.register_forward_hook(lambda module, inputs, result: seen.append(type(module).__name__))
    for module in G.modules()
]
G(z, c)
assert seen.count("SynthesisLayer") == len(G.synthesis.layer_names), seen
for hook in hooks:
    hook.remove()
twin = type(G)(*G.init_args, **G.init_kwargs).eval().requires_grad_(False)
assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in G.state_dict().items()}
twin.load_state_dict(G.state_dict())
assert torch.equal(twin(z, c), G(z, c))
assert torch.equal(pickle.loads(pickle.dumps(G))(z, c), G(z, c))

# Fine-tuning projects copy parameters and buffers by name into a network that they have built, and save what
# they made.
names = dict([*G.named_parameters(), *G.named_buffers()])
other = type(G)(*G.init_args, **G.init_kwargs).eval().requires_grad_(False)
for name, tensor in [*other.named_parameters(), *other.named_buffers()]:
    tensor.copy_(names[name].detach())
assert torch.equal(other(z, c), G(z, c))

# Dragging and inversion take features of a named layer, move ws by a gradient, and look at the input's
# transformation of w.
features = {}
layer = dict(G.synthesis.named_modules())[G.synthesis.layer_names[-2]]
hook = layer.register_forward_hook(lambda module, inputs, result: features.update(last=result))
with torch.enable_grad():
    moving = ws.clone().requires_grad_(True)
    loss = (
        G.synthesis(moving, noise_mode="const", force_fp32=True).square().mean()
        + features["last"].square().mean()
    )
    loss.backward()
hook.remove()
assert moving.grad.abs().max() > 0 and features["last"].ndim == 4
assert G.synthesis.input.affine(ws[:, 0]).shape == (2, 4)
assert G.synthesis.num_ws == G.num_ws == G.mapping.num_ws == len(G.synthesis.layer_names) + 1
assert G.synthesis.img_resolution == G.img_resolution == G.init_kwargs.img_resolution
average = G.mapping.w_avg.reshape(-1, G.w_dim)
assert average.shape[0] in (1, G.c_dim) and isinstance(G.z_dim, int) and isinstance(G.init_args, tuple)
with torch.no_grad():
    G.mapping.w_avg.add_(1)
    layer.bias.add_(0.5)
with open(sys.argv[4], "wb") as file:
    pickle.dump(dict(data, G=None, D=None, G_ema=G), file)
out["resaved"] = G(z, c, truncation_psi=0.7)
out.update({"D." + name: value for name, value in data["D"].state_dict().items()})
np.savez(sys.argv[3], **{key: value.numpy() for key, value in out.items()})
print(torch.__version__, sys.version.split()[0])
