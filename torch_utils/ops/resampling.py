# SPDX-License-Identifier: Apache-2.0
"""FIR resampling as matrix products: the engine of upfirdn2d and filtered_lrelu."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class AxisPlan:
    """Resampling of one axis: zero insertion, padding (negative = crop), a FIR filter, decimation."""

    size: int
    taps: int
    up: int = 1
    down: int = 1
    pad_low: int = 0
    pad_high: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.out_size < 1:
            raise ValueError(
                f"{self.size} pixels, up {self.up}, down {self.down}, padding {self.pad_low} and {self.pad_high}, {self.taps} taps leave no output"
            )

    @property
    def out_size(self) -> int:
        """Pixels after resampling."""
        return (self.size * self.up + self.pad_low + self.pad_high - self.taps) // self.down + 1


def axis_matrix(taps: torch.Tensor, plan: AxisPlan) -> torch.Tensor:
    """The matrix [out, in] of an axis, from taps [n] in the order in which they meet the pixels (correlation)."""
    out = torch.arange(plan.out_size)[:, None]
    tap = torch.arange(plan.size)[None, :] * plan.up + plan.pad_low - out * plan.down
    tap = torch.where((tap >= 0) & (tap < plan.taps), tap, plan.taps).to(taps.device)
    return torch.cat([taps, taps.new_zeros(1)])[tap]


def resample(x: torch.Tensor, f: torch.Tensor | None, rows: AxisPlan, columns: AxisPlan, flip_filter: bool, gain: float) -> torch.Tensor:
    """upfirdn2d with parsed arguments."""
    f = torch.ones([1], dtype=torch.float32, device=x.device) if f is None else f
    if not flip_filter:
        f = f.flip(list(range(f.ndim)))
    f = (f * gain ** (f.ndim / 2)).to(x.dtype)
    if f.ndim == 1:
        m_h, m_w = axis_matrix(f, rows), axis_matrix(f, columns)
        return torch.matmul(torch.matmul(m_h, x), m_w.t())
    n, c, h, w = x.shape
    x = x.reshape(n, c, h, 1, w, 1)
    x = F.pad(x, [0, columns.up - 1, 0, 0, 0, rows.up - 1]).reshape(n, c, h * rows.up, w * columns.up)
    x = F.pad(x, [columns.pad_low, columns.pad_high, rows.pad_low, rows.pad_high])
    return F.conv2d(x, f[None, None].expand(c, 1, -1, -1), stride=(rows.down, columns.down), groups=c)
