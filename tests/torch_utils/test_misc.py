# SPDX-License-Identifier: Apache-2.0
"""torch_utils.misc."""

import itertools
import warnings

import pytest
import torch

from torch_utils import distributed, misc


def test_constants_are_made_once_and_by_value() -> None:
    a = misc.constant([[1.0, 2.0]], shape=[3, 2])
    assert a.tolist() == [[1.0, 2.0]] * 3 and a.dtype == torch.get_default_dtype()
    assert misc.constant([[1.0, 2.0]], shape=[3, 2]) is a
    assert misc.constant(1, dtype=torch.int64).item() == 1
    assert misc.constant(0.0, dtype=torch.float64).dtype == torch.float64
    last = misc.constant(0, shape=[2, 3, 4, 5], memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        made = misc.constant([17.0])
    assert not made.is_inference()


def test_assert_shape() -> None:
    misc.assert_shape(torch.zeros(2, 3), [2, None])
    with pytest.raises(AssertionError, match=r"expected 4 at axis 1 of \[2, 4\], got shape \[2, 3\]"):
        misc.assert_shape(torch.zeros(2, 3), [2, 4])
    with pytest.raises(AssertionError, match="expected 1 axes"):
        misc.assert_shape(torch.zeros(2, 3), [None])


def test_profiled_function_shows_up_in_the_profiler() -> None:
    @misc.profiled_function
    def my_special_step(x: torch.Tensor, factor: float = 1) -> torch.Tensor:
        """What it does."""
        return x * factor

    assert my_special_step.__doc__ == "What it does."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert my_special_step(torch.ones(1), factor=2).item() == 2
    assert "my_special_step" in {event.key for event in profile.key_averages()}


def test_tracer_warnings_are_hidden_inside_only(recwarn) -> None:
    with misc.suppress_tracer_warnings():
        warnings.warn("hidden", torch.jit.TracerWarning, stacklevel=1)
        warnings.warn("seen", UserWarning, stacklevel=1)
    warnings.warn("seen", torch.jit.TracerWarning, stacklevel=1)
    assert [str(w.message) for w in recwarn] == ["seen", "seen"]


def take(count: int, **arguments) -> list[int]:
    return list(itertools.islice(misc.InfiniteSampler(range(10), **arguments), count))


def test_infinite_sampler() -> None:
    assert take(25, shuffle=False) == [i % 10 for i in range(25)]
    assert sorted(take(10, seed=1)) == list(range(10))
    assert take(100, seed=1) == take(100, seed=1) != take(100, seed=2)
    whole = take(99, seed=3)
    parts = [take(33, seed=3, rank=rank, num_replicas=3) for rank in range(3)]
    assert [parts[i % 3][i // 3] for i in range(99)] == whole
    long = take(100, seed=5, window_size=0.3)
    assert all(sorted(long[i : i + 10]) == list(range(10)) for i in range(0, 100, 10))
    assert long[:10] != long[10:20], "the order moves on"
    assert all(abs(long[:10].index(i) - long[10:20].index(i)) <= 3 for i in range(10))
    assert take(10, seed=6, window_size=0.0) == take(20, seed=6, window_size=0.0)[10:]


@pytest.mark.parametrize(
    "arguments", [{"rank": 2, "num_replicas": 2}, {"num_replicas": 0}, {"window_size": 2}]
)
def test_infinite_sampler_mistakes(arguments) -> None:
    with pytest.raises(ValueError, match="="):
        misc.InfiniteSampler(range(3), **arguments)
    with pytest.raises(ValueError, match="at least one item"):
        misc.InfiniteSampler([])


def make(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_copies_by_name() -> None:
    source, target = make(0), make(1)
    assert len(misc.params_and_buffers(source)) == 7 == len(misc.named_params_and_buffers(source))
    source[1].running_mean += 1
    misc.copy_params_and_buffers(source, target, require_all=True)
    for (name, a), (_, b) in zip(
        misc.named_params_and_buffers(source), misc.named_params_and_buffers(target), strict=True
    ):
        assert torch.equal(a, b), name
    assert all(p.requires_grad for p in target.parameters())
    larger = torch.nn.Sequential(*make(2), torch.nn.Linear(4, 1))
    misc.copy_params_and_buffers(source, larger)
    assert torch.equal(larger[0].weight, source[0].weight)
    with pytest.raises(KeyError, match=r"2\.weight"):
        misc.copy_params_and_buffers(source, larger, require_all=True)
    with pytest.raises(ValueError, match=r"0\.weight: the source has shape \[4, 3\]"):
        misc.copy_params_and_buffers(source, torch.nn.Sequential(torch.nn.Linear(2, 4)))


def test_ddp_consistency_compares_bitwise(monkeypatch) -> None:
    module = make(0)
    module[1].running_mean[0] = float("nan")
    misc.check_ddp_consistency(module)
    monkeypatch.setattr(
        distributed,
        "broadcast_",
        lambda tensors, src=0: [t.add_(1) for t in tensors if t.is_floating_point()],
    )
    with pytest.raises(RuntimeError, match=r"Sequential\.0\.weight differs between processes"):
        misc.check_ddp_consistency(module)
    misc.check_ddp_consistency(module, ignore_regex=r".*\.(weight|bias|running_mean|running_var)")


def test_module_summary(capsys) -> None:
    module = make(0)
    module.add_module("wrap", torch.nn.Sequential(torch.nn.Identity()))
    out = misc.print_module_summary(module, [torch.zeros(2, 3)])
    assert out.shape == (2, 4)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["Module", "Parameters", "Buffers"]
    assert lines[2] == ["0", "16", "-", "[2,", "4]", "float32"] and lines[3][:3] == ["1", "8", "9"]
    assert lines[-1][:3] == ["Total", "24", "9"]
    assert not any(
        hook for part in module.modules() for hook in (part._forward_hooks, part._forward_pre_hooks)
    )
    misc.print_module_summary(module, [torch.zeros(2, 3)], skip_redundant=False)
    assert "wrap.0" in capsys.readouterr().out
