// One threadgroup sums the squares of CHUNK elements of one of 24 tensors.
// table: the first group of each tensor, the number of groups, then each tensor's size
#define TENSOR(n, x) case n: sum = squares(x, begin, end, threads); break;
threadgroup float room[32];
const uint threads = threads_per_threadgroup.x;
const uint place = threadgroup_position_in_grid.x;
uint tensor = 0;
while (place >= table[tensor + 1]) {
    tensor++;
}
const uint first = (place - table[tensor]) * CHUNK;
const uint begin = first + thread_position_in_threadgroup.x;
const uint end = metal::min(table[25 + tensor], first + CHUNK);
float sum = 0.0f;
switch (tensor) {
    TENSOR(0, x0) TENSOR(1, x1) TENSOR(2, x2) TENSOR(3, x3) TENSOR(4, x4) TENSOR(5, x5)
    TENSOR(6, x6) TENSOR(7, x7) TENSOR(8, x8) TENSOR(9, x9) TENSOR(10, x10) TENSOR(11, x11)
    TENSOR(12, x12) TENSOR(13, x13) TENSOR(14, x14) TENSOR(15, x15) TENSOR(16, x16) TENSOR(17, x17)
    TENSOR(18, x18) TENSOR(19, x19) TENSOR(20, x20) TENSOR(21, x21) TENSOR(22, x22) TENSOR(23, x23)
}
#undef TENSOR
sum = metal::simd_sum(sum);
if (thread_index_in_simdgroup == 0) {
    room[simdgroup_index_in_threadgroup] = sum;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
if (thread_position_in_threadgroup.x == 0) {
    float total = 0.0f;
    for (uint i = 0; i < threads / 32; i++) {
        total += room[i];
    }
    sums[place] = total;
}
