// dK and dV of a block of 32 keys of one key head, 8 to a simdgroup, over the blocks of queries that see one of them
// and over the query heads that share it (arXiv 2205.14135, algorithm 4, the loops exchanged: no atomics).
// Rows are keys and columns queries: Pᵀ from K Qᵀ, dV = Pᵀ dO, dSᵀ = Pᵀ ∘ (V dOᵀ - delta), dK = scale dSᵀ Q.
constexpr int STRIDE = D + 16 / int(sizeof(T));
threadgroup T questions[BLOCK * STRIDE];
threadgroup T gradients[BLOCK * STRIDE];

const int lane = int(thread_index_in_simdgroup);
const int row = lane / 16 * 4 + lane / 2 % 4;
const int column = lane / 8 % 2 * 4 + lane % 2 * 2;
const int queries = q_shape[2];
const int positions = k_shape[2];
const int offset = positions - queries;
const int group = q_shape[1] / k_shape[1];
const int first = int(threadgroup_position_in_grid.x) * 32;
const int key = first + 8 * int(simdgroup_index_in_threadgroup) + row;
const bool exists = key < positions;
const ulong batch = ulong(threadgroup_position_in_grid.z);
const ulong key_head = ulong(threadgroup_position_in_grid.y);
const ulong at = (batch * ulong(k_shape[1]) + key_head) * ulong(positions) + ulong(metal::min(key, positions - 1));
const ulong bound = batch * ulong(queries);
const float factor = scale[0] * 1.442695041f;  // log2 e

Matrix key_gradient[D / 8];
Matrix value_gradient[D / 8];
#pragma unroll
for (int d = 0; d < D / 8; d++) {
    set_elements(key_gradient[d], 0.0f, 0.0f);
    set_elements(value_gradient[d], 0.0f, 0.0f);
}

for (int member = 0; member < group; member++) {
    const ulong head = batch * ulong(q_shape[1]) + key_head * ulong(group) + ulong(member);
    for (int start = metal::max(first - offset, 0); start < queries && low[bound + ulong(start)] < first + 32;
         start += BLOCK) {
        const ulong from = head * ulong(queries) + ulong(start);
        threadgroup_barrier(metal::mem_flags::mem_threadgroup);
        copy_rows<T, BLOCK, D, STRIDE, 128>(questions, q + from * ulong(D), queries - start,
                                            int(thread_index_in_threadgroup));
        copy_rows<T, BLOCK, D, STRIDE, 128>(gradients, d_out + from * ulong(D), queries - start,
                                            int(thread_index_in_threadgroup));
        threadgroup_barrier(metal::mem_flags::mem_threadgroup);

        Matrix scores[BLOCK / 8];
        Matrix changes[BLOCK / 8];  // V dOᵀ
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++) {
            set_elements(scores[n], 0.0f, 0.0f);
            set_elements(changes[n], 0.0f, 0.0f);
        }
        for (int d = 0; d < D / 8; d++) {
            const ulong i = at * ulong(D) + ulong(8 * d + column);
            const int place = column * STRIDE + 8 * d + row;
            Matrix rows;
            set_elements(rows, float(k[i]), float(k[i + 1]));
            add_products<T, BLOCK / 8, STRIDE>(scores, rows, questions + place);
            set_elements(rows, float(v[i]), float(v[i + 1]));
            add_products<T, BLOCK / 8, STRIDE>(changes, rows, gradients + place);
        }
#pragma unroll
        for (int n = 0; n < BLOCK / 8; n++) {
            float weight[2];
            float change[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int query = start + 8 * n + column + e;
                const ulong i = ulong(8 * n + column + e);
                weight[e] = 0.0f;
                change[e] = 0.0f;
                if (query < queries && key <= offset + query && key >= low[bound + ulong(start) + i]) {
                    weight[e] = metal::exp2(scores[n].thread_elements()[e] * factor - lse[from + i]);
                    change[e] = weight[e] * (changes[n].thread_elements()[e] - delta[from + i]);
                }
            }
            set_elements(scores[n], weight[0], weight[1]);
            set_elements(changes[n], change[0], change[1]);
            add_rows<T, D>(value_gradient, scores[n], gradients + (8 * n + row) * STRIDE + column);
            add_rows<T, D>(key_gradient, changes[n], questions + (8 * n + row) * STRIDE + column);
        }
    }
}

if (exists) {
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        const ulong i = at * ulong(D) + ulong(8 * d + column);
        dk[i] = T(key_gradient[d].thread_elements()[0] * scale[0]);
        dk[i + 1] = T(key_gradient[d].thread_elements()[1] * scale[0]);
        dv[i] = T(value_gradient[d].thread_elements()[0]);
        dv[i + 1] = T(value_gradient[d].thread_elements()[1]);
    }
}
