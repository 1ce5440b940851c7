// One step of the forward process for all slots: what anofpdm/runtime/backends/cpu/numpy_loop.py and
// anofpdm/runtime/method/ compute in NumPy, in the same order of operations and the same precision.
// Compile without contracting multiply and add: then predictions and maps are the same to the last
// bit, but for what log, sin and cos make of the noise's last bit.
//
// A step is  enter -> network -> update -> advance.  enter and update have one block a modality and
// slot, advance has one thread a slot. Slots whose slice has left do nothing. THREADS, a power of
// two, is the size of a block; LOOP_BYTES is the caller's sizeof(Loop).

typedef unsigned long long u64;

struct Slot {
    u64 key;       // of the slice: what its noise depends on
    int visited;   // timesteps so far
    int below;     // successive steps on which M_t was far below its maximum
    int active;    // whether there is a slice that has not left
    int broken;    // whether a prediction was infinite or undefined
};

// Everything that the kernels work on: the fields of LOOP in layout.py, in the same order.
struct Loop {
    int channels, pixels, scored, steps;   // C, H * W, K modalities that count, n timesteps
    int ddpm, clip;
    int last;       // whether the map is the one at t_e, not the mean up to it (eq. 20)
    int gradient;   // whether it is made of (HGP - UGP)^2 / norm
    int patience;   // 0: no early stop
    float w, one_plus_w;
    double drop;
    u64 seed;
    const int *place;                          // (C,) position among the scored, or -1
    const long long *timesteps;                // (n,) 1-based
    const float *signal, *noise, *norm;        // (n,) sqrt(abar), sqrt(1 - abar), of gradient maps
    float *x0, *x_t;                           // (S, C, H * W)
    long long *t;                              // (S,) 0-based: what the network is fed
    const float *eps_healthy, *eps_null;       // (S, C, H * W): what it predicts
    float *sum, *H;                            // (S, K, H * W)
    double *best;                              // (S, K) largest M_t so far
    Slot *slots;                               // (S,)
    double *reports;                           // (S, 3 K + 1): M_t, MSE_h, MSE_0, and what happened
};

static_assert(sizeof(Loop) == LOOP_BYTES, "struct Loop differs from LOOP in layout.py");

enum { IDLE = 0, STEPPED = 1, LEFT = 2, BROKEN = 3 };   // see layout.py

// ---- noise: Philox 4x64-10 and Box-Muller, see anofpdm/runtime/method/noise.py

__device__ inline void philox(u64 counter[4], u64 key0, u64 key1)
{
    for (int round = 0; round < 10; round++) {
        u64 high0 = __umul64hi(0xD2E7470EE14C6C93ull, counter[0]);
        u64 low0 = 0xD2E7470EE14C6C93ull * counter[0];
        u64 high1 = __umul64hi(0xCA5A826395121157ull, counter[2]);
        u64 low1 = 0xCA5A826395121157ull * counter[2];
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
}

__device__ inline double uniform(u64 bits) { return ((double)(bits >> 11) + 0.5) * 0x1p-53; }

// Four neighbours of a slice's noise, 4 group ... 4 group + 3 in the order of (C, H, W).
__device__ inline void normal4(u64 seed, u64 key, long long t, u64 group, float out[4])
{
    u64 counter[4] = {group + 1, 0, 0, (u64)t};
    philox(counter, seed, key);
    for (int pair = 0; pair < 2; pair++) {
        double radius = sqrt(-2.0 * log(uniform(counter[2 * pair])));
        double angle = 6.283185307179586 * uniform(counter[2 * pair + 1]);
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

// ---- the first half of a step: where each slice stands when the network sees it

extern "C" __global__ void enter(const Loop *loop)
{
    const int c = blockIdx.x, s = blockIdx.y;
    const Slot slot = loop->slots[s];
    if (!slot.active) return;
    const int i = slot.visited;
    if (c == 0 && threadIdx.x == 0) loop->t[s] = loop->timesteps[i] - 1;
    const int k = loop->place[c];
    if (i == 0 && k >= 0) {
        const long long map = ((long long)s * loop->scored + k) * loop->pixels;
        for (int p = threadIdx.x; p < loop->pixels; p += THREADS)
            loop->sum[map + p] = loop->H[map + p] = 0;
        if (threadIdx.x == 0) loop->best[s * loop->scored + k] = -1e300;
    }
    if (i > 0 && !loop->ddpm) return;
    const float *x0 = loop->x0 + (long long)s * loop->channels * loop->pixels;
    float *x_t = loop->x_t + (long long)s * loop->channels * loop->pixels;
    const long long first = (long long)c * loop->pixels, end = first + loop->pixels;
    for (long long group = first / 4 + threadIdx.x; 4 * group < end; group += THREADS) {
        float noise[4];
        normal4(loop->seed, slot.key, loop->timesteps[i], group, noise);
        for (int j = 0; j < 4; j++) {
            const long long e = 4 * group + j;
            if (e >= first && e < end)
                x_t[e] = loop->signal[i] * x0[e] + loop->noise[i] * noise[j];           // eq. 2
        }
    }
}

// ---- the second half: the two predictions, and everything that is made of them

__device__ inline float clean(const Loop *loop, int i, float x_t, float eps)
{
    const float x = (x_t - loop->noise[i] * eps) / loop->signal[i];                     // eqs. 7, 10
    if (!loop->clip) return x;
    return x < -1 ? -1 : x > 1 ? 1 : x;
}

__device__ inline float guided(const Loop *loop, float eps_healthy, float eps_null)
{
    return loop->one_plus_w * eps_healthy - loop->w * eps_null;                         // eq. 6
}

__device__ inline float sub_map(const Loop *loop, int i, float HGP, float UGP, float x0)
{
    const float d = loop->gradient ? HGP - UGP : HGP - x0;
    return loop->gradient ? d * d / loop->norm[i] : d * d;                              // app. D, 19
}

extern "C" __global__ void update(const Loop *loop)
{
    __shared__ double partial[3][THREADS];
    __shared__ int higher;
    const int c = blockIdx.x, s = blockIdx.y, me = threadIdx.x, P = loop->pixels;
    const Slot slot = loop->slots[s];
    if (!slot.active) return;
    const int i = slot.visited, k = loop->place[c], K = loop->scored;
    const long long first = ((long long)s * loop->channels + c) * P;
    const long long map = ((long long)s * K + k) * P;   // not used where k < 0
    const float *x0 = loop->x0 + first, *eps_healthy = loop->eps_healthy + first;
    const float *eps_null = loop->eps_null + first;
    float *x_t = loop->x_t + first;

    double sums[3] = {0, 0, 0};
    for (int p = me; p < P; p += THREADS) {
        const float UGP = clean(loop, i, x_t[p], eps_null[p]);
        const float HGP = clean(loop, i, x_t[p], guided(loop, eps_healthy[p], eps_null[p]));
        const float divergence = HGP - UGP, residual = HGP - x0[p], unguided = UGP - x0[p];
        sums[0] += (double)(divergence * divergence);                                 // eq. 12
        sums[1] += (double)(residual * residual);                                     // eq. 14
        sums[2] += (double)(unguided * unguided);                                     // eq. 16
        if (!isfinite(eps_healthy[p]) || !isfinite(eps_null[p])) loop->slots[s].broken = 1;
        if (k < 0) continue;
        loop->sum[map + p] += sub_map(loop, i, HGP, UGP, x0[p]);
    }

    for (int q = 0; q < 3; q++) partial[q][me] = sums[q];
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (me < half)
            for (int q = 0; q < 3; q++) partial[q][me] += partial[q][me + half];
    }
    if (me == 0) {
        higher = 0;
        if (k >= 0) {
            double *report = loop->reports + (long long)s * (3 * K + 1);
            double *best = loop->best + (long long)s * K + k;
            for (int q = 0; q < 3; q++) report[q * K + k] = partial[q][0] / P;
            higher = report[k] > *best;
            if (higher) *best = report[k];                                            // eq. 21
        }
    }
    __syncthreads();

    const float count = (float)(i + 1);
    const int moves = !loop->ddpm && i + 1 < loop->steps;
    for (int p = me; p < P; p += THREADS) {
        const float UGP = clean(loop, i, x_t[p], eps_null[p]);
        if (higher && loop->last) {
            const float HGP = clean(loop, i, x_t[p], guided(loop, eps_healthy[p], eps_null[p]));
            loop->H[map + p] = sub_map(loop, i, HGP, UGP, x0[p]);
        } else if (higher)
            loop->H[map + p] = loop->sum[map + p] / count;                              // eq. 20
        if (moves) {                                                                  // eq. 4
            const float direction = (x_t[p] - loop->signal[i] * UGP) / loop->noise[i];
            x_t[p] = loop->signal[i + 1] * UGP + loop->noise[i + 1] * direction;
        }
    }
}

// ---- the end of a step: who leaves

extern "C" __global__ void advance(const Loop *loop)
{
    const int s = blockIdx.y, K = loop->scored;
    if (threadIdx.x > 0) return;
    Slot *slot = loop->slots + s;
    double *report = loop->reports + (long long)s * (3 * K + 1);
    report[3 * K] = IDLE;
    if (!slot->active) return;
    int below = 1;
    for (int k = 0; k < K; k++)
        if (!(report[k] < loop->drop * loop->best[(long long)s * K + k])) below = 0;
    slot->below = below ? slot->below + 1 : 0;
    slot->visited += 1;
    const int certain = loop->patience > 0 && slot->below >= loop->patience;
    slot->active = !(certain || slot->visited == loop->steps);
    report[3 * K] = slot->broken ? BROKEN : slot->active ? STEPPED : LEFT;
}
