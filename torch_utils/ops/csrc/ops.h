// SPDX-License-Identifier: Apache-2.0
// Parameters and launchers of the operations: the interface between the bindings and the kernels.
// It needs no torch or CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ops {

enum Dtype { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

// For tests, which cannot fill a device: the maximum number of blocks in a grid, and how many of a kernel's last
// work items to compute. 0: no limit.
struct Limits {
    int blocks;
    int64_t tail;

    int64_t first(int64_t work) const { return tail > 0 && tail < work ? work - tail : 0; }
    unsigned grid(int64_t work, int64_t most = 1 << 30) const { return fit(work - first(work), most); }
    unsigned fit(int64_t needed, int64_t most) const {
        const int64_t limit = blocks > 0 ? blocks : most;
        return static_cast<unsigned>(needed < limit ? needed : limit);
    }
};

// clamp(gain * act(x + b)) or its derivatives, elementwise. All tensors are dense and have the same memory order.
struct BiasActParams {
    const void* x;    // input of the activation before its bias; order 0, or derivatives in terms of x
    const void* b;    // [channels] or null
    const void* y;    // output; derivatives in terms of y
    const void* dy;   // order 1 and 2
    const void* ddx;  // order 2
    void* out;
    Dtype dtype;
    int activation;  // Activation of activations.h
    int order;       // order of the derivative, as in element() there
    double alpha, gain, clamp;  // clamp < 0: none
    int64_t count;
    int64_t step;       // consecutive elements with the same bias
    int64_t channels;   // number of biases
    int64_t max_slice;  // maximum elements per launch, for tests; 0: the kernel's own limit
    Limits limits;
};

// out[o] = gain * sum_i x[i] f[i * up + pad - o * down] along each axis, with x = 0 outside the image and f = 0
// outside its taps.
struct UpfirdnParams {
    const void* x;  // [planes, in_h, in_w] with planes = samples * channels, or channels_last [samples, in_h, in_w, channels]
    void* y;        // [planes, out_h, out_w], or channels_last like x
    const void* f;  // [taps_y, taps_x], or [taps_x] for both axes if separable; null: one tap of 1. double for float64 images, else float
    const void* b;  // [channels] of the type of x, added to the pixels of x; null: none
    Dtype in_dtype, out_dtype;         // equal, or one of them is float32
    bool separable, reverse;           // reverse: the taps are stored last tap first
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
//   down: y[n] = sum_m a[m] fd[m + crop - n * down], a = 0 outside the middle grid.
// phi is the leaky ReLU with gain and clamp (kPlain, kSave), or a product with the slope in the saved codes (kGated).
enum LreluMode { kPlain = 0, kSave = 1, kGated = 2 };

struct FilteredLreluParams {
    const void* x;     // [planes, in_h, in_w]
    void* y;           // [planes, out_h, out_w]
    const float* fu;   // [taps] separable, or [taps, taps]
    const float* fd;
    const void* b;     // [channels] of the type of x, or null
    uint8_t* codes;    // [planes, mid_h, code_bytes]: 2 bits per sample, low bits first: bit 0 = negative, bit 1 = zero slope (clamped or padding)
    Dtype dtype;
    LreluMode mode;
    bool up_full, down_full, reverse_up, reverse_down;
    int64_t planes;
    int channels;
    int in_w, in_h, mid_w, mid_h, out_w, out_h, code_bytes;
    int up, down, up_taps, down_taps;
    int pad_x, pad_y, crop_x, crop_y;
    float up_gain, gain, slope, clamp;  // up_gain multiplies u; clamp < 0: none
    int tile_w, tile_h, tiles_x, tiles_y;  // set by the launcher, like first_tile
    int64_t first_tile;
    Limits limits;
};

// phi on samples [planes, mid_h, mid_w] in place, with codes as above; for cases that the fused kernels do not support.
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

// Each launches its kernel without waiting for it. `stream` is a cudaStream_t, unused on the host.
void bias_act(const BiasActParams& p, void* stream);
void upfirdn2d(const UpfirdnParams& p, void* stream);
void gate(const GateParams& p, void* stream);

// Return whether a fused kernel supports the case, and launch it unless `probe`.
bool filtered_lrelu_separable(const FilteredLreluParams& p, void* stream, bool probe);
bool filtered_lrelu_radial(const FilteredLreluParams& p, void* stream, bool probe);
// On tensor cores; not also in float32, and never on GPUs before Ampere.
bool filtered_lrelu_banded(const FilteredLreluParams& p, void* stream);

}  // namespace ops
