// A threadgroup for a row of logits [N, V]: its loss, and what the loss's gradient in the row is. One pass keeps a
// running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867, algorithm 3), a second writes
// (softmax · (1 + 2 z lse) - onehot) · (1 - tanh²). options: the soft cap (0 without CAPPED) and z.
threadgroup float tops[8];
threadgroup float totals[8];

const int columns = logits_shape[1];
const int thread_index = int(thread_index_in_threadgroup);
const ulong row = ulong(threadgroup_position_in_grid.x);
const ulong start = row * ulong(columns);
const int target = targets[row];
const float cap = options[0];
const float z = options[1];

if (target == ignored[0]) {  // for the whole threadgroup alike
    for (int i = thread_index; i < columns; i += 256) {
        gradient[start + ulong(i)] = T(0.0f);
    }
    if (thread_index == 0) {
        loss[row] = 0.0f;
    }
    return;
}

float top = -3.0e38f;
float total = 0.0f;
for (int i = thread_index; i < columns; i += 256) {
    float x = float(logits[start + ulong(i)]);
    if (CAPPED) {
        x = cap * metal::tanh(x / cap);
    }
    if (x > top) {
        total = total * metal::exp(top - x) + 1.0f;
        top = x;
    } else {
        total += metal::exp(x - top);
    }
}
const float highest = metal::simd_max(top);
total = metal::simd_sum(total * metal::exp(top - highest));
if (thread_index_in_simdgroup == 0) {
    tops[simdgroup_index_in_threadgroup] = highest;
    totals[simdgroup_index_in_threadgroup] = total;
}
threadgroup_barrier(metal::mem_flags::mem_threadgroup);
top = tops[0];
for (int i = 1; i < 8; i++) {
    top = metal::max(top, tops[i]);
}
total = 0.0f;
for (int i = 0; i < 8; i++) {
    total += totals[i] * metal::exp(tops[i] - top);
}

const float lse = top + metal::log(total);
if (thread_index == 0) {
    float chosen = NAN;  // a target that is no column shows
    if (target >= 0 && target < columns) {
        chosen = float(logits[start + ulong(target)]);
        if (CAPPED) {
            chosen = cap * metal::tanh(chosen / cap);
        }
    }
    loss[row] = metal::log(total) + (top - chosen) + z * lse * lse;  // top and chosen may be large and near each other
}
const float share = (1.0f + 2.0f * z * lse) / total;
for (int i = thread_index; i < columns; i += 256) {
    float x = float(logits[start + ulong(i)]);
    float slope = 1.0f;
    if (CAPPED) {
        const float bent = metal::tanh(x / cap);
        x = cap * bent;
        slope = 1.0f - bent * bent;
    }
    const float change = metal::exp(x - top) * share - (i == target ? 1.0f : 0.0f);
    gradient[start + ulong(i)] = T(change * slope);
}
