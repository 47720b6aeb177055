// The scheduler behind shim.h: fibers, warps, barriers, shared memory, and the registry through which Rust launches.
// One launch runs on the calling OS thread, block after block; launches on different OS threads are independent.
#include "shim.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <new>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

__thread Position* here = nullptr;

namespace {

constexpr size_t STACK = 256 * 1024, PAGE = 4096;
constexpr size_t GUARD = 256;               // poisoned bytes before and after each piece of shared memory
constexpr size_t ARENA = 512 * 1024;        // all shared memory of one block, guards included
constexpr size_t STATIC_LIMIT = 48 * 1024;  // what nvcc allows for static shared memory
constexpr unsigned char POISON = 0xff;      // NaN as float32, float16, bfloat16 and fp8

// sm_80 code also runs on 8.6 and 8.9 and shares its source with sm_120: all of these have 99 KiB for one block.
size_t shared_limit(int arch) { return (arch < 800 ? 64 : arch < 900 ? 99 : 227) * 1024; }

struct Copy { unsigned char* shared; const unsigned char* global; int bytes, valid; };

enum class State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
    Position at;
    State state;
    void* stack_pointer;
    unsigned char* stack = nullptr; // lowest usable byte; a page below it faults
    void* sanitizer_stack = nullptr;
    int index;
    uint32_t mask;       // AtWarp: with whom
    Collective waits_at; // AtWarp: for what
    int line;            // AtBlock: which barrier
    std::vector<std::vector<Copy>> groups; // committed, oldest first
    std::vector<Copy> open;                // issued, not yet committed
};

struct StaticArray { const void* tag; size_t offset, bytes; };

enum class Order : uint32_t { Forward, Reverse, Shuffled, WarpAhead, WarpAheadReverse, RandomBursts };

} // namespace

struct Schedule {
    Order order;
    uint32_t seed;
    uint32_t copies_land_at_issue; // else at wait
};

namespace {

struct Machine {
    const Kernel* kernel = nullptr;
    const void* params = nullptr;
    Schedule schedule{};
    uint32_t random = 0;
    std::vector<Fiber> fibers; // only grows, so that stacks are made once
    std::vector<Warp> warps;
    int threads = 0, alive = 0, at_block = 0;
    Fiber* current = nullptr;
    void* scheduler_stack_pointer = nullptr;
    const void* scheduler_stack_bottom = nullptr;
    size_t scheduler_stack_size = 0;
    void* scheduler_sanitizer_stack = nullptr;
    unsigned char* arena = nullptr;
    size_t dynamic_bytes = 0, arena_used = 0;
    std::vector<StaticArray> static_arrays;
    std::vector<int> order; // scratch of the schedule
    std::string error;
    sigjmp_buf escape; // out of a fiber that failed

    uint32_t next_random() { return (random = random * 1664525u + 1013904223u) >> 8; }
};

thread_local Machine machine;
__thread Machine* running = nullptr; // `machine` while it launches: free to read, also from the signal handler

// --- fibers ----------------------------------------------------------------------------------------------------------

// switch_stack(save, load): goes on where `load` was saved, and can be gone back to by what it puts into *save.
// prepare_stack(stack): something to load that enters `entry` on a fresh stack.
#if defined(__x86_64__) && !defined(KERNELS_HOST_UCONTEXT)
extern "C" void kernels_host_switch_stack(void** save, void* load);
asm(R"(
.text
.globl kernels_host_switch_stack
.hidden kernels_host_switch_stack
.type kernels_host_switch_stack,@function
kernels_host_switch_stack:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
void switch_stack(void** save, void* load) { kernels_host_switch_stack(save, load); }
void* prepare_stack(unsigned char* stack, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(stack + STACK);
    *--sp = nullptr; // a return address for entry, which never returns; keeps the stack aligned as after a call
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#else
// Portable, and some ten times slower: it saves the signal mask, by a system call, each time.
void switch_stack(void** save, void* load) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(load));
}
void* prepare_stack(unsigned char* stack, void (*entry)()) {
    constexpr size_t room = (sizeof(ucontext_t) + 63) / 64 * 64;
    auto* context = new (stack + STACK - room) ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK - room;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

void to_scheduler(Fiber& fiber) {
    Machine& m = *running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fiber.state == State::Done ? nullptr : &fiber.sanitizer_stack,
                                   m.scheduler_stack_bottom, m.scheduler_stack_size);
#endif
    switch_stack(&fiber.stack_pointer, m.scheduler_stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber.sanitizer_stack, &m.scheduler_stack_bottom, &m.scheduler_stack_size);
#endif
}

void to_fiber(Fiber& fiber) {
    Machine& m = *running;
    m.current = &fiber;
    here = &fiber.at;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&m.scheduler_sanitizer_stack, fiber.stack, STACK);
#endif
    switch_stack(&m.scheduler_stack_pointer, fiber.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(m.scheduler_sanitizer_stack, nullptr, nullptr);
#endif
    m.current = nullptr;
}

void fiber_main() {
    Machine& m = *running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack_bottom, &m.scheduler_stack_size);
#endif
    Fiber& fiber = *m.current;
    m.kernel->run(m.params);
    for (const auto& group : fiber.groups)
        if (!group.empty()) fail("exits while copies it began are in flight");
    if (!fiber.open.empty()) fail("exits with copies neither committed nor waited for");
    fiber.state = State::Done;
    m.alive--;
    to_scheduler(fiber);
    abort(); // a finished fiber is never resumed
}

// --- the scheduler ---------------------------------------------------------------------------------------------------

// Lets the lanes of the fiber's warp go on, if all that its mask names and that still run have arrived.
bool release_warp(Machine& m, Fiber& fiber) {
    int first = fiber.index & ~31;
    Warp& warp = m.warps[first / 32];
    uint32_t needed = 0;
    for (int i = 0; i < 32 && first + i < m.threads; i++)
        if ((fiber.mask >> i & 1) && m.fibers[first + i].state != State::Done) needed |= 1u << i;
    if ((warp.arrived & needed) != needed) return false;
    for (int i = 0; i < 32; i++) {
        if (!(needed >> i & 1)) continue;
        Fiber& lane = m.fibers[first + i];
        if (lane.waits_at != fiber.waits_at || lane.mask != fiber.mask) {
            m.current = &lane;
            fail("lanes %d and %d wait for each other at different collectives or with different masks", fiber.at.lane, i);
        }
    }
    m.current = &fiber;
    fiber.waits_at(warp, needed);
    m.current = nullptr;
    for (int i = 0; i < 32; i++)
        if (needed >> i & 1) m.fibers[first + i].state = State::Ready;
    warp.arrived &= ~needed;
    return true;
}

// Runs a fiber until it waits again; false when it cannot go on yet.
bool step(Machine& m, Fiber& fiber) {
    if (fiber.state == State::AtWarp && !release_warp(m, fiber)) return false;
    if (fiber.state != State::Ready) return false;
    to_fiber(fiber);
    return true;
}

bool release_block(Machine& m) {
    if (m.alive == 0 || m.at_block != m.alive) return false;
    const Fiber* first = nullptr;
    for (int i = 0; i < m.threads; i++) {
        Fiber& fiber = m.fibers[i];
        if (fiber.state != State::AtBlock) continue;
        if (!first) first = &fiber;
        if (fiber.line != first->line) {
            m.current = &fiber;
            fail("waits at the barrier of line %d, thread %d at that of line %d", fiber.line, first->index, first->line);
        }
        fiber.state = State::Ready;
    }
    m.at_block = 0;
    return true;
}

// As far as one warp can go, or a number of turns of its lanes.
bool run_warp(Machine& m, int warp, bool reverse, unsigned turns) {
    bool progress = false;
    int first = warp * 32, count = std::min(32, m.threads - first);
    for (bool any = true; any && turns > 0; turns--) {
        any = false;
        for (int i = 0; i < count; i++) any |= step(m, m.fibers[first + (reverse ? count - 1 - i : i)]);
        progress |= any;
    }
    return progress;
}

// One round of the schedule; whether anything ran.
bool round(Machine& m) {
    bool progress = false;
    int warps = (m.threads + 31) / 32;
    switch (m.schedule.order) {
    case Order::Shuffled:
        for (int i = m.threads - 1; i > 0; i--) std::swap(m.order[i], m.order[m.next_random() % (i + 1)]);
        [[fallthrough]];
    case Order::Forward:
        for (int i : m.order) progress |= step(m, m.fibers[i]);
        break;
    case Order::Reverse:
        for (int i = m.threads - 1; i >= 0; i--) progress |= step(m, m.fibers[i]);
        break;
    case Order::WarpAhead:
        for (int w = 0; w < warps; w++) progress |= run_warp(m, w, false, ~0u);
        break;
    case Order::WarpAheadReverse:
        for (int w = warps - 1; w >= 0; w--) progress |= run_warp(m, w, true, ~0u);
        break;
    case Order::RandomBursts:
        for (int w = 0; w < warps; w++) progress |= run_warp(m, m.next_random() % warps, m.next_random() & 1, 1 + m.next_random() % 200);
        // The draw may have missed the one warp that can move.
        for (int w = 0; w < warps && !progress; w++) progress |= run_warp(m, w, false, 1);
        break;
    }
    return progress;
}

void check_poison(Machine& m, size_t from, size_t to, const char* what) {
    for (size_t i = from; i < to; i++)
        if (m.arena[i] != POISON) fail("writes to shared memory outside of its array, %zu bytes after %s", i - from, what);
}

void run_block(Machine& m, dim3 grid, dim3 block, dim3 index) {
    memset(m.arena, POISON, m.arena_used);
    m.arena_used = GUARD + (m.dynamic_bytes + 15) / 16 * 16 + GUARD;
    m.static_arrays.clear();
    m.alive = m.threads;
    m.at_block = 0;
    for (auto& warp : m.warps) {
        warp.arrived = 0;
        memset(warp.in, POISON, sizeof warp.in);
        memset(warp.out, POISON, sizeof warp.out);
    }
    for (int i = 0; i < m.threads; i++) {
        Fiber& fiber = m.fibers[i];
        unsigned x = i % block.x, y = i / block.x % block.y, z = i / block.x / block.y;
        fiber.at = Position{grid, block, index, dim3(x, y, z), i % 32};
        fiber.index = i;
        fiber.state = State::Ready;
        fiber.groups.clear();
        fiber.open.clear();
        fiber.stack_pointer = prepare_stack(fiber.stack, fiber_main);
    }
    std::iota(m.order.begin(), m.order.end(), 0);
    while (m.alive) {
        bool progress = round(m);
        progress |= release_block(m);
        if (!progress) {
            for (int i = 0; i < m.threads; i++)
                if (m.fibers[i].state != State::Done) { m.current = &m.fibers[i]; break; }
            fail("deadlock: %d threads wait at a barrier, %d still run; the others wait for lanes that never come",
                 m.at_block, m.alive);
        }
    }
    check_poison(m, 0, GUARD, "the arena's start");
    check_poison(m, GUARD + m.dynamic_bytes, GUARD + m.dynamic_bytes + GUARD, "the end of dynamic shared memory");
    for (const auto& array : m.static_arrays)
        check_poison(m, array.offset + array.bytes, array.offset + array.bytes + GUARD, "the end of a static array");
}

// --- faults ----------------------------------------------------------------------------------------------------------

struct sigaction previous_segv, previous_bus;

void on_fault(int signal, siginfo_t* info, void* context) {
    if (running && running->current) {
        const char* what = signal == SIGSEGV ? "touches memory outside of every buffer" : "bus error";
        fail("%s, at address %p", what, info->si_addr);
    }
    const struct sigaction& previous = signal == SIGSEGV ? previous_segv : previous_bus;
    if (previous.sa_flags & SA_SIGINFO && previous.sa_sigaction) return previous.sa_sigaction(signal, info, context);
    std::signal(signal, SIG_DFL); // returning runs into the fault again
}

void catch_faults() {
    static const bool once = [] {
#ifndef __SANITIZE_ADDRESS__
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
#endif
        return true;
    }();
    (void)once;
}

unsigned char* map_stack() {
    auto* base = static_cast<unsigned char*>(
        mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) abort();
    mprotect(base, PAGE, PROT_NONE);
    return base + PAGE;
}

std::vector<Kernel>& registry() {
    static std::vector<Kernel> kernels;
    return kernels;
}

} // namespace

Registration::Registration(const Kernel& kernel) { registry().push_back(kernel); }

// --- what kernels call -----------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
    Machine& m = *running;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    m.error = std::string(m.kernel->name) + " (sm_" + std::to_string(m.kernel->arch / 10) + ")";
    if (m.current) {
        const Position& at = m.current->at;
        char where[160];
        snprintf(where, sizeof where, ", block (%u, %u, %u), thread (%u, %u, %u)", at.block_index.x, at.block_index.y,
                 at.block_index.z, at.thread.x, at.thread.y, at.thread.z);
        m.error += where;
    }
    m.error += std::string(": ") + text;
    siglongjmp(m.escape, 1);
}

unsigned char* wait_for_warp(uint32_t mask, Collective what, const void* input, size_t bytes) {
    Machine& m = *running;
    Fiber& fiber = *m.current;
    int lane = fiber.at.lane;
    if (!(mask >> lane & 1)) fail("lane %d is not in its own mask %08x", lane, mask);
    Warp& warp = m.warps[fiber.index / 32];
    memcpy(warp.in[lane], input, bytes);
    warp.arrived |= 1u << lane;
    fiber.mask = mask;
    fiber.waits_at = what;
    fiber.state = State::AtWarp;
    to_scheduler(fiber);
    return warp.out[lane];
}

void wait_for_block(int line) {
    Machine& m = *running;
    Fiber& fiber = *m.current;
    fiber.line = line;
    fiber.state = State::AtBlock;
    m.at_block++;
    to_scheduler(fiber);
}

unsigned char* dynamic_shared() { return running->arena + GUARD; }

unsigned char* static_shared(const void* tag, size_t bytes) {
    Machine& m = *running;
    size_t total = bytes;
    for (const auto& array : m.static_arrays) {
        if (array.tag == tag) return m.arena + array.offset;
        total += array.bytes;
    }
    if (total > STATIC_LIMIT) fail("has %zu bytes of static shared memory, %zu are allowed", total, STATIC_LIMIT);
    size_t offset = m.arena_used;
    m.static_arrays.push_back({tag, offset, bytes});
    m.arena_used += (bytes + 15) / 16 * 16 + GUARD;
    size_t limit = shared_limit(m.kernel->arch);
    if (m.dynamic_bytes + total > limit)
        fail("uses %zu bytes of shared memory, this target has %zu", m.dynamic_bytes + total, limit);
    return m.arena + offset;
}

uint32_t shared_address(const void* p) {
    Machine& m = *running;
    auto* byte = static_cast<const unsigned char*>(p);
    if (byte < m.arena || byte >= m.arena + ARENA) fail("takes the shared address of something that is not shared");
    return uint32_t(byte - m.arena);
}

unsigned char* shared_pointer(uint32_t address, size_t bytes) {
    if (address + bytes > ARENA) fail("shared address %x lies outside of shared memory", address);
    return running->arena + address;
}

// The destination is undefined until the copy is waited for, and poisoned to show it.
void copy_issue(void* shared, const void* global, int bytes, int valid) {
    Machine& m = *running;
    shared_address(shared);
    if (reinterpret_cast<uintptr_t>(shared) % bytes) fail("cp.async: shared address is not a multiple of %d", bytes);
    if (reinterpret_cast<uintptr_t>(global) % bytes) fail("cp.async: global address is not a multiple of %d", bytes);
    if (valid < 0 || valid > bytes) fail("cp.async: %d of %d bytes asked for", valid, bytes);
    auto* to = static_cast<unsigned char*>(shared);
    auto* from = static_cast<const unsigned char*>(global);
    if (m.schedule.copies_land_at_issue) {
        memcpy(to, from, valid);
        memset(to + valid, 0, bytes - valid);
    } else {
        memset(to, POISON, bytes);
    }
    m.current->open.push_back({to, from, bytes, valid});
}

void copy_commit() {
    Fiber& fiber = *running->current;
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}

void copy_wait(int groups_left) {
    Machine& m = *running;
    auto& groups = m.current->groups;
    while (int(groups.size()) > groups_left) {
        if (!m.schedule.copies_land_at_issue)
            for (const Copy& copy : groups.front()) {
                memcpy(copy.shared, copy.global, copy.valid);
                memset(copy.shared + copy.valid, 0, copy.bytes - copy.valid);
            }
        groups.erase(groups.begin());
    }
}

} // namespace shim

// --- what Rust calls -------------------------------------------------------------------------------------------------

extern "C" size_t kernels_host_count() { return shim::registry().size(); }

extern "C" const shim::Kernel* kernels_host_kernel(size_t index) { return &shim::registry()[index]; }

// Runs every block of the grid. Null when all went well, else a message that stays valid until this thread's next
// launch.
extern "C" const char* kernels_host_launch(const shim::Kernel* kernel, const unsigned grid[3], const unsigned block[3],
                                           size_t shared_bytes, const void* params, const shim::Schedule* schedule) {
    using namespace shim;
    catch_faults();
    Machine& m = machine;
    m.kernel = kernel;
    m.params = params;
    m.schedule = *schedule;
    m.random = schedule->seed;
    m.current = nullptr;
    m.threads = int(block[0] * block[1] * block[2]);
    m.dynamic_bytes = shared_bytes;
    m.error.clear();
    running = &m;
    if (!m.arena) {
        void* arena = mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (arena == MAP_FAILED) abort();
        m.arena = static_cast<unsigned char*>(arena);
    }
    if (sigsetjmp(m.escape, 0) == 0) {
        if (m.threads < 1 || m.threads > kernel->max_threads)
            fail("launched with %d threads, declared for at most %d", m.threads, kernel->max_threads);
        if (!grid[0] || !grid[1] || !grid[2]) fail("launched with an empty grid");
        if (shared_bytes > shared_limit(kernel->arch))
            fail("launched with %zu bytes of shared memory, this target has %zu", shared_bytes, shared_limit(kernel->arch));
        if (int(m.fibers.size()) < m.threads) m.fibers.resize(m.threads);
        for (int i = 0; i < m.threads; i++)
            if (!m.fibers[i].stack) m.fibers[i].stack = map_stack();
        m.warps.resize((m.threads + 31) / 32);
        m.order.resize(m.threads);
        m.arena_used = ARENA; // all of it is poisoned for the first block, what was used for each later one
        for (unsigned z = 0; z < grid[2]; z++)
            for (unsigned y = 0; y < grid[1]; y++)
                for (unsigned x = 0; x < grid[0]; x++)
                    run_block(m, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), dim3(x, y, z));
    }
    m.current = nullptr;
    running = nullptr;
    here = nullptr;
    return m.error.empty() ? nullptr : m.error.c_str();
}
