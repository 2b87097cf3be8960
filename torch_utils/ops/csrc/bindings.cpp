// SPDX-License-Identifier: Apache-2.0
// Implements the operators that torch_utils/ops/backend/library.py defines: arranges tensors in memory, allocates
// outputs and launches the kernels. It does not repeat the checks in Python. Compiled for CUDA, or with OPS_HOST for a
// CPU on top of the host shim. It uses only torch's stable C interface, which compiles in one second instead of
// thirteen and does not depend on torch's C++ ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops.h"

#ifndef OPS_HOST
#include <cuda_runtime_api.h>
#endif

namespace {

using std::optional;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
typedef std::vector<int64_t> Numbers;

// Selects the device of a tensor during the lifetime of this object, and holds its current stream.
struct Launch {
#ifdef OPS_HOST
    explicit Launch(const Tensor&) {}
    void* stream() const { return nullptr; }
    void check() const {}
#else
    explicit Launch(const Tensor& x) : device(x.get_device_index()), guard(device) {}
    void* stream() const {
        void* stream = nullptr;
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
        return stream;
    }
    void check() const {
        const cudaError_t error = cudaGetLastError();
        STD_TORCH_CHECK(error == cudaSuccess, "a kernel did not start: ", cudaGetErrorString(error));
    }
    int32_t device;
    torch::stable::accelerator::DeviceGuard guard;
#endif
};

ops::Dtype dtype_of(const Tensor& x) {
    switch (x.scalar_type()) {
        case ScalarType::Float: return ops::kFloat32;
        case ScalarType::Half: return ops::kFloat16;
        case ScalarType::BFloat16: return ops::kBFloat16;
        case ScalarType::Double: return ops::kFloat64;
        default: STD_TORCH_CHECK(false, "expected float32, float16, bfloat16 or float64");
    }
}

bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

// In the host build, outputs are filled with NaN patterns, so that tests detect elements that a kernel does not write.
// Outputs of gigabytes are not, because tests use only a part of them.
Tensor poisoned(Tensor x) {
#ifdef OPS_HOST
    const size_t bytes = x.numel() * x.element_size();
    if (bytes > 0 && bytes < size_t{1} << 30) std::fill_n(static_cast<unsigned char*>(x.mutable_data_ptr()), bytes, 0xff);
#endif
    return x;
}

Tensor empty(const Numbers& sizes, ScalarType dtype, const Tensor& like, bool channels_last = false) {
    const optional<MemoryFormat> format = channels_last ? optional<MemoryFormat>(MemoryFormat::ChannelsLast) : std::nullopt;
    return poisoned(torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format));
}

// Kernels do not check addresses: those of another device would end the process or read foreign memory.
void check_device(const Tensor& x, std::initializer_list<const Tensor*> others) {
    for (const Tensor* other : others) {
        STD_TORCH_CHECK(other == nullptr || other->get_device_index() == x.get_device_index(), "all tensors must be on one device");
    }
}

const Tensor* address(const optional<Tensor>& x) { return x.has_value() ? &*x : nullptr; }

// Converts to another type, contiguous. Returns the tensor itself if it already is.
Tensor dense(const Tensor& x, ScalarType dtype) {
    return torch::stable::contiguous(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype));
}

bool same(torch::headeronly::IntHeaderOnlyArrayRef a, torch::headeronly::IntHeaderOnlyArrayRef b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

const void* pointer(const optional<Tensor>& x) { return x.has_value() ? x->const_data_ptr() : nullptr; }

// Returns a bias in the form that the kernels need: contiguous and of the type of x.
optional<Tensor> bias_for(const Tensor& x, const optional<Tensor>& b) {
    return b.has_value() ? optional<Tensor>(dense(*b, x.scalar_type())) : std::nullopt;
}

constexpr int64_t kMaxDirectWindow = 16;  // nonzero taps per output: 4 x 4, or 8 x 8 upsampling by 2

ops::Limits test_limits{};
int64_t test_max_slice = 0;
bool test_fuse = true;
bool tensor_cores = false;

Tensor run_bias_act(
    int order, const Tensor& first, const optional<Tensor>& second, const optional<Tensor>& x, const optional<Tensor>& b, const optional<Tensor>& y,
    int64_t dim, int64_t act, double alpha, double gain, double clamp
) {
    check_device(first, {address(second), address(x), address(b), address(y)});
    // All tensors get the same dense memory order: that of torch.empty_like of the first tensor.
    Tensor out = poisoned(torch::stable::empty_like(first));
    std::vector<Tensor> keep;
    auto use = [&](const Tensor& t) {
        keep.push_back(t);
        if (t.scalar_type() != out.scalar_type() || !same(t.strides(), out.strides())) {
            keep.back() = torch::stable::empty_like(out);
            torch::stable::copy_(keep.back(), t);
        }
        return keep.back().const_data_ptr();
    };
    ops::BiasActParams p{};
    if (order == 0) {
        p.x = use(first);
    } else {
        p.dy = order == 1 ? use(first) : use(*second);
        p.ddx = order == 2 ? use(first) : nullptr;
        // A constant slope needs no saved tensor; the kernel accepts any tensor of the right size.
        p.x = x.has_value() ? use(*x) : p.dy;
        p.y = y.has_value() ? use(*y) : nullptr;
    }
    const optional<Tensor> bias = bias_for(out, b);
    p.b = pointer(bias);
    p.out = out.mutable_data_ptr();
    p.dtype = dtype_of(out);
    p.activation = static_cast<int>(act);
    p.order = order;
    p.alpha = alpha;
    p.gain = gain;
    p.clamp = clamp;
    p.count = out.numel();
    p.channels = b.has_value() ? std::max<int64_t>(b->numel(), 1) : 1;
    // The number of consecutive elements with the same bias is the stride of its axis, which must be the product of the
    // faster axes.
    p.step = b.has_value() && out.size(dim) > 1 ? out.stride(dim) : 1;
    if (b.has_value() && out.size(dim) <= 1) p.step = std::max<int64_t>(out.numel(), 1);
    p.max_slice = test_max_slice;
    p.limits = test_limits;
    Launch launch(out);
    ops::bias_act(p, launch.stream());
    launch.check();
    return out;
}

Tensor bias_act(const Tensor& x, const optional<Tensor>& b, int64_t dim, int64_t act, double alpha, double gain, double clamp) {
    return run_bias_act(0, x, std::nullopt, std::nullopt, b, std::nullopt, dim, act, alpha, gain, clamp);
}

Tensor bias_act_grad(
    const Tensor& dy, const optional<Tensor>& x, const optional<Tensor>& b, const optional<Tensor>& y, int64_t dim, int64_t act, double alpha,
    double gain, double clamp
) {
    return run_bias_act(1, dy, std::nullopt, x, b, y, dim, act, alpha, gain, clamp);
}

Tensor bias_act_grad2(
    const Tensor& ddx, const Tensor& dy, const optional<Tensor>& x, const optional<Tensor>& b, const optional<Tensor>& y, int64_t dim, int64_t act,
    double alpha, double gain, double clamp
) {
    return run_bias_act(2, ddx, dy, x, b, y, dim, act, alpha, gain, clamp);
}

// Whether x is channels_last and not contiguous.
bool is_channels_last(const Tensor& x) {
    int64_t step = 1;
    for (const int axis : {1, 3, 2, 0}) {
        if (x.size(axis) != 1 && x.stride(axis) != step) return false;
        step *= x.size(axis);
    }
    return !x.is_contiguous();
}

// Image kernels work on planes: this makes the input contiguous, and converts the output to the input's memory format.
// `takes_last`: the kernel also supports channels_last images.
struct Images {
    Images(const Tensor& x, bool takes_last) : last(is_channels_last(x)), direct(last && takes_last), input(direct ? x : torch::stable::contiguous(x)) {}
    Tensor output(int64_t height, int64_t width) const {
        return empty({input.size(0), input.size(1), height, width}, input.scalar_type(), input, direct);
    }
    Tensor finish(const Tensor& y) const { return last && !direct ? torch::stable::contiguous(y, MemoryFormat::ChannelsLast) : y; }
    bool last, direct;
    Tensor input;
};

// Returns a filter in the form that the kernels need: contiguous, double for float64 images and float for others.
optional<Tensor> filter_for(const Tensor& x, const optional<Tensor>& f) {
    return f.has_value() ? optional<Tensor>(dense(*f, is_double(x) ? ScalarType::Double : ScalarType::Float)) : std::nullopt;
}

int taps_x(const optional<Tensor>& f) { return f.has_value() ? static_cast<int>(f->size(-1)) : 1; }
int taps_y(const optional<Tensor>& f) { return f.has_value() ? static_cast<int>(f->size(0)) : 1; }
bool separable(const optional<Tensor>& f) { return !f.has_value() || f->dim() == 1; }

Tensor upfirdn2d(const Tensor& x, const optional<Tensor>& f, const Numbers& geometry, bool reverse, double gain) {
    STD_TORCH_CHECK(geometry.size() == 8, "geometry must be up x, y, down x, y, padding x, y, width, height");
    check_device(x, {address(f)});
    // For channels_last images with small windows, the direct kernel is faster than the separable one with two copies.
    const int64_t window = (taps_x(f) + geometry[0] - 1) / geometry[0] * ((taps_y(f) + geometry[1] - 1) / geometry[1]);
    Images images(x, window <= kMaxDirectWindow);
    const optional<Tensor> filter = filter_for(x, f);
    ops::UpfirdnParams p{};
    p.channels_last = images.direct;
    p.up_x = geometry[0], p.up_y = geometry[1], p.down_x = geometry[2], p.down_y = geometry[3];
    p.pad_x = geometry[4], p.pad_y = geometry[5], p.out_w = geometry[6], p.out_h = geometry[7];
    Tensor y = images.output(p.out_h, p.out_w);
    p.x = images.input.const_data_ptr();
    p.y = y.mutable_data_ptr();
    p.f = pointer(filter);
    p.in_dtype = p.out_dtype = dtype_of(x);
    p.separable = separable(f);
    p.taps_x = taps_x(f), p.taps_y = taps_y(f);
    p.reverse = reverse;
    p.planes = x.size(0) * x.size(1);
    p.channels = static_cast<int>(x.size(1));
    p.in_h = x.size(2), p.in_w = x.size(3);
    p.gain = gain;
    p.limits = test_limits;
    Launch launch(x);
    ops::upfirdn2d(p, launch.stream());
    launch.check();
    return images.finish(y);
}

// One call of filtered_lrelu or of its derivative: from an image over the middle grid to an image.
struct Plan {
    const optional<Tensor>& fu;
    const optional<Tensor>& fd;
    int up_x, up_y, down_x, down_y, pad_x, pad_y, crop_x, crop_y, mid_w, mid_h, out_w, out_h;
    bool reverse_up, reverse_down;
    double up_gain, gain, slope, clamp;
    ops::LreluMode mode;
    uint8_t* codes;
    int code_bytes;
    bool fuse;
};

// Handles cases that the fused kernels do not support: three passes over groups of planes, which limit the memory of
// the middle image.
void run_in_passes(const Plan& plan, const Tensor& x, const Tensor& y, const optional<Tensor>& b, const Launch& launch) {
    constexpr int64_t kMaxSamples = int64_t{1} << 26;
    const int64_t channels = x.size(1), planes = x.size(0) * channels, samples = static_cast<int64_t>(plan.mid_w) * plan.mid_h;
    // Groups are whole samples, so that the channel of a plane is its index modulo the number of channels.
    const int64_t step = std::min(planes, std::max<int64_t>(1, kMaxSamples / samples / channels) * channels);
    Tensor mid = empty({step, plan.mid_h, plan.mid_w}, is_double(x) ? ScalarType::Double : ScalarType::Float, x);
    const optional<Tensor> fu = filter_for(x, plan.fu), fd = filter_for(x, plan.fd);
    ops::UpfirdnParams u{}, d{};
    u.f = pointer(fu), d.f = pointer(fd);
    u.b = pointer(b);
    u.in_dtype = d.out_dtype = dtype_of(x);
    u.out_dtype = d.in_dtype = dtype_of(mid);
    u.separable = separable(fu), d.separable = separable(fd);
    u.reverse = plan.reverse_up, d.reverse = plan.reverse_down;
    u.channels = d.channels = static_cast<int>(channels);
    u.in_w = x.size(3), u.in_h = x.size(2);
    u.out_w = d.in_w = plan.mid_w, u.out_h = d.in_h = plan.mid_h;
    d.out_w = plan.out_w, d.out_h = plan.out_h;
    u.up_x = plan.up_x, u.up_y = plan.up_y, u.down_x = u.down_y = 1;
    d.up_x = d.up_y = 1, d.down_x = plan.down_x, d.down_y = plan.down_y;
    u.pad_x = plan.pad_x, u.pad_y = plan.pad_y, d.pad_x = plan.crop_x, d.pad_y = plan.crop_y;
    u.taps_x = taps_x(fu), u.taps_y = taps_y(fu), d.taps_x = taps_x(fd), d.taps_y = taps_y(fd);
    u.gain = plan.up_gain, d.gain = 1;
    ops::GateParams g{};
    u.limits = d.limits = g.limits = test_limits;
    g.is_double = is_double(x);
    g.mode = plan.mode;
    g.mid_w = plan.mid_w, g.code_bytes = plan.code_bytes > 0 ? plan.code_bytes : (plan.mid_w + 3) / 4;
    g.gain = plan.gain, g.slope = plan.slope, g.clamp = plan.clamp;
    const int64_t size = x.element_size();
    for (int64_t first = 0; first < planes; first += step) {
        u.planes = d.planes = std::min(step, planes - first);
        g.rows = u.planes * plan.mid_h;
        u.x = static_cast<const char*>(x.const_data_ptr()) + first * u.in_w * u.in_h * size;
        u.y = g.u = mid.mutable_data_ptr();
        g.codes = plan.codes == nullptr ? nullptr : plan.codes + first * plan.mid_h * plan.code_bytes;
        d.x = mid.const_data_ptr();
        d.y = static_cast<char*>(y.mutable_data_ptr()) + first * d.out_w * d.out_h * size;
        ops::upfirdn2d(u, launch.stream());
        ops::gate(g, launch.stream());
        ops::upfirdn2d(d, launch.stream());
        launch.check();
    }
}

bool run_fused(const Plan& plan, const Tensor& x, const Tensor& y, const optional<Tensor>& b, const Launch& launch) {
    if (!plan.fuse || is_double(x) || !plan.fu.has_value() || !plan.fd.has_value()) return false;
    if (plan.up_x != plan.up_y || plan.down_x != plan.down_y) return false;
    if (plan.fu->size(0) != plan.fu->size(-1) || plan.fd->size(0) != plan.fd->size(-1)) return false;
    const optional<Tensor> fu = filter_for(x, plan.fu), fd = filter_for(x, plan.fd);
    ops::FilteredLreluParams p{};
    p.x = x.const_data_ptr();
    p.y = y.mutable_data_ptr();
    p.fu = fu->const_data_ptr<float>(), p.fd = fd->const_data_ptr<float>();
    p.b = pointer(b);
    p.codes = plan.codes;
    p.dtype = dtype_of(x);
    p.mode = plan.mode;
    p.up_full = fu->dim() == 2, p.down_full = fd->dim() == 2;
    p.reverse_up = plan.reverse_up, p.reverse_down = plan.reverse_down;
    p.planes = x.size(0) * x.size(1);
    p.channels = static_cast<int>(x.size(1));
    p.in_w = x.size(3), p.in_h = x.size(2), p.mid_w = plan.mid_w, p.mid_h = plan.mid_h, p.out_w = plan.out_w, p.out_h = plan.out_h;
    p.code_bytes = plan.code_bytes;
    p.up = plan.up_x, p.down = plan.down_x, p.up_taps = taps_x(fu), p.down_taps = taps_x(fd);
    p.pad_x = plan.pad_x, p.pad_y = plan.pad_y, p.crop_x = plan.crop_x, p.crop_y = plan.crop_y;
    p.up_gain = static_cast<float>(plan.up_gain), p.gain = static_cast<float>(plan.gain);
    p.slope = static_cast<float>(plan.slope), p.clamp = static_cast<float>(plan.clamp);
    p.limits = test_limits;
    const bool done = (tensor_cores && ops::filtered_lrelu_banded(p, launch.stream())) ||
        ops::filtered_lrelu_separable(p, launch.stream(), false) || ops::filtered_lrelu_radial(p, launch.stream(), false);
    launch.check();
    return done;
}

Tensor run(const Plan& plan, const Tensor& x, const optional<Tensor>& b) {
    Images images(x, false);
    Tensor y = images.output(plan.out_h, plan.out_w);
    if (y.numel() > 0) {
        const optional<Tensor> bias = bias_for(x, b);
        Launch launch(x);
        if (!run_fused(plan, images.input, y, bias, launch)) run_in_passes(plan, images.input, y, bias, launch);
    }
    return images.finish(y);
}

// geometry: up (x, y), down (x, y), padding (x, y), then width and height of the input, the middle grid and the output.
Plan make_plan(
    const optional<Tensor>& fu, const optional<Tensor>& fd, const Numbers& geometry, bool flip, double gain, double slope, double clamp
) {
    STD_TORCH_CHECK(geometry.size() == 12, "geometry must have 12 numbers");
    Plan plan{fu, fd};
    plan.up_x = geometry[0], plan.up_y = geometry[1], plan.down_x = geometry[2], plan.down_y = geometry[3];
    plan.pad_x = geometry[4], plan.pad_y = geometry[5];
    plan.mid_w = geometry[8], plan.mid_h = geometry[9], plan.out_w = geometry[10], plan.out_h = geometry[11];
    plan.reverse_up = plan.reverse_down = !flip;
    plan.up_gain = static_cast<double>(plan.up_x * plan.up_y);
    plan.gain = gain, plan.slope = slope, plan.clamp = clamp;
    plan.fuse = test_fuse;
    return plan;
}

std::tuple<Tensor, Tensor> filtered_lrelu(
    const Tensor& x, const optional<Tensor>& fu, const optional<Tensor>& fd, const optional<Tensor>& b, const Numbers& geometry, bool flip,
    double gain, double slope, double clamp, bool save
) {
    check_device(x, {address(fu), address(fd), address(b)});
    Plan plan = make_plan(fu, fd, geometry, flip, gain, slope, clamp);
    plan.mode = save ? ops::kSave : ops::kPlain;
    plan.code_bytes = save ? (plan.mid_w + 3) / 4 : 0;
    Tensor codes = empty(save ? Numbers{x.size(0), x.size(1), plan.mid_h, plan.code_bytes} : Numbers{0}, ScalarType::Byte, x);
    if (save) {
        plan.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
    }
    return {run(plan, x, b), codes};
}

Tensor filtered_lrelu_gated(
    const Tensor& t, const optional<Tensor>& fu, const optional<Tensor>& fd, const Tensor& codes, const optional<Tensor>&, const optional<Tensor>&,
    const Numbers& geometry, bool flip, double gain, double slope, double clamp, bool transposed
) {
    check_device(t, {address(fu), address(fd), &codes});
    Plan plan = make_plan(transposed ? fd : fu, transposed ? fu : fd, geometry, flip, gain, slope, clamp);
    plan.mode = ops::kGated;
    const Tensor packed = torch::stable::contiguous(codes);
    plan.codes = const_cast<uint8_t*>(packed.const_data_ptr<uint8_t>());
    plan.code_bytes = static_cast<int>(packed.size(3));
    if (transposed) {
        // The transposed map of an axis swaps up and down, reverses the taps and pads by taps - 1 - padding.
        plan.crop_x = taps_x(fu) - 1 - plan.pad_x, plan.crop_y = taps_y(fu) - 1 - plan.pad_y;
        plan.pad_x = taps_x(fd) - 1, plan.pad_y = taps_y(fd) - 1;
        std::swap(plan.up_x, plan.down_x);
        std::swap(plan.up_y, plan.down_y);
        plan.out_w = geometry[6], plan.out_h = geometry[7];
        plan.reverse_up = plan.reverse_down = flip;
    }
    return run(plan, t, std::nullopt);
}

// For tests: at most `blocks` blocks in a grid, at most `slice` elements of bias_act per launch, only the last `tail`
// work items of a kernel (0: no limit), and fused kernels or not.
void set_limits(int64_t blocks, int64_t slice, int64_t tail, bool fuse) {
    test_limits = {static_cast<int>(blocks), tail};
    test_max_slice = slice;
    test_fuse = fuse;
}

// Whether filtered_lrelu uses tensor cores where it can; returns whether it did before.
bool use_tensor_cores(bool use) { return std::exchange(tensor_cores, use); }

}  // namespace

// The macros do not expand their arguments; these do, so that the build can define the names.
#define OPS_FRAGMENT(name, m) STABLE_TORCH_LIBRARY_FRAGMENT(name, m)
#define OPS_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

OPS_FRAGMENT(OPS_NAMESPACE, m) {
    m.def("set_limits(int blocks=0, int slice=0, int tail=0, bool fuse=True) -> ()");
    m.def("use_tensor_cores(bool use) -> bool");
}

OPS_IMPL(OPS_NAMESPACE, CompositeExplicitAutograd, m) {
    m.impl("set_limits", TORCH_BOX(&set_limits));
    m.impl("use_tensor_cores", TORCH_BOX(&use_tensor_cores));
}

OPS_IMPL(OPS_NAMESPACE, OPS_KEY, m) {
    m.impl("bias_act", TORCH_BOX(&bias_act));
    m.impl("bias_act_grad", TORCH_BOX(&bias_act_grad));
    m.impl("bias_act_grad2", TORCH_BOX(&bias_act_grad2));
    m.impl("upfirdn2d", TORCH_BOX(&upfirdn2d));
    m.impl("filtered_lrelu", TORCH_BOX(&filtered_lrelu));
    m.impl("filtered_lrelu_gated", TORCH_BOX(&filtered_lrelu_gated));
}
