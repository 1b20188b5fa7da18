// One threadgroup adds one row to the residual stream and normalises the sum: LayerNorm if CENTERED, else RMSNorm. Each
// thread keeps to the elements t, t + threads, …, so it may read back what it wrote.
threadgroup float sums[32];
const uint t = thread_position_in_threadgroup.x;
threadgroup float squares[32];
const uint threads = threads_per_threadgroup.x;
const uint lane = thread_index_in_simdgroup;
const uint group = simdgroup_index_in_threadgroup;
const uint groups = threads / 32;
const ulong begin = ulong(threadgroup_position_in_grid.x) * C;

float sum = 0.0f;
for (uint c = t; c < C; c += threads) {
    const T value = T(float(x[begin + c]) + float(change[begin + c]));
    added[begin + c] = value;
    sum += float(value);
}
float mean = 0.0f;
if (CENTERED) {
    sum = metal::simd_sum(sum);
    if (lane == 0) {
        sums[group] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    mean = metal::simd_sum(lane < groups ? sums[lane] : 0.0f) / C;
}
float square = 0.0f;
for (uint c = t; c < C; c += threads) {
    const float value = float(added[begin + c]) - mean;
    square += value * value;
}
square = metal::simd_sum(square);
if (lane == 0) {
    squares[group] = square;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
const float scale = metal::rsqrt(metal::simd_sum(lane < groups ? squares[lane] : 0.0f) / C + eps[0]);
for (uint c = t; c < C; c += threads) {
    const float value = (float(added[begin + c]) - mean) * scale * float(weight[c]);
    normed[begin + c] = T(BIASED ? value + float(bias[c]) : value);
}
