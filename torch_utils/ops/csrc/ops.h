// SPDX-License-Identifier: Apache-2.0
// The operations' parameters and launchers: what the bindings know of the kernels. No torch and no CUDA header is needed here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ops {

enum Dtype { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

// For tests, which cannot fill a device: how many blocks a grid has at most, and how many of a kernel's last work items are done. 0: all.
struct Limits {
    int blocks;
    int64_t tail;

    int64_t first(int64_t work) const { return tail > 0 && tail < work ? work - tail : 0; }
    unsigned grid(int64_t work, int64_t most = 1 << 30) const {
        const int64_t needed = work - first(work), limit = blocks > 0 ? blocks : most;
        return static_cast<unsigned>(needed < limit ? needed : limit);
    }
};

// clamp(gain * act(x + b)) or its derivatives, element by element. Tensors are dense and share one order in memory.
struct BiasActParams {
    const void* x;    // input of the activation before its bias; order 0, or derivatives in terms of x
    const void* b;    // [channels] or null
    const void* y;    // output; derivatives in terms of y
    const void* dy;   // order 1 and 2
    const void* ddx;  // order 2
    void* out;
    Dtype dtype;
    int activation;  // of activations.h
    int order;  // of element() there: 0 or a derivative's
    double alpha, gain, clamp;  // clamp < 0: none
    int64_t count;
    int64_t step;       // consecutive elements that share a bias
    int64_t channels;   // biases
    int64_t max_slice;  // elements per launch; 0: as many as the kernel can (for tests)
    Limits limits;
};

// out[o] = gain * sum_i x[i] f[i * up + pad - o * down] along each axis, with x = 0 outside of the image and f = 0 outside of its taps.
struct UpfirdnParams {
    const void* x;  // [planes, in_h, in_w], planes = samples * channels; with channels_last [samples, in_h, in_w, channels]
    void* y;        // [planes, out_h, out_w], or the same with the channels last
    const void* f;  // [taps_y, taps_x], or [taps_x] along both axes if separable; null: one tap of 1. float, or double with float64 images
    const void* b;  // [channels], of the type of x, added to the pixels of x; null: none
    Dtype in_dtype, out_dtype;         // the same, or one of them float32
    bool separable, reverse;           // reverse: the taps are stored last first
    bool channels_last;
    int64_t planes;
    int channels;
    int in_w, in_h, out_w, out_h;
    int up_x, up_y, down_x, down_y, pad_x, pad_y, taps_x, taps_y;
    double gain;
    Limits limits;
};

// y = down(phi(up(x + b))) on a middle grid of mid_h x mid_w samples, where
//   up:   u[m] = sum_i x[i] fu[i * up + pad - m]
//   down: y[n] = sum_m a[m] fd[m + crop - n * down], a = 0 outside of the middle grid.
// phi is the leaky ReLU with gain and clamp (kPlain, kSave), or multiplies by its slope as the saved codes tell it (kGated).
enum LreluMode { kPlain = 0, kSave = 1, kGated = 2 };

struct FilteredLreluParams {
    const void* x;     // [planes, in_h, in_w]
    void* y;           // [planes, out_h, out_w]
    const float* fu;   // [taps] separable, or [taps, taps]
    const float* fd;
    const void* b;     // [channels] of the type of x, or null
    uint8_t* codes;    // [planes, mid_h, code_bytes]: 2 bits per sample, low bits first: bit 0 = negative, bit 1 = slope zero (clamped, or padding)
    Dtype dtype;
    LreluMode mode;
    bool up_full, down_full, reverse_up, reverse_down;
    int64_t planes;
    int channels;
    int in_w, in_h, mid_w, mid_h, out_w, out_h, code_bytes;
    int up, down, up_taps, down_taps;
    int pad_x, pad_y, crop_x, crop_y;
    float up_gain, gain, slope, clamp;  // up_gain multiplies u; clamp < 0: none
    int tile_w, tile_h, tiles_x, tiles_y;  // filled in by the launcher, as is the first tile
    int64_t first_tile;
    Limits limits;
};

// phi on samples [planes, mid_h, mid_w] in place, with codes as above; for what the fused kernels do not cover.
struct GateParams {
    void* u;  // float, or double
    uint8_t* codes;
    bool is_double;
    LreluMode mode;
    int64_t rows;  // planes * mid_h
    int mid_w, code_bytes;
    double gain, slope, clamp;
    Limits limits;
};

// Each returns nothing and launches without waiting. `stream` is a cudaStream_t, unused on the host.
void bias_act(const BiasActParams& p, void* stream);
void upfirdn2d(const UpfirdnParams& p, void* stream);
void gate(const GateParams& p, void* stream);

// True if a fused kernel covers the case; it is launched unless `probe`.
bool filtered_lrelu_separable(const FilteredLreluParams& p, void* stream, bool probe);
bool filtered_lrelu_radial(const FilteredLreluParams& p, void* stream, bool probe);

}  // namespace ops
