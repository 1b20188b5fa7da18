// dQ of a block of 32 queries of one head, blocked as in forward.metal, and on the way delta = rowsum(dO ∘ O), which
// backward_dkv.metal reads. The weights come again from the scores and lse (arXiv 2205.14135, algorithm 4):
// dS = P ∘ (dO Vᵀ - delta), dQ = scale dS K.
constexpr int STRIDE = D + 16 / int(sizeof(T));
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

Matrix gradient[D / 8];
float product = 0.0f;
#pragma unroll
for (int d = 0; d < D / 8; d++) {
    const ulong i = at * ulong(D) + ulong(8 * d + column);
    product += float(d_out[i]) * float(out[i]) + float(d_out[i + 1]) * float(out[i + 1]);
    set_elements(gradient[d], 0.0f, 0.0f);
}
product += metal::simd_shuffle_xor(product, ushort(1));
product += metal::simd_shuffle_xor(product, ushort(8));
const float logarithm = lse[at];

for (int start = low[batch * ulong(queries) + ulong(first)]; start <= last; start += BLOCK) {
    const ulong from = (key_start + ulong(start)) * ulong(D);
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    copy_rows<T, BLOCK, D, STRIDE, 128>(keys, k + from, positions - start, int(thread_index_in_threadgroup));
    copy_rows<T, BLOCK, D, STRIDE, 128>(values, v + from, positions - start, int(thread_index_in_threadgroup));
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);

    Matrix scores[BLOCK / 8];
    Matrix changes[BLOCK / 8];  // dO Vᵀ
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++) {
        set_elements(scores[n], 0.0f, 0.0f);
        set_elements(changes[n], 0.0f, 0.0f);
    }
    for (int d = 0; d < D / 8; d++) {  // q and dO come from the cache each time: kept, they would fill the registers
        const ulong i = at * ulong(D) + ulong(8 * d + column);
        const int place = column * STRIDE + 8 * d + row;
        Matrix rows;
        set_elements(rows, float(q[i]), float(q[i + 1]));
        add_products<T, BLOCK / 8, STRIDE>(scores, rows, keys + place);
        set_elements(rows, float(d_out[i]), float(d_out[i + 1]));
        add_products<T, BLOCK / 8, STRIDE>(changes, rows, values + place);
    }
#pragma unroll
    for (int n = 0; n < BLOCK / 8; n++) {
        const int key = start + 8 * n + column;
        const bool one = key >= lowest && key <= newest;
        const bool two = key + 1 >= lowest && key + 1 <= newest;
        const float p = one ? metal::exp2(scores[n].thread_elements()[0] * factor - logarithm) : 0.0f;
        const float r = two ? metal::exp2(scores[n].thread_elements()[1] * factor - logarithm) : 0.0f;
        set_elements(scores[n], p * (changes[n].thread_elements()[0] - product),
                     r * (changes[n].thread_elements()[1] - product));
        add_rows<T, D>(gradient, scores[n], keys + (8 * n + row) * STRIDE + column);
    }
}

if (exists) {
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        const ulong i = at * ulong(D) + ulong(8 * d + column);
        dq[i] = T(gradient[d].thread_elements()[0] * scale[0]);
        dq[i + 1] = T(gradient[d].thread_elements()[1] * scale[0]);
    }
    if (column == 0) {
        delta[at] = product;
    }
}
