// A block of 32 queries of one head, 8 to a simdgroup, meets the blocks of keys that one of them sees: FlashAttention's
// online softmax (arXiv 2205.14135, algorithm 1), in base 2, summed in float32.
// Query i stands at position S - T + i and sees the keys from low[i], which never falls, up to itself.
constexpr int STRIDE = D + 16 / int(sizeof(T));  // the padding spreads a column over the banks
constexpr float HIDDEN = -3.0e38f;
threadgroup T keys[BLOCK * STRIDE];
threadgroup T values[BLOCK * STRIDE];

const int lane = int(thread_index_in_simdgroup);
const int row = lane / 16 * 4 + lane / 2 % 4;
const int column = lane / 8 % 2 * 4 + lane % 2 * 2;
const int queries = q_shape[2];
const int positions = k_shape[2];
const int offset = positions - queries;
const int first = int(threadgroup_position_in_grid.x) * 32;
const int query = first + 8 * int(simdgroup_index_in_threadgroup) + row;
const bool exists = query < queries;
const ulong batch = ulong(threadgroup_position_in_grid.z);
const ulong head = ulong(threadgroup_position_in_grid.y);
const ulong key_head = head / ulong(q_shape[1] / k_shape[1]);
const ulong at = (batch * ulong(q_shape[1]) + head) * ulong(queries) + ulong(metal::min(query, queries - 1));
const ulong key_start = (batch * ulong(k_shape[1]) + key_head) * ulong(positions);
const int lowest = exists ? low[batch * ulong(queries) + ulong(query)] : positions;
const int newest = offset + query;
const int last = offset + metal::min(first + 32, queries) - 1;
const float factor = scale[0] * 1.442695041f;  // log2 e

Matrix question[D / 8];
Matrix answer[D / 8];
#pragma unroll
for (int d = 0; d < D / 8; d++) {
    const ulong i = at * ulong(D) + ulong(8 * d + column);
    set_elements(question[d], float(q[i]) * factor, float(q[i + 1]) * factor);
    set_elements(answer[d], 0.0f, 0.0f);
}

float top = HIDDEN;
float total = 0.0f;
for (int start = low[batch * ulong(queries) + ulong(first)]; start <= last; start += BLOCK) {
    const ulong from = (key_start + ulong(start)) * ulong(D);
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    copy_rows<T, BLOCK, D, STRIDE, 128>(keys, k + from, positions - start, int(thread_index_in_threadgroup));
    copy_rows<T, BLOCK, D, STRIDE, 128>(values, v + from, positions - start, int(thread_index_in_threadgroup));
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);

    Matrix scores[BLOCK / 8];
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++) {
        set_elements(scores[n], 0.0f, 0.0f);
    }
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        add_products<T, BLOCK / 8, STRIDE>(scores, question[d], keys + column * STRIDE + 8 * d + row);
    }

    float higher = top;
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++) {
        const int key = start + 8 * n + column;
        const float one = key >= lowest && key <= newest ? scores[n].thread_elements()[0] : HIDDEN;
        const float two = key + 1 >= lowest && key + 1 <= newest ? scores[n].thread_elements()[1] : HIDDEN;
        set_elements(scores[n], one, two);
        higher = metal::max(higher, metal::max(one, two));
    }
    higher = metal::max(higher, metal::simd_shuffle_xor(higher, ushort(1)));
    higher = metal::max(higher, metal::simd_shuffle_xor(higher, ushort(8)));
    const float shrink = metal::exp2(top - higher);
    top = higher;
    total *= shrink;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        set_elements(answer[d], answer[d].thread_elements()[0] * shrink, answer[d].thread_elements()[1] * shrink);
    }
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++) {  // a row that has seen no key yet has HIDDEN for its top: 0, not 2^0
        const float one = scores[n].thread_elements()[0];
        const float two = scores[n].thread_elements()[1];
        set_elements(scores[n], one > HIDDEN ? metal::exp2(one - top) : 0.0f,
                     two > HIDDEN ? metal::exp2(two - top) : 0.0f);
        total += scores[n].thread_elements()[0] + scores[n].thread_elements()[1];
        add_rows<T, D>(answer, scores[n], values + (8 * n + row) * STRIDE + column);
    }
}

total += metal::simd_shuffle_xor(total, ushort(1));
total += metal::simd_shuffle_xor(total, ushort(8));
if (exists) {
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        const ulong i = at * ulong(D) + ulong(8 * d + column);
        out[i] = T(answer[d].thread_elements()[0] / total);
        out[i + 1] = T(answer[d].thread_elements()[1] / total);
    }
    if (column == 0) {
        lse[at] = top + metal::log2(total);
    }
}
