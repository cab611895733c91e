// Runs a list of calls on several threads. The only file that knows threads; it knows no kernel.
//
// A call's chunks lie in as many regions as there are threads. A thread claims a few in a row in the region of its
// own, so that it reads memory as one long stream, and when that is empty in those of others: nobody waits for a
// thread that the system has not scheduled, only for chunks that were claimed. Whoever counts a call's last chunk
// starts the next call, so no thread is special. One 64-bit word says all of a region: of which call, where it ends,
// which chunk is next. A claim is a compare-and-swap on it, so a thread that slept through a call cannot claim a chunk
// of another.
#include "gramme_cpu.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() asm volatile("yield")
#endif

namespace {

constexpr int64_t SPIN_NS = 200'000;      // after a list of calls: then helpers sleep
constexpr int64_t YIELD_NS = 10'000;      // waiting for a claimed chunk: then let others run
constexpr uint64_t MOST_CHUNKS = 8;       // that are claimed at once
constexpr int64_t LONG_CLAIM_NS = 100'000;  // a prompt's
constexpr int64_t PATIENCE_NS = 6'000'000, LONG_PATIENCE_NS = 20'000'000;  // between looks at interruptions, see Worker
constexpr int ASLEEP = -1;                // in place of a core

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

// generation (24 bits), end (20), next (20)
constexpr uint64_t FIELD = (1 << 20) - 1;
uint64_t word_of(uint64_t generation, uint64_t next, uint64_t end) { return generation << 40 | end << 20 | next; }
uint64_t generation_of(uint64_t w) { return w >> 40; }
uint64_t end_of(uint64_t w) { return w >> 20 & FIELD; }
uint64_t next_of(uint64_t w) { return w & FIELD; }

// What one thread needs: its region of the current call, room to work in, where it runs, and a guess of whether it
// shares its core. A thread that is interrupted while it holds a chunk keeps all others waiting for a time slice, so
// one that was interrupted lately offers its core between chunks, before the system takes it. (An offer that is taken
// counts as an interruption, so it is repeated for as long as somebody wants the core. Beside a process that spins,
// offers every 2, 6 and 20 ms let prefill keep 64, 66 and 68 % of its quiet speed, and decode, whose threads wait for
// each other more often, 62, 65 and 58 %: so it depends on how long what was claimed took.)
// A line of cache that another core has written takes up to 0.5 us to come, as long as a small call: what others
// write, what they read and what nobody else looks at lie in lines of their own.
struct alignas(64) Worker {
    std::atomic<uint64_t> region{0};
    const Call *call = nullptr;  // that the region is of; stands as long as one of its chunks is not counted
    alignas(64) int number;
    char *scratch;
    std::atomic<int> cpu{ASLEEP};
    alignas(64) uint64_t uncounted = 0;  // chunks that it has run
    uint64_t emptied = 0;  // the call of which no region has chunks left
    int64_t claimed_ns = 0, looked_ns = 0;
    long interruptions = 0;
};

struct Pool {
    const Level *level;
    int threads;
    pid_t owner;
    std::vector<std::thread> helpers;
    std::deque<Worker> workers;          // the first is the caller's
    alignas(64) std::atomic<uint64_t> left{0};  // chunks of the current call that are not counted as run
    const Call *calls = nullptr;         // these four are read and written by whoever advances
    int64_t count = 0, index = 0;
    uint64_t generation = 0;
    alignas(64) std::atomic<uint32_t> active{0};  // lists of calls begun; odd while one runs. Helpers sleep on it
    std::atomic<uint32_t> sleepers{0};
    std::atomic<bool> closing{false};

    const Kernel &kernel(const Call &call) const { return level->kernels[call.op]; }

    // Start call `index` or a later one: calls of one chunk are run here, the first of several is published.
    void start(char *scratch) {
        for (; index < count; index++) {
            const Call &call = calls[index];
            const uint64_t chunks = (uint64_t)kernel(call).chunks(call.args, threads);
            if (chunks > 1 && threads > 1) {
                left.store(chunks, std::memory_order_relaxed);
                generation = (generation + 1) & 0xffffff;
                for (Worker &w : workers) {  // the last one's is not empty: before it is stored the call cannot end
                    w.call = &call;
                    w.region.store(word_of(generation, chunks * w.number / threads, chunks * (w.number + 1) / threads),
                                   std::memory_order_release);
                }
                return;
            }
            for (uint64_t c = 0; c < chunks; c++) kernel(call).run(call.args, (int64_t)c, scratch);
        }
        active.fetch_add(1, std::memory_order_release);  // even: all done
    }

    // Run chunks of the current call as long as there are any to claim. Whether there were.
    bool work(Worker &w) {
        const uint64_t call = generation_of(w.region.load(std::memory_order_acquire));
        if (call == w.emptied) return false;  // while a thread waits it looks at nothing that others write
        bool whole = true, any = false;
        for (int i = 0; i < threads; i++) {
            Worker &of = workers[(w.number + i) % threads];
            uint64_t seen;
            while (claim(of, w, seen)) {
                any = true;
                between_chunks(w);
            }
            whole &= generation_of(seen) == call;  // else it was not published yet
        }
        if (whole) w.emptied = call;
        counted(w);
        return any;
    }

    // Run a few chunks of a region, `seen` before. As few are left, fewer are taken, so that all threads end together.
    bool claim(Worker &of, Worker &w, uint64_t &seen) {
        uint64_t count;
        seen = of.region.load(std::memory_order_acquire);
        do {
            const uint64_t share = (end_of(seen) - next_of(seen) + 1) / 2;
            if (!share) return false;
            count = share < MOST_CHUNKS ? share : MOST_CHUNKS;
        } while (!of.region.compare_exchange_weak(seen, seen + count, std::memory_order_acq_rel,
                                                  std::memory_order_acquire));
        const Call &call = *of.call;
        for (uint64_t c = 0; c < count; c++) kernel(call).run(call.args, (int64_t)(next_of(seen) + c), w.scratch);
        w.uncounted += count;
        return true;
    }

    // Who counts a call's last chunk starts the next one.
    void counted(Worker &w) {
        const uint64_t run = w.uncounted;
        w.uncounted = 0;
        if (run && left.fetch_sub(run, std::memory_order_acq_rel) == run) {
            index++;
            start(w.scratch);
        }
    }

    void between_chunks(Worker &w) {
        spread(w);
        const int64_t now = now_ns(), took = now - w.claimed_ns;
        w.claimed_ns = now;
        if (now - w.looked_ns < (took > LONG_CLAIM_NS ? LONG_PATIENCE_NS : PATIENCE_NS)) return;
        w.looked_ns = now;
        rusage r;
        getrusage(RUSAGE_THREAD, &r);
        if (r.ru_nivcsw != w.interruptions) {
            counted(w);
            sched_yield();
        }
        w.interruptions = r.ru_nivcsw;
    }

    // Leave a core on which a worker before this one runs, if there is another: beside a busy process the system may
    // keep two of ours on one core, and as both always have work it sees no reason to part them.
    void spread(Worker &w) {
        const int here = sched_getcpu();
        if (w.cpu.load(std::memory_order_relaxed) != here) w.cpu.store(here, std::memory_order_relaxed);
        bool crowded = false;
        for (Worker &other : workers) {
            if (&other == &w) break;
            crowded |= other.cpu.load(std::memory_order_relaxed) == here;
        }
        cpu_set_t allowed;
        if (!crowded || sched_getaffinity(0, sizeof allowed, &allowed)) return;
        cpu_set_t free = allowed;
        for (Worker &other : workers) {
            const int taken = other.cpu.load(std::memory_order_relaxed);
            if (taken >= 0 && taken < CPU_SETSIZE) CPU_CLR(taken, &free);
        }
        if (!CPU_COUNT(&free) || sched_setaffinity(0, sizeof free, &free)) return;
        sched_setaffinity(0, sizeof allowed, &allowed);  // moved; from here on it may run anywhere again
        w.cpu.store(sched_getcpu(), std::memory_order_relaxed);
    }

    void wake() {
        if (sleepers.load(std::memory_order_seq_cst))
            syscall(SYS_futex, (uint32_t *)&active, FUTEX_WAKE_PRIVATE, 1 << 20, nullptr, nullptr, 0);
    }

    void sleep(uint32_t seen) {
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        if (active.load(std::memory_order_seq_cst) == seen && !closing.load())
            syscall(SYS_futex, (uint32_t *)&active, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
    }

    void help(Worker &w) {
        int64_t idle_since = now_ns();
        while (!closing.load(std::memory_order_relaxed)) {
            const uint32_t seen = active.load(std::memory_order_acquire);
            if (work(w)) {
                idle_since = 0;
                continue;
            }
            PAUSE();
            if (!idle_since) idle_since = now_ns();
            const int64_t idle_ns = now_ns() - idle_since;
            if (!(seen & 1) && idle_ns > SPIN_NS) {
                w.cpu.store(ASLEEP, std::memory_order_relaxed);
                sleep(seen);
                w.looked_ns = idle_since = 0;  // it may have woken on a core that is shared: it looks at once
            } else if (idle_ns > YIELD_NS) {
                sched_yield();
            }
        }
    }

    void run(const Call *list, int64_t n) {
        calls = list;
        count = n;
        index = 0;
        active.fetch_add(1, std::memory_order_seq_cst);
        wake();
        Worker &w = workers.front();
        start(w.scratch);
        int64_t waiting_since = 0;
        while (active.load(std::memory_order_acquire) & 1) {
            if (work(w)) {
                waiting_since = 0;
                continue;
            }
            PAUSE();
            if (!waiting_since) waiting_since = now_ns();
            else if (now_ns() - waiting_since > YIELD_NS) sched_yield();
        }
        w.cpu.store(ASLEEP, std::memory_order_relaxed);
    }

    void open() {
        owner = getpid();
        for (int i = 1; i < threads; i++) helpers.emplace_back([this, i] { help(workers[i]); });
    }

    void close() {
        closing = true;
        active.fetch_add(2);
        syscall(SYS_futex, (uint32_t *)&active, FUTEX_WAKE_PRIVATE, 1 << 20, nullptr, nullptr, 0);
        for (auto &h : helpers) h.join();
    }
};

}  // namespace

extern "C" {

void *gramme_pool_new(const Level *level, int threads) {
    Pool *pool = new (std::nothrow) Pool;
    if (!pool) return nullptr;
    pool->level = level;
    pool->threads = threads < 1 ? 1 : threads;
    for (int i = 0; i < pool->threads; i++) {
        Worker &w = pool->workers.emplace_back();
        w.number = i;
        w.scratch = (char *)aligned_alloc(64, SCRATCH_BYTES);
        if (w.scratch) memset(w.scratch, 0, SCRATCH_BYTES);  // until then it is promised only
    }
    pool->open();
    return pool;
}

// One list of calls, from beginning to end. One thread at a time may call this. After a fork the child has no helpers:
// it runs alone.
void gramme_run(void *handle, const Call *calls, int64_t count) {
    Pool *pool = (Pool *)handle;
    if (pool->owner != getpid()) {
        for (int64_t i = 0; i < count; i++) {
            const Kernel &k = pool->level->kernels[calls[i].op];
            int64_t chunks = k.chunks(calls[i].args, 1);
            for (int64_t c = 0; c < chunks; c++) k.run(calls[i].args, c, pool->workers[0].scratch);
        }
        return;
    }
    pool->run(calls, count);
}

void gramme_pool_free(void *handle) {
    Pool *pool = (Pool *)handle;
    if (pool->owner != getpid()) return;  // the helpers are the parent's
    pool->close();
    for (Worker &w : pool->workers) free(w.scratch);
    delete pool;
}
}
