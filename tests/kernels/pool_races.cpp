// The thread pool under ThreadSanitizer: `make sanitize` compiles this with threads.cpp and runs it.
//
// Lists of calls whose chunks each read all that the call before wrote, in plain integers, and add to a place of their
// own: a chunk that runs twice or not at all gives a wrong sum, an order that is not kept is a race. With three and four
// threads there are more than cores, so threads are interrupted anywhere.
#include "gramme_cpu.h"

#include <unistd.h>

#include <cstdio>
#include <random>
#include <vector>

extern "C" {
void *gramme_pool_new(const Level *level, int threads);
void gramme_run(void *pool, const Call *calls, int64_t count);
void gramme_pool_free(void *pool);
}

namespace {

constexpr int LISTS = 20'000, MOST_CALLS = 12, MOST_CHUNKS = 40;

int64_t chunks(const Args *a, int) { return a->n[0]; }

int sum(const int *values, int64_t count) {
    int total = 1;
    for (int64_t i = 0; i < count; i++) total += values[i] & 0xffff;
    return total;
}

void add(const Args *a, int64_t chunk, char *scratch) {
    scratch[0]++;
    ((int *)a->p[1])[chunk] += sum((const int *)a->p[0], a->n[1]);
}

// Whether a random list of calls left what it should.
bool right(void *pool, std::mt19937 &random) {
    const size_t count = 1 + random() % MOST_CALLS;
    std::vector<std::vector<int>> values(1, {1, 2});
    for (size_t i = 0; i < count; i++) values.emplace_back(random() % 4 ? random() % MOST_CHUNKS : 1);
    std::vector<Args> args(count);
    std::vector<Call> calls(count);
    for (size_t i = 0; i < count; i++) {
        args[i].p[0] = values[i].data();
        args[i].p[1] = values[i + 1].data();
        args[i].n[0] = (int64_t)values[i + 1].size();
        args[i].n[1] = (int64_t)values[i].size();
        calls[i] = {OP_MATMUL, &args[i]};
    }
    gramme_run(pool, calls.data(), (int64_t)count);
    for (size_t i = 0; i < count; i++)
        for (int value : values[i + 1])
            if (value != sum(values[i].data(), (int64_t)values[i].size())) return false;
    return true;
}

}  // namespace

int main() {
    static Level level = {"sums", {}};
    level.kernels[OP_MATMUL] = {chunks, add};
    std::mt19937 random(1);
    for (int threads = 1; threads <= 4; threads++) {
        void *pool = gramme_pool_new(&level, threads);
        for (int i = 0; i < LISTS; i++) {
            if (!right(pool, random)) {
                std::printf("%d threads: list %d is wrong\n", threads, i);
                return 1;
            }
            if (i % 50 == 0) usleep(300);  // helpers fall asleep now and then
        }
        gramme_pool_free(pool);
        std::printf("%d threads: %d lists\n", threads, LISTS);
    }
}
