// One threadgroup updates CHUNK elements of one of four tensors.
// table: the first group of each tensor, the number of groups, then each tensor's size
#define TENSOR(n, p, g, m, v, new_p, new_m, new_v) \
    case n: adamw(p, g, m, v, new_p, new_m, new_v, settings, begin, end, threads_per_threadgroup.x); break;
const uint place = threadgroup_position_in_grid.x;
uint tensor = 0;
while (place >= table[tensor + 1]) {
    tensor++;
}
const uint first = (place - table[tensor]) * CHUNK;
const uint begin = first + thread_position_in_threadgroup.x;
const uint end = metal::min(table[5 + tensor], first + CHUNK);
switch (tensor) {
    TENSOR(0, p0, g0, m0, v0, new_p0, new_m0, new_v0)
    TENSOR(1, p1, g1, m1, v1, new_p1, new_m1, new_v1)
    TENSOR(2, p2, g2, m2, v2, new_p2, new_m2, new_v2)
    TENSOR(3, p3, g3, m3, v3, new_p3, new_m3, new_v3)
}
#undef TENSOR
