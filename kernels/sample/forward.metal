// One threadgroup chooses one row's token. Each thread keeps to the elements t, t + threads, … of its row throughout, so
// `keys`, which it writes and reads back, needs no barrier. Filters become one threshold `low` on the keys, found by
// splitting the range of integers in eight: a threshold stays if less than top_p of the mass and fewer than top_k
// elements lie above it, and the lowest that stays is the one.
// settings: 1 / temperature (0: greedy), top_p, log(min_p), repetition, presence, frequency
// counts: V, top_k, length of the history
threadgroup float float_room[8 * 32];
const uint t = thread_position_in_threadgroup.x;
threadgroup uint uint_room[8 * 32];
const uint row = threadgroup_position_in_grid.x;
const uint lane = thread_index_in_simdgroup;
const uint group = simdgroup_index_in_threadgroup;
const uint threads = threads_per_threadgroup.x;
const uint groups = threads / 32;
const uint V = counts[0];
const uint top_k = counts[1];
const uint length = counts[2];
const float warmth = settings[0];
const float top_p = settings[1];
const ulong begin = ulong(row) * V;  // MLX passes short inputs as constants: no pointer into `logits`
device uint* mine = keys + begin;

for (uint v = t; v < V; v += threads) {
    mine[v] = ordered(float(logits[begin + v]));
}
for (uint h = 0; h < length; h++) {
    const int id = history[row * length + h];
    if (id < 0 || uint(id) >= V || uint(id) % threads != t) {
        continue;
    }
    bool first = true;
    for (uint before = 0; before < h; before++) {
        first = first && history[row * length + before] != id;
    }
    if (!first) {
        continue;
    }
    float value = restored(mine[id]);
    value = value < 0.0f ? value * settings[3] : value / settings[3];
    value -= settings[4];
    for (uint again = h; again < length; again++) {
        value -= history[row * length + again] == id ? settings[5] : 0.0f;
    }
    mine[id] = ordered(value);
}

// The largest and, relative to it, the sum of the exponentials; equal infinities count as 1.
float top = -INFINITY;
float sum = 0.0f;
for (uint v = t; v < V; v += threads) {
    const float value = restored(mine[v]);
    if (value > top) {
        sum = sum * metal::exp(top - value) + 1.0f;
        top = value;
    } else {
        sum += value == top ? 1.0f : metal::exp(value - top);
    }
}
const float own = top;
top = group_max(own, float_room, lane, group, groups);
sum = group_sum(own == top ? sum : sum * metal::exp(own - top), float_room, lane, group, groups);

uint high = ordered(top);
uint low = ordered(top + settings[2]);
uint limit = V;  // of the elements equal to the threshold, those before this index stay
if (warmth == 0.0f) {
    low = high;
} else if (top_p < 1.0f || top_k < V) {
    uint from_low = V;  // elements not below `low`, or more
    uint over_high = 0;  // elements above `high`
    while (low < high && from_low - over_high > 1) {
        const uint span = high - low;
        uint bound[8];
        uint count[8];
        float mass[8];
        for (uint j = 0; j < 8; j++) {
            bound[j] = low + (span >> 3) * j + (((span & 7) * j) >> 3);
            count[j] = 0;
            mass[j] = 0.0f;
        }
        for (uint v = t; v < V; v += threads) {
            const uint place = mine[v];
            if (place > low) {
                const float value = restored(place);
                const float weight = value == top ? 1.0f : metal::exp(value - top);
                for (uint j = 0; j < 8; j++) {
                    count[j] += place > bound[j] ? 1 : 0;
                    mass[j] += place > bound[j] ? weight : 0.0f;
                }
            }
        }
        group_sums<uint, 8>(count, uint_room, lane, group, groups);
        group_sums<float, 8>(mass, float_room, lane, group, groups);
        uint raised = low;
        for (uint j = 0; j < 8; j++) {
            if (count[j] < top_k && (top_p >= 1.0f || mass[j] < top_p * sum)) {
                high = bound[j];
                over_high = count[j];
                break;
            }
            raised = bound[j] + 1;
            from_low = count[j];
        }
        low = raised;
    }
    if (top_k < V) {
        uint found[2] = {0, 0};
        for (uint v = t; v < V; v += threads) {
            found[0] += mine[v] > low ? 1 : 0;
            found[1] += mine[v] == low ? 1 : 0;
        }
        group_sums<uint, 2>(found, uint_room, lane, group, groups);
        const uint wanted = top_k - found[0];
        if (found[1] > wanted) {
            uint least = 1;
            while (least < limit) {
                const uint span = limit - least;
                uint count[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                for (uint v = t; v < V; v += threads) {
                    if (mine[v] == low) {
                        for (uint j = 0; j < 8; j++) {
                            count[j] += v < least + (span >> 3) * j + (((span & 7) * j) >> 3) ? 1 : 0;
                        }
                    }
                }
                group_sums<uint, 8>(count, uint_room, lane, group, groups);
                uint raised = least;
                for (uint j = 0; j < 8; j++) {
                    const uint bound = least + (span >> 3) * j + (((span & 7) * j) >> 3);
                    if (count[j] >= wanted) {
                        limit = bound;
                        break;
                    }
                    raised = bound + 1;
                }
                least = raised;
            }
        }
    }
}

// The Gumbel trick: the largest of x / temperature - log(e), where e is exponential, is a draw from the softmax.
float best = -INFINITY;
uint chosen = 0xffffffffu;
const uint2 seed = uint2(key[0], key[1]);
for (uint v = t; v < V; v += threads) {
    const uint place = mine[v];
    if (place < low || (place == low && v >= limit)) {
        continue;
    }
    float score = 0.0f;
    if (warmth > 0.0f) {
        const float value = restored(place);
        const float u = metal::min((float(threefry(seed, uint2(row, v)).x) + 0.5f) * 2.3283064e-10f, 0.99999994f);
        const float e = u < 0.000244140625f ? u * (1.0f + 0.5f * u) : -metal::log(1.0f - u);
        score = (value == top ? 0.0f : (value - top) * warmth) - metal::log(e);
    }
    if (score > best) {
        best = score;
        chosen = v;
    }
}
const float winning = group_max(best, float_room, lane, group, groups);
const uint answer = ~group_max(best == winning ? ~chosen : 0u, uint_room, lane, group, groups);
if (chosen == answer && best == winning) {
    const float value = restored(mine[answer]);
    token[row] = answer;
    logprob[row] = (value == top ? 0.0f : value - top) - metal::log(sum);
}
