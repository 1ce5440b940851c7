// CUDA's execution model in threads of the host, so that kernels.cu runs without a GPU: the threads
// of a block are threads that meet at __syncthreads, the blocks of a launch run one after another.
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

struct Index { int x, y; };
static thread_local Index threadIdx, blockIdx;
static std::barrier<> *meeting;
static void __syncthreads() { meeting->arrive_and_wait(); }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned __int128)a * b >> 64;
}
#define __device__
#define __global__
#define __shared__ static
using std::isfinite;

#include "kernels.cu"

// The noise of a slice at a timestep: 4 groups float32 in the order of (C, H, W).
extern "C" void noise(u64 seed, u64 key, long long t, long long groups, float *out)
{
    for (long long group = 0; group < groups; group++) normal4(seed, key, t, group, out + 4 * group);
}

extern "C" void run(const char *name, int columns, int rows, int threads, const Loop *loop)
{
    void (*kernel)(const Loop *) = name[0] == 'e' ? enter : name[0] == 'u' ? update : advance;
    std::barrier<> barrier(threads);
    meeting = &barrier;
    std::vector<std::thread> team;
    for (int me = 0; me < threads; me++)
        team.emplace_back([=, &barrier] {
            threadIdx = {me, 0};
            for (int block = 0; block < columns * rows; block++) {
                blockIdx = {block % columns, block / columns};
                kernel(loop);
                barrier.arrive_and_wait();
            }
        });
    for (auto &thread : team) thread.join();
}
