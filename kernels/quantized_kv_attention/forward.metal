// One threadgroup of 8 simdgroups: up to ROWS queries of one key head, over one split of the positions they can see.
// A simdgroup takes every eighth position, a lane D / 32 numbers of it, which all rows share; a running maximum and sum a
// row (online softmax, arXiv 1805.02867), in base 2. With one split the result is whole; else `combine` makes it so.
// sizes: capacity, window, queries, query heads to a key head, blocks of rows to a key head
constexpr uint PER = D / 32;
constexpr uint VALUES = 32 / BITS;  // numbers in a word
constexpr uint MASK = (1u << BITS) - 1;
threadgroup float outs[8 * D];
const uint lane = thread_index_in_simdgroup;
threadgroup float maxima[8];
const uint group = simdgroup_index_in_threadgroup;
threadgroup float totals[8];
const uint split = threadgroup_position_in_grid.x;
const int capacity = sizes[0];
const int window = sizes[1];
const int queries = sizes[2];
const uint rows = uint(sizes[3] * queries);
const uint head = threadgroup_position_in_grid.y / uint(sizes[4]);
const uint first = threadgroup_position_in_grid.y % uint(sizes[4]) * ROWS;
const ulong heads = ulong(threadgroup_position_in_grid.z) * (threadgroups_per_grid.y / uint(sizes[4])) + head;
const int newest = position[threadgroup_position_in_grid.z];

float query[ROWS][PER];
float out[ROWS][PER];
float maximum[ROWS];
float total[ROWS];
int at[ROWS];
for (uint r = 0; r < ROWS; r++) {
    const uint row = metal::min(first + r, rows - 1);
    at[r] = newest - queries + 1 + int(row) % queries;
    maximum[r] = -INFINITY;
    total[r] = 0.0f;
    for (uint i = 0; i < PER; i++) {
        query[r][i] = float(q[(heads * rows + row) * D + lane * PER + i]) * scale[0] * M_LOG2E_F;
        out[r][i] = 0.0f;
    }
}

const int low = metal::max(0, metal::max(newest - capacity, newest - queries + 1 - window) + 1);
const int share = (newest - low) / SPLITS + 1;
const int begin = low + int(split) * share;
const int end = metal::min(newest + 1, begin + share);
for (int p = begin + int(group); p < end; p += 8) {
    const ulong slot = heads * uint(capacity) + uint(p % capacity);
    float key[PER];
    float value[PER];
    for (uint i = 0; i < PER; i++) {
        const uint e = lane * PER + i;
        const ulong word = slot * (D / VALUES) + e / VALUES;
        const ulong part = slot * (D / GROUP) + e / GROUP;
        const uint shift = e % VALUES * BITS;
        key[i] = float(k_scales[part]) * float((k_words[word] >> shift) & MASK) + float(k_biases[part]);
        value[i] = float(v_scales[part]) * float((v_words[word] >> shift) & MASK) + float(v_biases[part]);
    }
    for (uint r = 0; r < ROWS; r++) {
        if (p > at[r] || at[r] - p >= window) {
            continue;
        }
        float score = 0.0f;
        for (uint i = 0; i < PER; i++) {
            score += query[r][i] * key[i];
        }
        score = metal::simd_sum(score);
        const float higher = metal::max(maximum[r], score);
        const float keep = metal::exp2(maximum[r] - higher);
        const float weight = metal::exp2(score - higher);
        maximum[r] = higher;
        total[r] = total[r] * keep + weight;
        for (uint i = 0; i < PER; i++) {
            out[r][i] = out[r][i] * keep + weight * value[i];
        }
    }
}

const uint t = thread_index_in_threadgroup;
for (uint r = 0; r < ROWS; r++) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the row before has been read
    for (uint i = 0; i < PER; i++) {
        outs[group * D + lane * PER + i] = out[r][i];
    }
    if (lane == 0) {
        maxima[group] = maximum[r];
        totals[group] = total[r];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (t < D && first + r < rows) {
        float highest = -INFINITY;
        for (uint g = 0; g < 8; g++) {
            highest = metal::max(highest, maxima[g]);
        }
        float sum = 0.0f;
        float result = 0.0f;
        for (uint g = 0; g < 8; g++) {
            const float factor = maxima[g] == -INFINITY ? 0.0f : metal::exp2(maxima[g] - highest);
            sum += totals[g] * factor;
            result += outs[g * D + t] * factor;
        }
        const ulong place = (heads * rows + first + r) * SPLITS + split;
        parts[place * D + t] = O(SPLITS == 1 ? result / sum : result);
        if (t == 0) {
            highests[place] = highest;
            sums[place] = sum;
        }
    }
}
