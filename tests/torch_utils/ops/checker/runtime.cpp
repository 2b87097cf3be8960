// SPDX-License-Identifier: Apache-2.0
// Checks every memory access of the kernels on the host. The kernels' sources are compiled with -fsanitize=thread, which calls a function at
// each access, and are linked with the functions below in place of the sanitizer's own. For each access:
//
//   memory     it lies inside a buffer of the launch, inside the shared memory asked for, or is the thread's own
//   race       no other thread touches a byte of shared memory between the same two barriers (of the block, or of the warp that both are
//              in), or a byte of a written buffer in the same launch, if one of the two writes. Decided from who may run at once, not from
//              the order in which the host ran them.
//   unwritten  somebody has written a byte of shared memory in this block, or of an output in this launch, before it is read, and all of
//              an output by the end
//   alignment  the address is a multiple of the access's size
//
// With analysis on, the threads of a warp are put side by side as a device runs them: of the threads that have not reached the next barrier,
// those at the lowest address of the code go first, together. (-fsanitize-coverage=trace-pc tells where each thread is.) What they access in
// such a step is one warp instruction, of which conflicts of shared memory's banks and sectors of global memory are counted.
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "hooks.h"

namespace checker {
namespace {

constexpr unsigned kNobody = ~0u;
constexpr int kWarp = 32, kBanks = 32, kSector = 32;
constexpr size_t kMaxFindings = 200;

typedef uint32_t Place;  // of an instruction: its offset in this library

// An access by a thread, after a number of its warp's barriers.
struct Visit {
    unsigned thread = kNobody;
    uint32_t barriers = 0;
    Place place = 0;
};

// Who touched a byte in the interval `epoch`. Two readers are enough to know one that is not the writer.
struct Cell {
    uint32_t epoch = 0, written_in = 0;
    Visit writer, reader, reader2;
};

struct Range {
    uintptr_t begin, end;
    bool holds(uintptr_t address, size_t bytes) const { return address >= begin && address + bytes <= end; }
};

enum Space : uint8_t { kStep, kGlobal, kShared };

struct Event {
    Place place;
    Space space;
    bool write;
    uint32_t bytes;
    uintptr_t address;  // in shared memory from its start
};

struct Target {
    Buffer buffer;
    Range range;
    std::vector<Cell> cells;
};

struct Finding {
    std::string text;
    int64_t count = 0;
};

// A source place's warp instructions in one kernel.
struct Usage {
    int64_t instructions = 0, threads = 0, waves = 0, ideal_waves = 0, sectors = 0, ideal_sectors = 0;
    double worst = 0;
};

typedef std::tuple<std::string, int, Place, Place> FindingKey;  // what, kernel, places
typedef std::tuple<int, Place, Space, bool, int> UsageKey;      // kernel, place, space, write, bytes

struct Checker {
    bool active = false, analyse = false;
    int kernel = 0;
    unsigned block = 0, thread = 0, threads = 0;
    uint32_t epoch = 0, block_epoch = 0, launch_epoch = 0;
    Range stack{}, shared{}, guard{}, main_stack{};
    std::vector<Range> library;
    uintptr_t base = 0;
    std::vector<Target> targets;
    std::vector<Cell> cells;
    std::vector<std::vector<Event>> events;
    std::vector<uint32_t> warp_barriers;  // of each warp since the last barrier of the block
    std::vector<std::string> kernels;
    std::map<FindingKey, Finding> findings;
    std::map<UsageKey, Usage> usage;
    int64_t accesses = 0, launches = 0;
    std::string report;
};

Checker& the() {
    static Checker checker;
    return checker;
}

std::string here(const Checker& c) { return "block " + std::to_string(c.block) + ", thread " + std::to_string(c.thread); }

void find(Checker& c, const char* what, Place place, Place other, const std::string& text) {
    if (c.findings.size() >= kMaxFindings) return;
    Finding& f = c.findings[{what, c.kernel, place, other}];
    if (f.count++ == 0) f.text = text;
}

// The byte's record in the running interval.
Cell& renewed(Cell& cell, uint32_t epoch) {
    if (cell.epoch != epoch) {
        cell.epoch = epoch;
        cell.writer = cell.reader = cell.reader2 = Visit();
    }
    return cell;
}

bool same_warp(const Visit& a, const Visit& b) { return a.thread / kWarp == b.thread / kWarp; }

// Whether an access may happen at the same time as an earlier one in the list: no barrier of their warp lies between them.
bool at_once(const Visit& earlier, const Visit& now) {
    return earlier.thread != kNobody && earlier.thread != now.thread && !(same_warp(earlier, now) && earlier.barriers < now.barriers);
}

// Enters an access into a byte's record; returns the place of an access by another thread that races with it, or 0.
Place meet(Cell& cell, const Visit& now, bool write) {
    Place other = at_once(cell.writer, now) ? cell.writer.place : 0;
    if (write) {
        for (const Visit& reader : {cell.reader, cell.reader2}) {
            if (at_once(reader, now)) other = reader.place;
        }
        cell.writer = now;
    } else if (cell.reader.thread == kNobody || !at_once(cell.reader, now)) {
        cell.reader = now;
    } else {
        cell.reader2 = now;
    }
    return other;
}

void check_shared(Checker& c, uintptr_t address, size_t bytes, bool write, Place place) {
    const size_t first = address - c.shared.begin;
    for (size_t i = first; i < first + bytes; i++) {
        Cell& cell = renewed(c.cells[i], c.epoch);
        if (!write && cell.written_in != c.block_epoch) {
            find(c, "unwritten", place, 0, "byte " + std::to_string(i) + " of shared memory is read before it is written (" + here(c) + ")");
        }
        const Place other = meet(cell, {c.thread, c.warp_barriers[c.thread / kWarp], place}, write);
        if (other != 0) find(c, "race", place, other, "byte " + std::to_string(i) + " of shared memory (" + here(c) + ")");
        if (write) cell.written_in = c.block_epoch;
    }
}

void check_global(Checker& c, Target& t, uintptr_t address, size_t bytes, bool write, Place place) {
    const size_t first = address - t.range.begin;
    if (t.buffer.use == kRead) {
        if (write) find(c, "memory", place, 0, std::string("writes its input ") + t.buffer.name + " (" + here(c) + ")");
        return;
    }
    for (size_t i = first; i < first + bytes; i++) {
        Cell& cell = renewed(t.cells[i], c.launch_epoch);
        const auto at = [&] { return "byte " + std::to_string(i) + " of " + t.buffer.name + " (" + here(c) + ")"; };
        if (!write && t.buffer.use != kUpdate && cell.written_in != c.launch_epoch) {
            find(c, "unwritten", place, 0, "read before it is written: " + at());
        }
        const Place other = meet(cell, {c.block * c.threads + c.thread, 0, place}, write);
        if (other != 0) find(c, "race", place, other, at());
        if (write) cell.written_in = c.launch_epoch;
    }
}

void access(const void* pointer, size_t bytes, bool write, const void* caller, bool natural) {
    Checker& c = the();
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (!c.active || c.stack.holds(address, bytes)) return;
    const Place place = static_cast<Place>(reinterpret_cast<uintptr_t>(caller) - 1 - c.base);
    const Range whole{c.shared.begin, c.guard.end};
    Space space = kGlobal;
    uintptr_t logged = address;
    if (whole.holds(address, 1)) {
        space = kShared;
        logged = address - c.shared.begin;
        if (c.shared.holds(address, bytes)) {
            check_shared(c, address, bytes, write, place);
        } else {
            find(c, "memory", place, 0, "byte " + std::to_string(logged) + " of shared memory, which has " +
                std::to_string(c.shared.end - c.shared.begin) + " (" + here(c) + ")");
        }
    } else {
        Target* target = nullptr;
        for (Target& t : c.targets) {
            if (t.range.holds(address, bytes)) {
                target = &t;
                break;
            }
        }
        if (target != nullptr) {
            check_global(c, *target, address, bytes, write, place);
        } else {
            // The kernel's parameters and constants.
            if (!write && c.main_stack.holds(address, bytes)) return;
            for (const Range& range : c.library) {
                if (range.holds(address, bytes)) return;
            }
            std::string nearest = "no buffer";
            int64_t distance = INT64_MAX;
            for (const Target& t : c.targets) {
                const int64_t offset = static_cast<int64_t>(address - t.range.begin), size = t.buffer.bytes;
                const int64_t beside = offset < 0 ? -offset : offset - size;
                if (beside < distance) {
                    distance = beside;
                    nearest = "byte " + std::to_string(offset) + " of " + t.buffer.name + ", which has " + std::to_string(size);
                }
            }
            find(c, "memory", place, 0, nearest + " (" + here(c) + ")");
        }
    }
    c.accesses++;
    if (natural && address % bytes != 0) {
        const std::string text = std::to_string(bytes) + " bytes at an address of which " + std::to_string(address % bytes) + " are left (" + here(c) + ")";
        find(c, "alignment", place, 0, text);
        // This processor may stop at the access itself, before anybody asks for the report.
        if (bytes == 16) std::fprintf(stderr, "kernel checker: %s, %s: %s\n", "alignment", c.kernels[c.kernel].c_str(), text.c_str());
    }
    if (c.analyse) c.events[c.thread].push_back({place, space, write, static_cast<uint32_t>(bytes), logged});
}

// Wavefronts that a warp's access to shared memory takes: per group of threads that together move 128 bytes, the most words of one bank.
void count_banks(const std::vector<Event>& lanes, const std::vector<int>& numbers, Usage& u) {
    const size_t bytes = lanes[0].bytes, groups = bytes <= 4 ? 1 : std::min<size_t>(bytes / 4, kWarp), per_group = kWarp / groups;
    int64_t waves = 0, ideal = 0;
    for (size_t group = 0; group < groups; group++) {
        std::set<uintptr_t> words;
        for (size_t i = 0; i < lanes.size(); i++) {
            if (numbers[i] / per_group != group) continue;
            for (uintptr_t word = lanes[i].address / 4; word <= (lanes[i].address + bytes - 1) / 4; word++) words.insert(word);
        }
        if (words.empty()) continue;
        int counts[kBanks] = {};
        int most = 0;
        for (const uintptr_t word : words) most = std::max(most, ++counts[word % kBanks]);
        waves += most;
        ideal++;
    }
    u.waves += waves;
    u.ideal_waves += ideal;
    u.worst = std::max(u.worst, static_cast<double>(waves) / static_cast<double>(ideal));
}

void count_sectors(const std::vector<Event>& lanes, Usage& u) {
    std::set<uintptr_t> sectors, touched;
    for (const Event& e : lanes) {
        for (uintptr_t a = e.address; a < e.address + e.bytes; a++) {
            touched.insert(a);
            sectors.insert(a / kSector);
        }
    }
    const int64_t ideal = (touched.size() + kSector - 1) / kSector;
    u.sectors += sectors.size();
    u.ideal_sectors += ideal;
    u.worst = std::max(u.worst, static_cast<double>(sectors.size()) / static_cast<double>(ideal));
}

void count_instruction(Checker& c, const std::vector<Event>& lanes, const std::vector<int>& numbers) {
    const Event& first = lanes[0];
    Usage& u = c.usage[{c.kernel, first.place, first.space, first.write, first.bytes}];
    u.instructions++;
    u.threads += lanes.size();
    if (first.space == kShared) {
        count_banks(lanes, numbers, u);
    } else {
        count_sectors(lanes, u);
    }
}

// Counts what the threads of a warp did since its last barrier.
void analyse_warp(Checker& c, unsigned first) {
    if (!c.analyse) return;
    const unsigned last = std::min(first + kWarp, c.threads);
    std::vector<size_t> at(last - first, 0);
    std::vector<Event> lanes;
    std::vector<int> numbers;
    for (;;) {
        Place next = ~Place{0};
        for (unsigned i = first; i < last; i++) {
            if (at[i - first] < c.events[i].size()) next = std::min(next, c.events[i][at[i - first]].place);
        }
        if (next == ~Place{0}) break;
        lanes.clear();
        numbers.clear();
        for (unsigned i = first; i < last; i++) {
            size_t& position = at[i - first];
            if (position == c.events[i].size() || c.events[i][position].place != next) continue;
            lanes.push_back(c.events[i][position++]);
            numbers.push_back(static_cast<int>(i - first));
        }
        if (lanes[0].space != kStep) count_instruction(c, lanes, numbers);
    }
    for (unsigned i = first; i < last; i++) c.events[i].clear();
}

int segments(dl_phdr_info* info, size_t, void* data) {
    Checker& c = *static_cast<Checker*>(data);
    if (info->dlpi_addr != c.base) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD) c.library.push_back({c.base + header.p_vaddr, c.base + header.p_vaddr + header.p_memsz});
    }
    return 1;
}

void learn_ranges(Checker& c) {
    Dl_info info;
    dladdr(reinterpret_cast<const void*>(&the), &info);
    c.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(segments, &c);
}

Range stack_of_this_thread() {
    pthread_attr_t attributes;
    void* start = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &start, &bytes);
    pthread_attr_destroy(&attributes);
    return {reinterpret_cast<uintptr_t>(start), reinterpret_cast<uintptr_t>(start) + bytes};
}

void escape(std::string& out, const std::string& text) {
    for (const char ch : text) {
        if (ch == '"' || ch == '\\') out += '\\';
        out += ch;
    }
}

}  // namespace

void start(const char* kernel, const Buffers& buffers, unsigned, unsigned threads) {
    Checker& c = the();
    if (c.library.empty()) learn_ranges(c);
    c.main_stack = stack_of_this_thread();
    const auto known = std::find(c.kernels.begin(), c.kernels.end(), kernel);
    c.kernel = static_cast<int>(known - c.kernels.begin());
    if (known == c.kernels.end()) c.kernels.push_back(kernel);
    c.targets.clear();
    for (const Buffer& b : buffers) {
        if (b.data == nullptr || b.bytes == 0) continue;
        const uintptr_t begin = reinterpret_cast<uintptr_t>(b.data);
        c.targets.push_back({b, {begin, begin + b.bytes}, std::vector<Cell>(b.use == kRead ? 0 : b.bytes)});
    }
    c.threads = threads;
    if (c.events.size() < threads) c.events.resize(threads);
    c.warp_barriers.assign((threads + kWarp - 1) / kWarp, 0);
    c.launch_epoch = ++c.epoch;
    c.launches++;
}

void begin_block(unsigned block, const void* shared, size_t shared_bytes, size_t guard_bytes) {
    Checker& c = the();
    c.block = block;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(shared);
    c.shared = {begin, begin + shared_bytes};
    c.guard = {begin + shared_bytes, begin + shared_bytes + guard_bytes};
    c.cells.resize(shared_bytes);
    c.block_epoch = ++c.epoch;
}

void enter(unsigned thread, const void* stack, size_t stack_bytes) {
    Checker& c = the();
    c.thread = thread;
    c.stack = {reinterpret_cast<uintptr_t>(stack), reinterpret_cast<uintptr_t>(stack) + stack_bytes};
    c.active = true;
}

void leave() { the().active = false; }

void end_interval() {
    Checker& c = the();
    c.epoch++;
    std::fill(c.warp_barriers.begin(), c.warp_barriers.end(), 0);
    for (unsigned first = 0; first < c.threads; first += kWarp) analyse_warp(c, first);
}

void end_warp_interval(unsigned first) {
    Checker& c = the();
    c.warp_barriers[first / kWarp]++;
    analyse_warp(c, first);
}

void end_launch() {
    Checker& c = the();
    for (const Target& t : c.targets) {
        if (t.buffer.use != kWrite) continue;
        const auto missing = [&](const Cell& cell) { return cell.written_in != c.launch_epoch; };
        const auto first = std::find_if(t.cells.begin(), t.cells.end(), missing);
        if (first == t.cells.end()) continue;
        const std::string count = std::to_string(std::count_if(first, t.cells.end(), missing));
        find(c, "unwritten", 0, 0, count + " of " + std::to_string(t.buffer.bytes) + " bytes of " + t.buffer.name + " are never written, the first at " +
            std::to_string(first - t.cells.begin()));
    }
    c.targets.clear();
}

}  // namespace checker

extern "C" {

// Forgets all findings and counts. analyse: whether to count warp instructions, too.
__attribute__((visibility("default"))) void checker_reset(int analyse) {
    checker::Checker& c = checker::the();
    c.findings.clear();
    c.usage.clear();
    c.kernels.clear();
    c.accesses = c.launches = 0;
    c.analyse = analyse != 0;
}

// Findings and counts as JSON; places are offsets in this library.
__attribute__((visibility("default"))) const char* checker_report() {
    checker::Checker& c = checker::the();
    std::string& out = c.report;
    const auto number = [](auto value) { return std::to_string(value); };
    out = "{\"launches\": " + number(c.launches) + ", \"accesses\": " + number(c.accesses) + ", \"kernels\": [";
    for (size_t i = 0; i < c.kernels.size(); i++) {
        out += i ? ", \"" : "\"";
        checker::escape(out, c.kernels[i]);
        out += "\"";
    }
    out += "], \"findings\": [";
    const char* comma = "";
    for (const auto& [key, f] : c.findings) {
        const auto& [what, kernel, place, other] = key;
        out += comma + ("{\"what\": \"" + what + "\", \"kernel\": " + number(kernel) + ", \"place\": " + number(place) + ", \"other\": " + number(other)) +
            ", \"count\": " + number(f.count) + ", \"text\": \"" + f.text + "\"}";
        comma = ", ";
    }
    out += "], \"usage\": [";
    comma = "";
    for (const auto& [key, u] : c.usage) {
        const auto& [kernel, place, space, write, bytes] = key;
        out += comma + ("[" + number(kernel) + ", " + number(place) + ", " + number(space == checker::kShared) + ", " + number(static_cast<int>(write))) + ", " +
            number(bytes) + ", " + number(u.instructions) + ", " + number(u.threads) + ", " + number(u.waves) + ", " + number(u.ideal_waves) + ", " +
            number(u.sectors) + ", " + number(u.ideal_sectors) + ", " + number(u.worst) + "]";
        comma = ", ";
    }
    out += "]}";
    return out.c_str();
}

#define CHECKER_ACCESS(bytes)                                                                                                    \
    void __tsan_read##bytes(void* p) { checker::access(p, bytes, false, __builtin_return_address(0), true); }                    \
    void __tsan_write##bytes(void* p) { checker::access(p, bytes, true, __builtin_return_address(0), true); }                    \
    void __tsan_unaligned_read##bytes(void* p) { checker::access(p, bytes, false, __builtin_return_address(0), true); }          \
    void __tsan_unaligned_write##bytes(void* p) { checker::access(p, bytes, true, __builtin_return_address(0), true); }
CHECKER_ACCESS(1)
CHECKER_ACCESS(2)
CHECKER_ACCESS(4)
CHECKER_ACCESS(8)
CHECKER_ACCESS(16)

void __tsan_read_range(void* p, size_t bytes) { checker::access(p, bytes, false, __builtin_return_address(0), false); }
void __tsan_write_range(void* p, size_t bytes) { checker::access(p, bytes, true, __builtin_return_address(0), false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
int __tsan_atomic8_load(const volatile void* p, int) { return *static_cast<const volatile char*>(p); }

// clang's copies of structures.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    checker::access(from, bytes, false, __builtin_return_address(0), false);
    checker::access(to, bytes, true, __builtin_return_address(0), false);
    return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    checker::access(to, bytes, true, __builtin_return_address(0), false);
    return std::memset(to, value, bytes);
}

void __sanitizer_cov_trace_pc() {
    checker::Checker& c = checker::the();
    if (!c.active || !c.analyse) return;
    const uintptr_t caller = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    c.events[c.thread].push_back({static_cast<checker::Place>(caller - 1 - c.base), checker::kStep, false, 0, 0});
}
}
