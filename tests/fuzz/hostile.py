# SPDX-License-Identifier: Apache-2.0
"""Hostile network pickles, and a watch that sees whether reading one runs anything.

`corpus()` writes them opcode by opcode: nothing here is ever built by the objects that it names, and nothing
is loaded with `pickle`.
"""

import collections
import contextlib
import io
import json
import pickle
import struct
import sys

import numpy as np
import torch

from torch_utils import persistence
from training.generator import Generator, build_stem
from training.networks import files
from training.networks.reader import from_stub

# Pieces of pickles


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return (
        b"\x8c" + bytes([len(data)]) + data if len(data) < 256 else b"X" + struct.pack("<I", len(data)) + data
    )


def integer(value):
    return b"J" + struct.pack("<i", value)


def blob(data):
    return b"B" + struct.pack("<I", len(data)) + data


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"  # STACK_GLOBAL


def put(index):
    return b"r" + struct.pack("<I", index)


def get(index):
    return b"j" + struct.pack("<I", index)


def call(function, *args):
    return function + b"(" + b"".join(args) + b"tR"


def stream(body, protocol=4):
    """A pickle of {"G_ema": body}."""
    return b"\x80" + bytes([protocol]) + b"}" + b"X" + struct.pack("<I", 5) + b"G_ema" + body + b"s."


def storage(values):
    """What torch writes for the storage of a small tensor."""
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    ).__reduce__()[1][0]


def tensor(data, offset=0, shape=(4,), stride=(1,)):
    numbers = [
        b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in v) + b"t"
        for v in (shape, stride)
    ]
    return call(name("torch._utils", "_rebuild_tensor_v2"), data, integer(offset), *numbers, b"\x89", b"}")


LOAD = name("torch.storage", "_load_from_bytes")

# Everything that has been used to run code out of a pickle, with arguments that would.
CALLS = {
    "os.system": ["touch pwned"],
    "posix.system": ["touch pwned"],
    "nt.system": ["echo"],
    "os.popen": ["touch pwned"],
    "os.execvp": ["touch"],
    "os.remove": ["pwned"],
    "subprocess.Popen": ["touch pwned"],
    "subprocess.check_output": ["touch pwned"],
    "subprocess.run": ["touch pwned"],
    "pty.spawn": ["/bin/sh"],
    "commands.getoutput": ["id"],
    "platform.popen": ["id"],
    "builtins.eval": ["open('pwned', 'w')"],
    "builtins.exec": ["open('pwned', 'w')"],
    "builtins.compile": ["1", "x", "eval"],
    "builtins.open": ["pwned", "w"],
    "builtins.__import__": ["antigravity"],
    "builtins.breakpoint": [],
    "builtins.input": ["?"],
    "builtins.globals": [],
    "builtins.vars": [],
    "builtins.delattr": ["x", "y"],
    "builtins.memoryview": ["x"],
    "__builtin__.eval": ["1"],
    "__builtin__.execfile": ["x"],
    "io.open": ["pwned", "w"],
    "_io.FileIO": ["pwned", "w"],
    "io.open_code": ["x"],
    "codecs.open": ["pwned", "w"],
    "pathlib.Path.touch": ["pwned"],
    "importlib.import_module": ["antigravity"],
    "importlib._bootstrap._call_with_frames_removed": ["x"],
    "runpy.run_path": ["x.py"],
    "runpy._run_code": ["x"],
    "code.interact": [],
    "codeop.compile_command": ["1"],
    "bdb.Bdb.run": ["1"],
    "pdb.run": ["1"],
    "cProfile.run": ["1"],
    "profile.run": ["1"],
    "timeit.timeit": ["1"],
    "trace.Trace.run": ["1"],
    "doctest.debug_script": ["1"],
    "pydoc.pipepager": ["x", "id"],
    "webbrowser.open": ["http://localhost"],
    "antigravity.x": [],
    "urllib.request.urlopen": ["http://localhost"],
    "socket.create_connection": ["localhost"],
    "http.client.HTTPConnection": ["localhost"],
    "ftplib.FTP": ["localhost"],
    "smtplib.SMTP": ["localhost"],
    "requests.get": ["http://localhost"],
    "ctypes.CDLL": ["libc.so.6"],
    "_ctypes.dlopen": ["libc.so.6"],
    "ctypes.util.find_library": ["c"],
    "mmap.mmap": ["x"],
    "fcntl.ioctl": ["x"],
    "signal.raise_signal": ["9"],
    "sys.exit": ["1"],
    "sys.setrecursionlimit": ["1"],
    "sys.modules": [],
    "gc.get_objects": [],
    "inspect.currentframe": [],
    "threading.Thread": ["x"],
    "_thread.start_new_thread": ["x"],
    "multiprocessing.Process": ["x"],
    "concurrent.futures.ProcessPoolExecutor": [],
    "asyncio.subprocess.create_subprocess_shell": ["id"],
    "marshal.loads": ["x"],
    "types.FunctionType": ["x"],
    "types.CodeType": ["x"],
    "pickle.loads": ["x"],
    "_pickle.loads": ["x"],
    "pickle.Unpickler": ["x"],
    "cloudpickle.cloudpickle._make_skeleton_class": ["x"],
    "cloudpickle.subprocess": [],
    "joblib.load": ["x"],
    "shelve.open": ["x"],
    "sqlite3.connect": ["pwned"],
    "shutil.rmtree": ["."],
    "tempfile.mktemp": [],
    "zipimport.zipimporter": ["x"],
    "pkgutil.resolve_name": ["os:system"],
    "pip.main": ["install"],
    "pip._internal.main": ["install"],
    "setuptools.setup": [],
    "distutils.core.run_setup": ["x"],
    "ensurepip.bootstrap": [],
    "venv.create": ["x"],
    "idlelib.pyshell.main": [],
    "lib2to3.pgen2.grammar.Grammar.loads": ["x"],
    "logging.config.fileConfig": ["x"],
    "operator.attrgetter": ["__class__"],
    "operator.methodcaller": ["system", "id"],
    "functools.partial": ["x"],
    "functools.reduce": ["x"],
    "itertools.starmap": ["x"],
    "copyreg._reconstructor": ["x"],
    "copyreg.__newobj__": ["x"],
    "copyreg.add_extension": ["os", "system"],
    "copyreg.pickle": ["x"],
    "copy_reg._reconstructor": ["x"],
    "numpy.load": ["x"],
    "numpy.f2py.compile": ["x"],
    "numpy.testing._private.utils.runstring": ["1"],
    "torch.load": ["x"],
    "torch.hub.load": ["x", "y"],
    "torch.jit.load": ["x"],
    "torch.jit.CompilationUnit": ["def f(): pass"],
    "torch.classes.load_library": ["x"],
    "torch.ops.load_library": ["x"],
    "torch.package.PackageImporter": ["x"],
    "torch.serialization.load": ["x"],
    "torch._utils._rebuild_wrapper_subclass": ["x"],
    "torch._utils._rebuild_device_tensor_from_numpy": ["x"],
    "torch._tensor._rebuild_from_type_v2": ["x"],
    "torch.utils.cpp_extension.load": ["x"],
    "torch.utils.collect_env.run": ["id"],
    "torch.distributed.run.main": [],
    "torch_utils.persistence.trust_pickles": [],
    "torch_utils.persistence._run_source": ["open('pwned', 'w')"],
    "torch_utils.persistence._trusting.__setattr__": ["x"],
    "torch_utils.custom_ops.get_plugin": ["x"],
    "dnnlib.util.call_func_by_name": ["os.system"],
    "dnnlib.util.open_url": ["http://localhost"],
    "training.generator.load": ["x"],
    "dill._dill._create_function": ["x"],
    "dill._dill._create_code": ["x"],
    "dill._dill._create_type": ["x"],
    "dill._dill._import_module": ["os"],
    "dill._dill._load_type": ["CodeType"],
    "dill._dill._get_attr": ["x"],
    "dill._dill._eval_repr": ["1"],
    "dill.source.importable": ["x"],
    "timm.models.create_model": ["x"],
    "__main__.main": [],
    "uuid._get_command_stdout": ["id"],
    "site.main": [],
    "nonexistent_package.module.function": ["x"],
}


def _calls():
    """Each call, written in each way that there is."""
    for dotted, args in CALLS.items():
        module, _, attribute = dotted.rpartition(".")
        arguments = b"(" + b"".join(map(text, args)) + b"t"
        old = f"c{module}\n{attribute}\n".encode()
        yield f"{dotted} reduce", stream(name(module, attribute) + arguments + b"R")
        yield f"{dotted} protocol 2", stream(old + arguments + b"R", 2)
        yield f"{dotted} newobj", stream(name(module, attribute) + arguments + b"\x81")
        yield f"{dotted} newobj_ex", stream(name(module, attribute) + arguments + b"}\x92")
        yield (
            f"{dotted} inst",
            stream(b"(" + b"".join(map(text, args)) + f"i{module}\n{attribute}\n".encode()),
        )
        yield f"{dotted} obj", stream(b"(" + name(module, attribute) + b"".join(map(text, args)) + b"o")
        yield (
            f"{dotted} build",
            stream(
                name("torch.nn.modules.module", "Module")
                + b")\x81"
                + name(module, attribute)
                + arguments
                + b"Rb"
            ),
        )
        yield (
            f"{dotted} as state setter",
            stream(name("x", "Y") + b")\x81}" + text("__setstate__") + name(module, attribute) + b"sb}b"),
        )
        yield (
            f"{dotted} in a storage",
            stream(call(LOAD, blob(b"\x80\x02" + old + b"(" + b"".join(map(text, args)) + b"tR."))),
        )
        yield (
            f"{dotted} as storage type",
            stream(call(LOAD, blob(storage([1.0]).replace(b"ctorch\nFloatStorage\n", old)))),
        )
        yield f"{dotted} as dtype", stream(call(name("numpy", "dtype"), name(module, attribute)))
        yield (
            f"{dotted} as array class",
            stream(
                call(
                    name("numpy._core.multiarray", "_reconstruct"), name(module, attribute), b")", blob(b"b")
                )
            ),
        )
        state = (
            b"}("
            + text("_modules")
            + b"}"
            + text("mapping")
            + name(module, attribute)
            + arguments
            + b"Rs"
            + text("training")
            + b"\x88u"
        )
        meta = b"}(" + b"".join(
            (
                text("type"),
                text("class"),
                text("version"),
                b"K\x06",
                text("module_src"),
                text("open('pwned', 'w')"),
            )
        )
        meta += text("class_name") + text("Generator") + text("state") + state + b"u"
        yield (
            f"{dotted} in a generator",
            stream(call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)),
        )


def _chains():
    """Ways around a look at names."""
    builtins_getattr = name("builtins", "getattr")
    chain = name("torch.nn.modules.module", "Module")
    for attribute in ("__init__", "__globals__", "__getitem__"):
        chain = call(builtins_getattr, chain, text(attribute))
    yield "getattr chain", stream(call(chain, text("__builtins__")))
    yield "getattr of a nested name", stream(call(name("torch", "os.system"), text("touch pwned")))
    yield "dotted class path", stream(call(name("torch.serialization", "os.system"), text("touch pwned")))
    yield (
        "setattr on a class",
        stream(
            call(
                name("builtins", "setattr"),
                name("torch_utils.persistence", "_Machine"),
                text("resolve"),
                b"N",
            )
        ),
    )
    yield (
        "setattr through build",
        stream(name("torch_utils.persistence", "_MEANINGS") + b"}" + text("x") + b"Nsb"),
    )
    yield "type with three arguments", stream(call(name("builtins", "type"), text("X"), b")", b"}"))
    yield (
        "map over eval",
        stream(call(name("builtins", "list"), call(name("builtins", "map"), name("builtins", "eval"), b"]"))),
    )
    yield "nested pickle", stream(call(name("pickle", "loads"), blob(pickle.dumps(1))))
    yield "nested network pickle", stream(call(LOAD, blob(stream(b"N"))))
    yield "a zip in a storage", stream(call(LOAD, blob(b"PK\x03\x04" + bytes(60))))
    yield (
        "memo of a hostile global",
        stream(name("os", "system") + put(7) + b"0" + call(get(7), text("touch pwned"))),
    )
    yield "encoding that runs", stream(call(name("_codecs", "encode"), text("x"), text("zlib")))
    yield "decode", stream(call(name("_codecs", "decode"), blob(b"x"), text("unicode_escape")))
    yield "extension 1", stream(b"\x82\x01")
    yield "extension 2", stream(b"\x83\x01\x00")
    yield "extension 4", stream(b"\x84\x01\x00\x00\x00")
    yield "persistent id", stream(text("x") + b"Q")
    yield "persistent id, text", stream(b"Pos.system\n")
    yield "out-of-band buffer", stream(b"\x97\x98", 5)
    yield "bytearray", stream(b"\x96" + struct.pack("<Q", 3) + b"abc", 5)
    yield "newline in a name", stream(name("os\nsystem", "x\ny"))
    yield "terminal escape in a name", stream(call(name("\x1b]0;pwned\x07", "\x1b[2J")))
    yield "right-to-left name", stream(call(name("\u202esys", "tixe")))
    parts = [
        (text("type"), text("class")),
        (text("version"), b"K\x06"),
        (text("module_src"), text("")),
        (text("class_name"), text("Generator")),
    ]
    for key in (text("\x1b]0;pwned\x07"), b"\x88", b"K\x01K\x02\x86"):
        meta = b"}(" + b"".join(map(b"".join, parts)) + text("state") + b"}" + key + b"\x88su"
        yield (
            f"attribute named {key!r}",
            stream(call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)),
        )
    yield "surrogate name", stream(call(name("os\udc80", "system")))
    yield (
        "attribute of a tensor",
        stream(call(builtins_getattr, tensor(call(LOAD, blob(storage([1.0] * 4)))), text("__reduce__"))),
    )
    yield "call of a tensor", stream(call(tensor(call(LOAD, blob(storage([1.0] * 4)))), b"N"))
    yield "call of a result", stream(call(call(call(name("a", "b")), b"N"), b"N"))
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps({"G_ema": Evil()}, protocol=protocol)
        yield (
            f"protocol {protocol} data",
            pickle.dumps({"G_ema": [1, 2.5, "x", None, True, b"y"]}, protocol=protocol),
        )
    yield "future protocol", b"\x80\xff}."
    try:
        import dill

        yield (
            "dill lambda",
            dill.dumps({"G_ema": lambda: __import__("os").system("touch pwned")}, recurse=True),
        )
        yield "dill class", dill.dumps({"G_ema": type("X", (), {"f": lambda self: 1})()}, byref=False)
    except ImportError:
        pass


class Evil:
    """Pickles as a call of print, in whatever protocol."""

    def __reduce__(self):
        return exec, ("open('pwned', 'w')",)


def _bombs():
    """Small files that would take all memory or all time."""
    double = b")" + b"2\x86" * 60
    yield "tuple doubled 60 times", stream(double)
    yield "tuple doubled as a key", stream(b"}" + double + b"Ns")
    yield "list doubled 60 times", stream(b"]" + b"2\x86" * 60)
    laughs = b"".join(b"](" + get(i - 1) * 10 + b"e" + put(i) + b"0" for i in range(1, 30))
    yield "billion laughs", stream(text("lol") + put(0) + b"0" + laughs + get(29))
    yield "dict in itself", stream(b"}" + put(0) + text("x") + get(0) + b"s")
    yield "list in itself", stream(b"]" + put(0) + get(0) + b"a")
    yield "deep lists", stream(b"]" * 100_000 + b"a" * 99_999)
    yield "deep tuples", stream(b")" + b"\x85" * 100_000)
    yield "deep calls", stream(name("a", "b") + put(0) + b")R" + b")R" * 100_000)
    yield (
        "deep objects",
        stream(name("a", "b") + put(0) + b"0" + (get(0) + b")\x81") * 50_000 + b"b" * 49_999),
    )
    yield "many marks", stream(b"(" * 1_000_000)
    yield "kept sets", stream(b"](" + b"\x8f" * 1_900_000 + b"e")
    yield "more operations than any network", stream(b"N0" * 1_100_000 + b"N")
    yield "text of 2^62", stream(b"\x8d" + struct.pack("<Q", 2**62) + b"x")
    yield "bytes of 2^62", stream(b"\x8e" + struct.pack("<Q", 2**62) + b"x")
    yield "bytes of 4 GB", stream(b"B" + struct.pack("<I", 2**32 - 1) + b"x")
    yield "bytearray of 2^63", stream(b"\x96" + struct.pack("<Q", 2**63 - 1) + b"x", 5)
    yield "text of 2 GB", stream(b"X" + struct.pack("<I", 2**31 - 1) + b"x")
    yield "negative string", stream(b"T" + struct.pack("<i", -1) + b"x")
    yield "negative long", stream(b"\x8b" + struct.pack("<i", -1))
    yield "long of 2 GB", stream(b"\x8b" + struct.pack("<i", 2**31 - 1))
    yield "long of 1 MB", stream(b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20)
    yield "frame of 2^63", b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"}."
    yield "memo index 2^32", stream(b"N" + put(2**32 - 1))
    yield "endless name", stream(b"c" + b"a" * 200_000)
    yield "endless decimal", stream(b"I" + b"9" * 200_000 + b"\n")
    numbers = b"](" + b"N" * 20_000 + b"e" + put(1) + b"0"
    pairs = b"](" + b"".join(text(f"k{i}") + b"N\x86" for i in range(20_000)) + b"e" + put(1) + b"0"
    repeat = 20_000
    for module, attribute, content in (
        ("builtins", "set", numbers),
        ("builtins", "frozenset", numbers),
        ("collections", "OrderedDict", pairs),
    ):
        body = (
            content + name(module, attribute) + put(0) + b"0](" + (get(0) + get(1) + b"\x85R") * repeat + b"e"
        )
        yield f"{attribute} of one list, again and again", stream(body)
    big = (
        blob(storage([0.0] * 500_000))
        + put(1)
        + b"0"
        + LOAD
        + put(0)
        + b"0]("
        + (get(0) + get(1) + b"\x85R") * 5000
        + b"e"
    )
    yield "one storage, again and again", stream(big)
    array = (
        b"K\x01K\x80\x85"
        + call(name("numpy", "dtype"), text("u1"), b"\x89", b"\x88")
        + b"\x89"
        + blob(bytes(128))
        + b"t"
    )
    array = b"(" + array + put(1) + b"0" + name("numpy._core.multiarray", "_reconstruct") + put(0) + b"0]("
    yield "one array, again and again", stream(array + (get(0) + b")R" + get(1) + b"b") * 100_000 + b"e")
    long_text = text("a" * 200_000) + put(1) + b"0" + text("b" * 200_000) + put(2) + b"0"
    yield (
        "names made of long texts",
        stream(long_text + (get(1) + get(2) + b"\x930" + get(2) + get(1) + b"\x930") * 10_000 + b"N"),
    )
    yield "many names", stream(b"".join(name("a", f"b{i}") + b"0" for i in range(50_000)) + b"N")
    state = b"}(" + b"".join(text(f"k{i}") + b"N" for i in range(20_000)) + b"u" + put(1) + b"0"
    yield "one state, again and again", stream(state + name("a", "b") + b")\x81" + (get(1) + b"b") * 50_000)
    odd = b"".join(b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"N" for i in range(1, 150_000))
    yield "keys of one hash", stream(b"}(" + odd + b"u")
    tuples = b"(" + b"K\x01" * 100_000 + b"t" + put(1) + b"0}(" + (get(1) + b"N") * 100_000 + b"u"
    yield "one long key, again and again", stream(tuples)
    for shape, stride in (
        ((2**62,), (1,)),
        ((2**40,), (0,)),
        ((2**31, 2**31), (0, 0)),
        ((2**62, 0), (1, 1)),
        ((0,), (2**62,)),
        ((-1,), (1,)),
    ):
        yield (
            f"tensor {shape} {stride}",
            stream(tensor(call(LOAD, blob(storage([1.0] * 4))), 0, shape, stride)),
        )
    header = storage([1.0] * 4)
    yield (
        "storage that counts to 2^60",
        stream(call(LOAD, blob(header.replace(b"K\x04Nt", b"\x8a\x08" + struct.pack("<q", 2**60) + b"Nt")))),
    )
    yield "storage with a long header", stream(call(LOAD, blob(b"\x80\x02" + b"N0" * 500_000 + b"N.")))
    for source in (_comparison_bombs, _stub_bombs, _walk_bombs):
        yield from source()


DOUBLED = b")" + b"2\x86" * 60  # a tuple of 2^60 leaves


def _number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _array(code, shape, data, fortran=b"\x89", version=b"K\x01"):
    dtype = call(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    state = b"(" + version + b"(" + b"".join(map(_number, shape)) + b"t" + dtype + fortran + blob(data) + b"t"
    return call(name("numpy._core.multiarray", "_reconstruct"), b"N") + state + b"b"


def _comparison_bombs():
    """Values that must not be compared, printed or copied, where a reader is tempted to."""
    array = _array("u1", (1_000_000,), bytes(1_000_000))
    for what, value in {
        "a doubled tuple": DOUBLED,
        "a doubled list": b"]" + b"2\x86" * 60,
        "an array": array,
    }.items():
        meta = (
            b"}("
            + text("type")
            + value
            + text("version")
            + value
            + text("class_name")
            + value
            + text("state")
            + b"}u"
        )
        yield f"{what} as dtype", stream(call(name("numpy", "dtype"), value))
        yield (
            f"{what} as state of a dtype",
            stream(call(name("numpy", "dtype"), text("f8")) + b"(K\x03" + value * 4 + b"tb"),
        )
        yield f"{what} as version of an array", stream(_array("u1", (1,), b"a", version=value))
        yield f"{what} as order of an array", stream(_array("u1", (1,), b"a", fortran=value))
        yield f"{what} as encoding", stream(call(name("_codecs", "encode"), text("x"), value))
        yield (
            f"{what} as persistent object",
            stream(call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)),
        )
        yield f"{what} as name", stream(value + text("x") + b"\x93")
        yield f"{what} called", stream(call(value))
        yield (
            f"{what} as requires_grad",
            stream(
                call(
                    name("torch._utils", "_rebuild_parameter"),
                    tensor(call(LOAD, blob(storage([1.0] * 4)))),
                    value,
                    b"}",
                )
            ),
        )
        yield f"{what} as storage", stream(tensor(value))
        yield f"{what} in an OrderedDict", stream(call(name("collections", "OrderedDict"), value))
        yield f"{what} as a network", stream(value)
    header = storage([1.0] * 4)
    start = header.split(b"X\x07\x00\x00\x00storage", 1)[0]  # before the tuple that names the storage
    dtype = b"ctorch\nFloatStorage\n"
    tail = b"X\x03\0\0\0cpu"
    for what, key, numel, keys in (
        ("key", DOUBLED, b"K\x04", b"](" + DOUBLED + b"e"),
        ("count", text("k"), DOUBLED, b"]" + text("k") + b"a"),
        ("keys", text("k"), b"K\x04", DOUBLED),
    ):
        ident = start + text("storage") + dtype + key + tail + numel + b"NtQ.\x80\x02" + keys + b"."
        yield (
            f"a storage whose {what} is a doubled tuple",
            stream(call(LOAD, blob(ident + struct.pack("<q", 4) + bytes(16)))),
        )
    slow = b"\x80\x02" + b"N0" * 490 + header[2:]
    again = (get(0) + get(1) + b"\x85R") * 100_000
    yield (
        "one storage with a long header, again and again",
        stream(blob(slow) + put(1) + b"0" + LOAD + put(0) + b"0](" + again + b"e"),
    )
    odd = b"".join(b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"N" for i in range(1, 9_000))
    merged = (
        b"}("
        + odd
        + b"u"
        + put(1)
        + b"0"
        + name("a", "b")
        + b")\x81}"
        + text("x")
        + b"Nsb"
        + (get(1) + b"b") * 50_000
    )
    yield "keys of one hash, merged again and again", stream(merged)
    short = b"](" + b"N" * 20 + b"e" + put(1) + b"0" + name("builtins", "set") + put(0) + b"0]("
    yield "small sets, again and again", stream(short + (get(0) + get(1) + b"\x85R") * 200_000 + b"e")
    yield "names that are never the same object", stream(b"](" + b"ca\nb\n" * 900_000 + b"e")
    yield "kept lists", stream(b"](" + b"]" * 900_000 + b"e")
    yield "kept tuples", stream(b"](" + b"N\x85" * 490_000 + b"e")
    yield "kept texts", stream(b"](" + b"\x8c\x02\xc4\x80" * 900_000 + b"e")
    yield "kept stubs", stream(name("a", "b") + put(0) + b"0](" + (get(0) + b")\x81") * 300_000 + b"e")
    yield "memoised all along", stream(b"](" + b"N\x94" * 490_000 + b"e")
    for shape, stride in (
        ((1,), (2**61,)),
        ((1,), (2**57,)),
        ((2**50, 0), (1, 1)),
        ((1,) * 16, (1,) * 16),
        ((0,) * 16, (2,) * 16),
    ):
        yield (
            f"tensor {shape} {stride} kept",
            stream(tensor(call(LOAD, blob(storage([1.0] * 4))), 0, shape, stride)),
        )
    for shape in ((2**50, 0), (2**62, 0), (0, 2**60), (10**6, 0), (1,) * 16, (2,) * 16, ()):
        values = _array(
            "u1", shape, bytes(1 if 0 not in shape else 0) if shape != (2,) * 16 else bytes(2**16)
        )
        yield f"array of shape {shape}", stream(values)
        yield f"array of shape {shape} in settings", b"\x80\x04}" + text("extra") + values + b"s."
    cube = _array("u1", (6,) * 8, bytes(6**8))
    yield "array that numpy prints in full", b"\x80\x04}" + text("extra") + cube + b"s."
    yield "long bytes in settings", b"\x80\x04}" + text("extra") + blob(bytes(10**7)) + b"s."
    for code in (
        "O",
        "O8",
        "V99999999",
        "S9999999",
        "U99999999",
        "M8",
        "m8[ns]",
        "c16",
        ">f8",
        "f3",
        "i9",
        "f4,f4",
        "(9,9)f8",
        "a5",
        "f" * 10**5,
    ):
        yield f"dtype {code[:12]}", stream(call(name("numpy", "dtype"), text(code), b"\x89", b"\x88"))
    key = text("training_set_kwargs")
    yield (
        "settings that say the same again and again",
        b"\x80\x04}" + key + b"}" + text("x") + b"]" + b"2\x86" * 30 + b"ss.",
    )
    long = text("a" * 100_000) + put(0) + b"0](" + get(0) * 100_000 + b"e"
    yield "settings that repeat a long text", b"\x80\x04}" + key + b"}" + text("x") + long + b"ss."
    members = b"".join(
        b"(" + get(9) + b"K" + bytes([i % 256]) + b"M" + bytes([i % 256, i // 256]) + b"t"
        for i in range(9000)
    )
    yield (
        "a set of long tuples",
        b"\x80\x04}"
        + key
        + b"}"
        + text("x")
        + text("a" * 60_000)
        + put(9)
        + b"0"
        + b"\x8f("
        + members
        + b"\x90ss.",
    )
    for case, values in {
        "unhashable members": b"]}",
        "tuples with lists": b"]\x85",
        "floats": b"G\x7f\xf8\0\0\0\0\0\0",
    }.items():
        for module, attribute in (
            ("builtins", "set"),
            ("builtins", "frozenset"),
            ("collections", "OrderedDict"),
            ("collections", "defaultdict"),
        ):
            yield f"{attribute} of {case}", stream(call(name(module, attribute), b"](" + values + b"e"))
    for module, attribute in (("collections", "OrderedDict"), ("dnnlib.util", "EasyDict")):
        keys = (
            "__class__",
            "__reduce_ex__",
            "__getattribute__",
            "__setstate__",
            "__dict__",
            "__slots__",
            "items",
            "get",
            "keys",
        )
        table = b"}(" + b"".join(text(key) + call(name("a", "b")) for key in keys) + b"u"
        yield (
            f"{attribute} with a class's attributes",
            stream(call(name(module, attribute)) + table[1:] + table + b"b"),
        )
        module_ = name("torch.nn.modules.module", "Module") + b")\x81" + table + b"b"
        yield f"state with a class's attributes, {attribute}", stream(module_ + b"N" + table + b"\x86b")


def _walk_bombs():
    """Few stubs that stand for many modules, names or elements."""
    module = name("torch.nn.modules.module", "Module")

    def made(table, key, then=b""):
        return module + b")\x81}" + text(key) + table + b"s" + then + b"b"

    nothing = b"}(" + b"".join(text(f"t{i}") + b"N" for i in range(9_990)) + b"u" + put(1) + b"0"
    leaf = made(get(1), "_parameters", text("_buffers") + get(1) + b"s") + put(2) + b"0"
    many = b"}(" + b"".join(text(f"m{i}") + get(2) for i in range(9_990)) + b"u"
    yield "ten thousand modules of ten thousand places", stream(nothing + leaf + made(many, "_modules"))
    value = tensor(call(LOAD, blob(storage([1.0] * 4)))) + put(1) + b"0"
    body = (
        value
        + made(b"}(" + b"".join(text(f"t{i}") + get(1) for i in range(10)) + b"u", "_parameters")
        + put(2)
        + b"0"
    )
    body += (
        made(b"}(" + b"".join(text(f"m{i}") + get(2) for i in range(9_000)) + b"u", "_modules")
        + put(2)
        + b"0"
        + text("n" * 500)
        + put(3)
        + b"0"
    )
    for _ in range(60):
        body += made(b"}" + get(3) + get(2) + b"s", "_modules") + put(2) + b"0"
    yield "long names in long names", stream(body + get(2))
    big = tensor(call(LOAD, blob(storage([0.0] * 100_000))), 0, (100_000,)) + put(1) + b"0"
    tensors = b"}(" + b"".join(text(f"t{i}") + get(1) for i in range(9_990)) + b"u"
    for key in ("D", "G_ema"):
        yield (
            f"one tensor ten thousand times in {key}",
            b"\x80\x04}" + text(key) + big + made(tensors, "_parameters") + b"s.",
        )
    tree = b"N" + put(0) + b"0"
    for _ in range(12):
        tree += made(b"}(" + text("a") + get(0) + text("b") + get(0) + b"u", "_modules") + put(0) + b"0"
    yield (
        "one network under many keys",
        b"\x80\x04}(" + tree + b"".join(text(f"D{i}") + get(0) for i in range(900)) + b"u.",
    )
    yield "many keys", b"\x80\x04}(" + b"".join(text(f"D{i}") + b"N" for i in range(100_000)) + b"u."
    yield "long keys", b"\x80\x04}(" + b"".join(text(f"{i:0500}") + b"K\x01" for i in range(999)) + b"u."
    names = b"}(" + b"".join(text(f"{i:0500}") + module + b")\x81" for i in range(3000)) + b"u"
    G = small_generator()
    yield "a generator of three thousand long parts", _with_attribute(G, "_modules", names)
    huge = b"\x8a\x20" + b"\xff" * 31 + b"\x7f"
    values = [
        (attribute, DOUBLED)
        for attribute in ("head_layer_names", "num_frozen_layers", "z_dim", "channel_base")
    ]
    for attribute, value in [*values, ("z_dim", huge), ("w_dim", huge), ("c_dim", huge)]:
        content = pickle.dumps({"G_ema": G}, protocol=2)
        marker = text(attribute)[2:]
        old = b"X" + struct.pack("<I", len(marker)) + marker
        at = content.find(old) + len(old)
        assert at > len(old) or attribute == "head_layer_names"
        if at > len(old):
            end = at + 2 if content[at : at + 1] == b"q" else at + 5  # after the memo of the name
            size = {b"K": 2, b"M": 3, b"J": 5, b"N": 1, b"G": 9}[content[end : end + 1]]
            yield (
                f"a generator whose {attribute} is a bomb of {len(value)} bytes",
                content[:end] + value + content[end + size :],
            )
    yield "an array without dimensions for a size", _with_attribute(G, "in_size", _array("i8", (), bytes(8)))
    yield "a hostile name among a layer's attributes", _with_attribute(G, "in_channels", name("\u202ea", "b"))


def _stub_bombs():
    """Networks whose parts are built like bombs."""
    module = name("torch.nn.modules.module", "Module")

    def nested(levels, width, root=b"N"):
        body = root + put(0) + b"0"
        for level in range(1, levels + 1):
            children = b"".join(text(f"m{i}") + get(level - 1) for i in range(width))
            body += module + b")\x81}" + text("_modules") + b"}(" + children + b"usb" + put(level) + b"0"
        return body + get(levels)

    yield "modules that contain each other twice", stream(nested(60, 2))
    yield "modules that contain each other a thousandfold", stream(nested(5, 1000))
    yield "modules 3000 deep", stream(nested(3000, 1))
    table = b"}(" + b"".join(text(f"t{i}") + b"N" for i in range(30_000)) + b"u"
    yield "a table of 30,000 tensors", stream(module + b")\x81}" + text("_parameters") + table + b"sb")
    G = small_generator()
    for attribute, value in {
        "in_size": b"]" + b"2\x86" * 60,
        "out_size": b"](" + b"K\x24" * 100_000 + b"e",
        "padding": b"]" + b"2\x86" * 60,
        "in_cutoff": b"G" + struct.pack(">d", float("inf")),
        "out_cutoff": b"G" + struct.pack(">d", float("nan")),
        "in_channels": b"J\xff\xff\xff\x7f",
        "filter_size": b"J\x00\x00\x01\x00",
        "conv_kernel": b"\x8a\x20" + b"\xff" * 31 + b"\x7f",
    }.items():
        yield f"a layer whose {attribute} is a bomb", _with_attribute(G, attribute, value)


def small_generator(c_dim=2):
    torch.manual_seed(0)
    return build_stem("stylegan3-t", 16, c_dim, syn_layers=4, cbase=64, cmax=4, z_dim=4, w_dim=4, embed_dim=3)


def _with_attribute(G: Generator, attribute: str, value: bytes) -> bytes:
    """A network pickle of G whose second layer has `value` (opcodes) for an attribute."""
    layer = getattr(G.synthesis, G.synthesis.layer_names[1])
    before = layer.__dict__[attribute]
    layer.__dict__[attribute] = "@@bomb@@"
    try:
        content = pickle.dumps({"G_ema": G}, protocol=2)
    finally:
        layer.__dict__[attribute] = before
    marker = b"X" + struct.pack("<I", 8) + b"@@bomb@@"
    assert content.count(marker) == 1
    return content.replace(marker, value)


# Seconds each, and others of the corpus reach the same limit of the reader in less.
LONG = {
    "names that are never the same object",
    "kept stubs",
    "kept texts",
    "kept sets",
    "keys of one hash",
}


def corpus(short=False):
    """(name, content) of every hostile file; with `short`, without LONG."""
    for source in (_calls, _chains, _bombs):
        yield from ((name, content) for name, content in source() if not (short and name in LONG))


def good_files():
    """Network pickles as people write them, for a fuzzer to damage."""
    G = small_generator()
    D = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.LeakyReLU())
    kwargs = {
        "path": "x.zip",
        "max_size": None,
        "scale": np.float32(2),
        "size": np.arange(2),
        "names": {"a", "b"},
    }
    data = dict(G=None, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=collections.OrderedDict(kwargs))
    return [pickle.dumps(data, protocol=protocol) for protocol in (2, 3, 4, 5)] + [small_file()]


def small_file():
    """A network pickle of less than two kilobytes."""
    return pickle.dumps(
        {
            "G_ema": torch.nn.Linear(1, 1, bias=False),
            "kw": {"a": np.arange(2), "b": np.float32(1), "c": (1, "x")},
        },
        protocol=4,
    )


# The watch

# Audit events of Python that reading data has no use for. `open` and `import` are among them: the reader gets
# bytes, and imports nothing.
FORBIDDEN = """
    exec compile import open os. subprocess. socket. shutil. ctypes. marshal. pickle.find_class code.__new__
    function.__new__ pty.
    webbrowser. urllib. http. ftplib. smtplib. sqlite3. tempfile. glob. mmap. signal. builtins.input
    builtins.breakpoint
    sys._getframe object.__setattr__ object.__delattr__ gc. winreg. msvcrt. fcntl. resource. sys.addaudithook
    sys.setprofile
    sys.settrace
""".split()  # noqa: SIM905
_events: list[str] | None = None


def _hook(event, args):
    if _events is not None and any(
        event == word or (word.endswith(".") and event.startswith(word)) for word in FORBIDDEN
    ):
        _events.append(f"{event} {str(args)[:100]}")


@contextlib.contextmanager
def watch():
    """A list that fills with what the block runs, opens or imports. Python keeps audit hooks for ever, so
    there is one.
    """
    global _events
    if not getattr(sys, "_stylesan_watch", False):
        sys.addaudithook(_hook)
        sys._stylesan_watch = True
    _events = events = []
    try:
        yield events
    finally:
        _events = None


def attempt(content):
    """Do with a file all that our tools do: read it, describe it, rebuild its networks, strictly and not.

    Returns what strict reading comes to: 'refused', 'inert' (stubs, of which no generator can be built) or
    'rebuilt'. Raises AssertionError for an error of more than one line, or one that a terminal would obey;
    anything but ValueError passes through.
    """
    outcomes = []
    for strict in (
        (True,) if len(content) > 200_000 else (False, True)
    ):  # what strictness changes, small files show
        outcome = "refused"
        with _one_line():
            data = persistence.read_network_pickle(io.BytesIO(content), strict=strict)
            outcome = "inert"
            for key, value in data.items():
                if not isinstance(value, persistence.ObjectStub):
                    assert len(persistence._brief.repr(value)) < 10**6
                    continue
                with _one_line():
                    lines = persistence._describe_network(key, value)
                    assert all(line.isprintable() for line in lines), lines
                with _one_line():
                    from_stub(value)
                    outcome = "rebuilt"
            with _one_line():
                json.dumps(files.config_of(files._from_pickle(data, "a file", None)))
        outcomes.append(outcome)
    return outcomes[-1]


@contextlib.contextmanager
def _one_line():
    try:
        yield
    except ValueError as error:
        text_ = str(error)
        assert "\n" not in text_ and len(text_) < 2000 and text_.isprintable(), ascii(text_[:3000])
