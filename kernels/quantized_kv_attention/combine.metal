// One threadgroup a row, one thread a number: the splits of a row weighted by their maxima and sums.
const uint t = thread_position_in_threadgroup.x;
const ulong place = ulong(threadgroup_position_in_grid.x) * SPLITS;
float highest = -INFINITY;
for (uint s = 0; s < SPLITS; s++) {
    highest = metal::max(highest, highests[place + s]);
}
float sum = 0.0f;
float result = 0.0f;
for (uint s = 0; s < SPLITS; s++) {
    const float factor = metal::exp2(highests[place + s] - highest);  // 0 where a split saw nothing: -inf
    sum += sums[place + s] * factor;
    result += parts[(place + s) * D + t] * factor;
}
out[ulong(threadgroup_position_in_grid.x) * D + t] = T(result / sum);
