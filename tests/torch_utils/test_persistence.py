# SPDX-License-Identifier: Apache-2.0
"""Persistent classes, and a reader of network pickles that runs nothing, whatever it is given."""

import collections
import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import waiting
from tests.example_counts import examples
from torch_utils import persistence
from torch_utils.persistence import read_network_pickle, save_network_pickle

ROOT = Path(__file__).resolve().parent.parent.parent


@persistence.persistent_class
class Toy(torch.nn.Module):
    """A persistent class of a module with other content."""

    def __init__(self, size, scale=2.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(float(size)))
        self.register_buffer("step", torch.tensor(7))
        self.register_buffer("nothing", None)
        self.child = torch.nn.Linear(2, 2)
        self.scale = np.float64(scale)
        self.sizes = np.array([size, size])


class Plain(Toy):
    """A subclass that is not persistent."""


def read(content, **kwargs):
    return read_network_pickle(
        io.BytesIO(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4)), **kwargs
    )


def refuse(content, message):
    """The reader refuses `content` in one line that says `message`."""
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args, *([] if state is None else [state]))

    def __reduce__(self):
        return self.parts


# Persistent classes


def test_arguments_class_and_source_are_remembered():
    toy = Toy(3, scale=4.0)
    assert toy.init_args == (3,) and toy.init_kwargs == {"scale": 4.0} and toy.init_kwargs.scale == 4.0
    assert (
        persistence.is_persistent(toy)
        and persistence.is_persistent(Toy)
        and not persistence.is_persistent(Plain(1))
    )
    assert persistence.persistent_class(Toy) is Toy
    for twin in (pickle.loads(pickle.dumps(toy)), copy.deepcopy(toy)):
        assert (
            type(twin) is Toy and torch.equal(twin.weight, toy.weight) and twin.init_kwargs == toy.init_kwargs
        )
    assert type(copy.deepcopy(Plain(2))) is Plain


def test_a_pickle_has_the_published_layout():
    meta = Toy(3).__reduce__()[1][0]
    assert list(meta) == ["type", "version", "module_src", "class_name", "state"]
    assert meta["type"] == "class" and meta["version"] == 6 and meta["class_name"] == "Toy"
    assert meta["module_src"] == Path(__file__).read_text()
    stub = read({"G": Toy(3)})["G"]
    assert stub.persistent and stub.class_name == "Toy" and stub.module_src == meta["module_src"]


def test_saving_is_atomic_and_leaves_the_network_alone(tmp_path):
    toy = Toy(3)
    save_network_pickle(tmp_path / "a.pkl", {"G": toy})
    before = (tmp_path / "a.pkl").read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_network_pickle(tmp_path / "a.pkl", {"G": toy, "x": lambda: 0})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"] and (
        tmp_path / "a.pkl"
    ).read_bytes() == before
    assert toy.training and toy.weight.requires_grad
    assert not pickle.loads(before)["G"].weight.requires_grad


SOURCE = """
import os
import torch
from torch_utils import persistence
os.environ["PERSISTENCE_TEST_RAN"] = "yes"
@persistence.persistent_class
class Foreign(torch.nn.Module):
    def forward(self, x):
        return x + 1
"""


def foreign(source=SOURCE, **changes):
    meta = (
        dict(
            type="class", version=6, module_src=source, class_name="Foreign", state=torch.nn.Module().__dict__
        )
        | changes
    )
    return pickle.dumps({"G": Calls(persistence._reconstruct_persistent_obj, meta)})


def test_embedded_source_runs_only_when_trusted(monkeypatch):
    monkeypatch.delenv("PERSISTENCE_TEST_RAN", raising=False)
    monkeypatch.delenv("STYLESAN_TRUST_PICKLE", raising=False)
    data = foreign()
    assert read(data)["G"].class_name == "Foreign"
    with pytest.raises(ValueError, match="STYLESAN_TRUST_PICKLE=1"):
        pickle.loads(data)
    assert "PERSISTENCE_TEST_RAN" not in os.environ
    with persistence.trust_pickles():
        first = pickle.loads(data)["G"]
    assert os.environ.pop("PERSISTENCE_TEST_RAN") == "yes"
    assert first.forward(1) == 2 and persistence.is_persistent(first)
    again = pickle.loads(pickle.dumps(first))  # known by now: nothing runs
    assert type(again) is type(first) and "PERSISTENCE_TEST_RAN" not in os.environ
    other = foreign(SOURCE + "# another text\n")
    with pytest.raises(ValueError):
        pickle.loads(other)
    monkeypatch.setenv("STYLESAN_TRUST_PICKLE", "1")
    assert pickle.loads(other)["G"].forward(1) == 2
    with pytest.raises(ValueError, match="version 5"):
        pickle.loads(foreign(version=5))


def test_an_installed_module_of_the_same_text_is_imported_instead_of_run(tmp_path, monkeypatch):
    monkeypatch.delenv("STYLESAN_TRUST_PICKLE", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(persistence, "_registry", {})
    source = SOURCE + '__persistent_module__ = "homed"  # where this text is installed\n'
    data = foreign(source)
    with pytest.raises(ValueError, match="not installed here"):
        pickle.loads(data)
    (tmp_path / "homed.py").write_text(source + "# changed\n")
    with pytest.raises(ValueError, match="not installed here"):
        pickle.loads(data)
    assert "homed" not in sys.modules
    (tmp_path / "homed.py").write_text(source)
    try:
        assert type(pickle.loads(data)["G"]) is sys.modules["homed"].Foreign
    finally:
        sys.modules.pop("homed", None)
        os.environ.pop("PERSISTENCE_TEST_RAN", None)


def test_import_hooks_see_and_change_what_is_loaded(monkeypatch):
    monkeypatch.setattr(persistence, "_import_hooks", [])
    seen = []

    @persistence.import_hook
    def hook(meta):
        seen.append(meta.class_name)
        meta.state = meta.state | {"marked": True}
        return meta

    assert pickle.loads(pickle.dumps(Toy(2))).marked and seen == ["Toy"]


def test_pickles_load_where_only_dnnlib_and_torch_utils_are(tmp_path):
    """The published way: a process without this project's training package runs the embedded source, once it
    is allowed to.
    """
    from training.generator import build_stem

    torch.manual_seed(0)
    G = build_stem("stylegan3-t", 16, 2, syn_layers=4, cbase=64, cmax=4, z_dim=4, w_dim=8).eval()
    save_network_pickle(tmp_path / "g.pkl", {"G_ema": G})
    for package in ("dnnlib", "torch_utils"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import pickle, sys, torch
from torch_utils import persistence
try:
    pickle.load(open("g.pkl", "rb"))
except ValueError as err:
    print("refused:", err)
with persistence.trust_pickles():
    G = pickle.load(open("g.pkl", "rb"))["G_ema"]
assert "training" not in sys.modules
torch.save(G(torch.ones(2, 4), torch.eye(2)), "image.pt")
"""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "STYLESAN_TRUST_PICKLE")
    }
    result = waiting.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        "refused: this pickle contains source code for FullyConnectedLayer that is not installed here"
    )
    torch.testing.assert_close(torch.load(tmp_path / "image.pt"), G(torch.ones(2, 4), torch.tensor([0, 1])))


# The reader


def test_data_comes_back_as_it_was():
    toy = Toy(3)
    plain = {
        "a": [1, 2.5, None, True, "x", b"y", (1, 2)],
        "n": np.float32(0.5),
        "m": np.arange(6).reshape(2, 3).T,
        "big": 2**70,
        "set": {1, 2},
    }
    data = read({"G": toy, "kw": plain, "o": collections.OrderedDict(a=1)})
    assert (
        data["kw"]["a"] == plain["a"]
        and data["kw"]["set"] == {1, 2}
        and data["kw"]["big"] == 2**70
        and data["o"] == {"a": 1}
    )
    assert data["kw"]["n"] == np.float32(0.5) and data["kw"]["n"].dtype == np.float32
    np.testing.assert_array_equal(data["kw"]["m"], plain["m"])
    tensors = data["G"].named_tensors()
    assert tensors.keys() == toy.state_dict().keys()
    for name, value in toy.state_dict().items():
        assert torch.equal(tensors[name].tensor(), value) and tensors[name].dtype == value.dtype
    assert tensors["weight"].is_parameter and not tensors["step"].is_parameter
    assert data.globals_used["torch.nn.modules.linear.Linear"] == 1


def test_torchs_version_is_a_text():
    """torch.__version__ is of a class of its own, and snapshots of version 0.1 hold it as it is."""
    data = read({"provenance": {"torch": torch.__version__, "python": "3.12"}})
    assert type(data["provenance"]["torch"]) is str and data["provenance"]["torch"] == str(torch.__version__)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_every_type_and_layout(dtype, protocol):
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    values = {
        "plain": base,
        "view": base[:, 1:, ::2],
        "transposed": base.permute(2, 0, 1),
        "scalar": base[0, 0, 1],
        "empty": base[:0],
    }
    content = pickle.dumps(values, protocol=protocol)
    data = read(content)
    for name, value in values.items():
        assert torch.equal(data[name].tensor(), value) and data[name].dtype == value.dtype


def test_a_discriminator_of_unknown_classes_is_inert():
    data = read({"D": torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(1, 1))})
    stub = data["D"]
    assert stub.origin == "torch.nn.modules.container.Sequential" and not stub.persistent
    assert "0.weight" in stub.named_tensors()


HOSTILE = {
    "posix.system|nt.system": Calls(os.system, "touch pwned"),
    "builtins.eval": Calls(eval, "open('pwned', 'w')"),
    "builtins.exec": Calls(exec, "open('pwned', 'w')"),
    "io.open": Calls(open, "pwned", "w"),
    "builtins.__import__": Calls(__import__, "os"),
    "subprocess.Popen|commands.Popen": Calls(subprocess.Popen, ["touch", "pwned"]),
    "posix.remove|nt.remove|posix.unlink|nt.unlink": Calls(os.remove, "kept"),
    "shutil.rmtree": Calls(shutil.rmtree, "kept"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("key", ["G_ema", "D"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_globals_are_refused_by_name(name, key, protocol, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").write_text("")
    content = pickle.dumps({"G": Toy(2) if protocol == 4 else None, key: HOSTILE[name]}, protocol=protocol)
    refuse(
        content,
        f"refused global _?({name.replace('.', '[.]').replace('builtins', '(builtins|__builtin__)')})",
    )
    read(content, strict=False)  # even where nothing is refused, nothing happens
    (tmp_path / "f.pkl").write_bytes(content)
    assert persistence.main(["f.pkl"]) == 1
    assert "refused global" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pkl", "kept"]


def test_getattr_chains_do_nothing(tmp_path, monkeypatch):
    from training.networks.reader import from_stub

    monkeypatch.chdir(tmp_path)
    chain = Calls(getattr, Calls(getattr, torch.nn.Module, "__init__"), "__globals__")
    data = read({"D": chain, "G_ema": chain})
    assert repr(data["D"]) == "<stub of builtins.getattr>"
    with pytest.raises(ValueError, match=r"not a generator but an object of builtins\.getattr"):
        from_stub(data["G_ema"])
    stub = read({"G": Toy(2)})["G"]
    stub.state["_modules"]["child"] = data["D"]
    assert [name for name, _ in stub.named_modules()] == ["", "child"]


def hand_made(*operations):
    return b"\x80\x04" + b"".join(operations) + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated"),
        (b"\x80\x04", "is truncated"),
        (b"hello world", "not a pickle of protocol 2 or newer"),
        (b"PK\x03\x04 a zip file", "it is a zip file"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"\n<!DOCTYPE html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b'\x50\0\0\0\0\0\0\0{"__metadata__":', "it is a safetensors file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "was written by torch.save"),
        (b"\x80\x06}.", "pickle protocol 6 is not supported"),
        (hand_made(b"h\x65"), "malformed BINGET"),
        (hand_made(b"}"), None),
        (hand_made(b"]"), "it contains a list, not a dict of networks"),
        (hand_made(b"N0"), "stack is empty"),
        (hand_made(b"("), "stack is empty"),
        (hand_made(b"}u"), "mark is missing"),
        (hand_made(b"}h\x05"), "malformed BINGET"),
        (hand_made(b"}r\xff\xff\xff\x7f"), None),  # a huge memo index costs nothing
        (hand_made(b"Pid\n"), "PERSID is not supported"),
        (hand_made(b"}Q"), "persistent id"),
        (hand_made(b"\x82\x01"), "EXT1 is not supported"),
        (hand_made(b"(i__main__\nX\n"), "INST is not supported"),
        (hand_made(b"I1\n"), "INT is not supported"),
        (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.", "is truncated"),
        (b"\x80\x04B" + (2**31 - 1).to_bytes(4, "little") + b"abc.", "is truncated"),
        (hand_made(b"\x8b" + (1000).to_bytes(4, "little") + b"\x7f" * 1000), "more than 256 bits"),
        (hand_made(b"}K\x01\x85\x85K\x01s"), "a tuple as a key"),
        (hand_made(b"}]K\x01s"), "a list as a key"),
        (hand_made(b"}K\x01K\x02R"), "a call of int 1"),
        (hand_made(b"}K\x01b"), None),
        (hand_made(b"K\x01}b"), "int 1 cannot have a state"),
        (hand_made(b"K\x01K\x02K\x03s"), "items for an object"),
    ],
)
def test_malformed_streams(content, message):
    if message is None:
        assert read(content) == {}
    else:
        refuse(content, message)


def test_nested_keys_and_structures_end():
    """Forty doublings of a tuple: hashing or printing it would take 2^40 steps, without end."""
    twice = b")" + b"2\x86" * 40
    refuse(hand_made(b"}", twice, b"K\x01s"), "a tuple as a key")
    data = read(hand_made(b"}\x8c\x01D", twice, b"s"))
    assert len(data["D"]) == 2 and persistence._brief.repr(data["D"])
    deep = read(hand_made(b"}\x8c\x01D", b"]" * 200_000, b"a" * 199_999, b"s"))
    assert persistence._brief.repr(deep["D"])


def test_modules_in_themselves_are_refused():
    toy = Toy(1)
    stub = read({"G": toy})["G"]
    stub.state["_modules"]["child"] = stub
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        stub.named_tensors()


def _storage_bytes(tensor):
    reduced = (
        tensor.untyped_storage()
        if False
        else torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
    )
    return reduced.__reduce__()[1][0]


def tensor_call(offset=0, shape=(4,), stride=(1,), data=None):
    storage = Calls(
        torch.storage._load_from_bytes, _storage_bytes(torch.arange(4.0)) if data is None else data
    )
    return {
        "t": Calls(
            torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, collections.OrderedDict()
        )
    }


def test_tensors_stay_in_their_storage():
    assert read(tensor_call())["t"].tensor().tolist() == [0, 1, 2, 3]
    assert read(tensor_call(1, (1, 3), (99, 1)))["t"].tensor().tolist() == [[1, 2, 3]]
    for offset, shape, stride in [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (0, (2, 3), (3, 1)),
        (0, (2,), (4,)),
        (2**62, (1,), (1,)),
        (4, (), ()),
    ]:
        refuse(tensor_call(offset, shape, stride), "extends beyond its storage")
    for shape, stride in [((2**40,), (0,)), ((2**20, 2**20), (0, 0)), ((3, 3), (1, 0))]:
        refuse(tensor_call(0, shape, stride), "overlaps itself")
    for offset, shape, stride in [
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), ()),
        (0, (2.0,), (1,)),
        (0, [2], (1,)),
        (0, (1,) * 17, (1,) * 17),
    ]:
        refuse(tensor_call(offset, shape, stride), "malformed shape or stride")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "has 15 bytes"),
        (lambda b: b + b"\0", "has 17 bytes"),
        (lambda b: b[:40], "is truncated"),
        (lambda b: b.replace(b"little_endian", b"little_endiaN"), "big-endian"),
        (
            lambda b: b.replace(b"FloatStorage", b"QuintStorage"),
            "refused global torch.QuintStorage inside a tensor's storage",
        ),
        (
            lambda b: b.replace(b"ctorch\nFloatStorage", b"cposix\nsystem"),
            "refused global posix.system inside a tensor's storage",
        ),
        (lambda b: b"\x80\x02K\x01." + b[b.index(b".") + 1 :], "unknown format"),
        (lambda b: "text", "storage is not a bytes object"),
    ],
)
def test_storages_are_checked(change, message):
    refuse(tensor_call(data=change(_storage_bytes(torch.arange(4.0)))), message)


def test_arrays_hold_numbers_only():
    refuse({"a": np.array([object()])}, "refused numpy dtype 'O8'")
    refuse({"a": np.array(["text"])}, "refused numpy dtype 'U4'")
    refuse({"a": np.zeros(2, dtype=[("x", "f4")])}, "refused numpy dtype")
    refuse({"a": np.arange(3, dtype=">i8")}, "only little-endian")
    content = pickle.dumps({"a": np.arange(4, dtype=np.uint8) + 65}, protocol=4)
    assert content.count(b"ABCD") == 1
    refuse(content.replace(b"C\x04ABCD", b"C\x03ABC"), "malformed numpy array")


@pytest.fixture(scope="module")
def sample():
    torch.manual_seed(0)
    return pickle.dumps(
        {"G": Toy(2), "D": torch.nn.Linear(1, 1), "kw": {"a": np.arange(2), "b": np.float32(1)}}, protocol=4
    )


@settings(deadline=None, max_examples=examples(150))
@given(st.data())
def test_any_cut_is_one_line(sample, data):
    refuse(sample[: data.draw(st.integers(0, len(sample) - 1))], "is truncated")


@settings(deadline=None, max_examples=examples(300))
@given(st.data())
def test_any_damage_is_a_value_error_or_none(sample, data):
    damaged = bytearray(sample)
    start = sample.index(b"class_name") if data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(start, len(sample) - 1))] = data.draw(st.integers(0, 255))
    try:
        content = read(bytes(damaged))
        for value in content.values():
            if isinstance(value, persistence.ObjectStub):
                value.named_tensors()
    except ValueError as err:
        assert "\n" not in str(err)


def test_the_command_line(tmp_path, capsys):
    save_network_pickle(
        tmp_path / "a.pkl", {"G": Toy(3), "D": None, "training_set_kwargs": {"path": "x.zip"}}
    )
    assert persistence.main([str(tmp_path / "a.pkl")]) == 0
    out = capsys.readouterr().out
    assert (
        "G: Toy (persistent Toy), 9 parameters, 4 tensors" in out
        and "contains source code" in out
        and "scale = 2" in out
    )
    assert persistence.main([str(tmp_path / "absent.pkl")]) == 1
    assert persistence.main([]) == 2
    (tmp_path / "b.pkl").write_bytes(b"nonsense")
    assert persistence.main([str(tmp_path / "b.pkl")]) == 1
    assert capsys.readouterr().err.count("\n") == 3
