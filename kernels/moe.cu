// A mixture of experts, but for the multiplies: which experts a row gets (route), which rows an expert gets (expert_lists),
// and what becomes of their outputs (sum_experts). See RouteParams, ExpertListsParams, SumExpertsParams.
//
// No atomics: whatever a row is given depends on that row alone, and every list has one possible order.
#include "rank.cuh"

// --- naive twins -----------------------------------------------------------------------------------------------------

struct NaiveRow {
    const RouteParams& p;
    const float* logits;
    float largest, total;

    __device__ NaiveRow(const RouteParams& p, int row) : p(p), logits(p.logits + row * p.logits_stride) {
        largest = -INFINITY, total = 0;
        for (int e = 0; e < p.experts; e++) largest = fmaxf(largest, logits[e]);
        for (int e = 0; e < p.experts; e++) total += expf(logits[e] - largest);
    }
    __device__ float score(int e) const {
        return p.scores == SCORES_SIGMOID ? 1 / (1 + expf(-logits[e])) : expf(logits[e] - largest) / total;
    }
    __device__ float choice(int e) const {
        float choice = score(e) + vector_at(p.correction, e, 0);
        return isnan(choice) ? -INFINITY : choice;
    }
    __device__ float group(int g) const {
        int size = p.experts / p.groups, first = g * size;
        for (int e = first; e < (g + 1) * size; e++)
            if (choice(e) > choice(first)) first = e;
        if (p.group_best == 1) return choice(first);
        int second = -1;
        for (int e = g * size; e < (g + 1) * size; e++)
            if (e != first && (second < 0 || choice(e) > choice(second))) second = e;
        return choice(first) + choice(second);
    }
};

KERNEL(naive_route, RouteParams, 32) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= p.rows) return;
    NaiveRow naive(p, row);
    int* ids = p.ids + (long long)row * p.top_k;
    float* weights = p.weights + (long long)row * p.top_k;
    uint32_t open = 0;
    for (int n = 0; n < p.top_groups; n++) {
        int best = -1;
        for (int g = 0; g < p.groups; g++)
            if (!(open >> g & 1) && (best < 0 || naive.group(g) > naive.group(best))) best = g;
        open |= 1u << best;
    }
    float sum = 0;
    for (int n = 0; n < p.top_k; n++) {
        int best = -1;
        for (int e = 0; e < p.experts; e++) {
            bool free = open >> (e / (p.experts / p.groups)) & 1;
            for (int i = 0; i < n; i++) free = free && ids[i] != e;
            if (free && (best < 0 || naive.choice(e) > naive.choice(best))) best = e;
        }
        int at = n;
        for (; at > 0 && ids[at - 1] > best; at--) ids[at] = ids[at - 1];
        ids[at] = best;
        sum += naive.score(best);
    }
    for (int n = 0; n < p.top_k; n++)
        weights[n] = naive.score(ids[n]) / (p.renormalise ? sum + 1e-20f : 1) * p.scale;
}

KERNEL(naive_expert_lists, ExpertListsParams, 1) {
    int place = 0;
    for (int e = 0; e < p.experts; e++) {
        p.bounds[e] = place;
        for (int i = 0; i < p.rows * p.top_k; i++) {
            if (p.ids[i] != e) continue;
            p.row_ids[place] = i / p.top_k;
            p.row_weights[place] = p.weights[i];
            p.places[i] = place++;
        }
    }
    p.bounds[p.experts] = place;
}

KERNEL(naive_sum_experts, SumExpertsParams, 128) {
    int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= p.dim) return;
    float sum = p.add ? p.add[row * p.out_stride + i] : 0;
    for (int n = row * p.top_k; n < (row + 1) * p.top_k; n++)
        if (p.ids[n] >= p.first_expert && p.ids[n] < p.end_expert)
            sum += (p.weights ? p.weights[n] : 1) * p.y[p.places[n] * p.y_stride + i];
    p.out[row * p.out_stride + i] = sum;
}

// --- route: a row a warp ---------------------------------------------------------------------------------------------
// Lane l has the experts l, l + 32, …, of which no other lane reads anything: shared memory is only where a lane can
// index what it has.

constexpr int ROUTE_WARPS = 4;

// The best rank below `limit` among the experts from `first` to `end`, over all lanes.
__device__ __forceinline__ Rank best_below(const Rank* ranks, int first, int end, Rank limit) {
    Rank best = 0;
    for (int e = first + (threadIdx.x - first) % 32; within(e, end); e += 32)
        if (ranks[e] < limit && ranks[e] > best) best = ranks[e];
    return warp_best(best);
}

KERNEL(route, RouteParams, ROUTE_WARPS * 32) {
    DYN_SMEM(Rank, all_ranks); // [warps, experts], then the scores [warps, experts]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    long long row = blockIdx.x * ROUTE_WARPS + warp;
    if (!within(row, p.rows)) return;
    Rank* ranks = all_ranks + warp * p.experts;
    float* scores = reinterpret_cast<float*>(all_ranks + ROUTE_WARPS * p.experts) + warp * p.experts;
    const float* logits = p.logits + row * p.logits_stride;

    float largest = -INFINITY, total = 0;
    if (p.scores == SCORES_SOFTMAX) {
        for (int e = lane; within(e, p.experts); e += 32) largest = fmaxf(largest, logits[e]);
        largest = warp_max(largest);
        for (int e = lane; within(e, p.experts); e += 32) total += expf(logits[e] - largest);
        total = warp_sum(total);
    }
    for (int e = lane; within(e, p.experts); e += 32) {
        scores[e] = p.scores == SCORES_SOFTMAX ? expf(logits[e] - largest) / total : 1 / (1 + expf(-logits[e]));
        ranks[e] = rank_of(scores[e] + vector_at(p.correction, e, 0), e);
    }

    if (p.groups > 1) {
        int size = p.experts / p.groups;
        Rank mine = 0; // of group `lane`
        for (int g = 0; g < p.groups; g++) {
            Rank best = best_below(ranks, g * size, (g + 1) * size, NO_LIMIT);
            float value = rank_value(best);
            if (p.group_best == 2) value += rank_value(best_below(ranks, g * size, (g + 1) * size, best));
            if (lane == g) mine = rank_of(value, g);
        }
        Rank last = NO_LIMIT;
        for (int n = 0; n < p.top_groups; n++) last = warp_best(mine < last ? mine : 0);
        uint32_t open = __ballot_sync(ALL_LANES, mine >= last);
        for (int e = lane; within(e, p.experts); e += 32)
            if (!(open >> (e / size) & 1)) ranks[e] = 0;
    }

    Rank last = NO_LIMIT; // who is taken has this rank or a better one
    for (int n = 0; n < p.top_k; n++) last = best_below(ranks, 0, p.experts, last);
    float sum = 0;
    for (int e = lane; within(e, p.experts); e += 32)
        if (ranks[e] >= last) sum += scores[e];
    sum = warp_sum(sum);

    long long at = row * p.top_k;
    for (int first = 0; first < p.experts; first += 32) {
        int e = first + lane;
        bool taken = within(e, p.experts) && ranks[e] >= last;
        uint32_t all = __ballot_sync(ALL_LANES, taken);
        if (taken) {
            long long place = at + __popc(all & ((1u << lane) - 1));
            p.ids[place] = e;
            p.weights[place] = scores[e] / (p.renormalise ? sum + 1e-20f : 1) * p.scale;
        }
        at += __popc(all);
    }
}

// --- expert_lists: an expert a block ---------------------------------------------------------------------------------

constexpr int LIST_WARPS = 8;

__device__ __forceinline__ int warp_count(int v) {
    for (int bit = 16; bit > 0; bit /= 2) v += __shfl_xor_sync(ALL_LANES, v, bit);
    return v;
}

KERNEL(expert_lists, ExpertListsParams, LIST_WARPS * 32) {
    SHARED(int, below, [LIST_WARPS]); // pairs of lower experts, in the share of each warp
    SHARED(int, equal, [LIST_WARPS]); // of this one
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = blockIdx.x;
    int pairs = p.rows * p.top_k, share = ceil_div(pairs, LIST_WARPS * 32) * 32;
    int begin = warp * share, end = min(begin + share, pairs);

    int lower = 0, own = 0;
    for (int i = begin + lane; within(i, end); i += 32) {
        int id = p.ids[i];
        lower += id < expert;
        own += id == expert;
    }
    lower = warp_count(lower);
    own = warp_count(own);
    if (lane == 0) {
        below[warp] = lower;
        equal[warp] = own;
    }
    __syncthreads();
    int start = 0, before = 0, count = 0; // before: those of this expert in the shares of earlier warps
    for (int w = 0; w < LIST_WARPS; w++) {
        start += below[w];
        count += equal[w];
        if (w < warp) before += equal[w];
    }
    if (threadIdx.x == 0) {
        p.bounds[expert] = start;
        if (expert == p.experts - 1) p.bounds[p.experts] = start + count;
    }

    int at = start + before;
    for (int first = begin; first < end; first += 32) {
        int i = first + lane;
        bool mine = within(i, end) && p.ids[i] == expert;
        uint32_t all = __ballot_sync(ALL_LANES, mine);
        if (mine) {
            int place = at + __popc(all & ((1u << lane) - 1));
            p.row_ids[place] = i / p.top_k;
            p.row_weights[place] = p.weights[i];
            p.places[i] = place;
        }
        at += __popc(all);
    }
}

// --- sum_experts: a piece of a row a block ---------------------------------------------------------------------------

KERNEL(sum_experts, SumExpertsParams, 256) {
    long long row = blockIdx.x;
    int i = (blockIdx.y * 256 + threadIdx.x) * 4;
    bool aligned = rows_aligned(p.y, p.y_stride);
    bool out_aligned = rows_aligned(p.out, p.out_stride) && rows_aligned(p.add, 0);
    float4 sum = make_float4(0, 0, 0, 0);
    if (p.add) sum = load4(p.add + row * p.out_stride, i, p.dim, out_aligned);
    for (long long n = row * p.top_k; n < (row + 1) * p.top_k; n++) {
        int expert = p.ids[n];
        if (expert < p.first_expert || expert >= p.end_expert) continue;
        float weight = p.weights ? p.weights[n] : 1;
        float4 y = load4(p.y + p.places[n] * p.y_stride, i, p.dim, aligned);
        sum.x = fmaf(weight, y.x, sum.x);
        sum.y = fmaf(weight, y.y, sum.y);
        sum.z = fmaf(weight, y.z, sum.z);
        sum.w = fmaf(weight, y.w, sum.w);
    }
    store4(p.out + row * p.out_stride, i, p.dim, out_aligned, sum);
}
