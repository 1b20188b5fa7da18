// Sums and extremes over a threadgroup: every thread gets the same result. `room` holds 32 numbers a value; `lane` is
// the thread's place in its simdgroup, `group` the simdgroup's among the `groups` of the threadgroup.
template <typename N, int COUNT>
inline void group_sums(thread N* x, threadgroup N* room, uint lane, uint group, uint groups) {
    for (int i = 0; i < COUNT; i++) {
        x[i] = metal::simd_sum(x[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the last result has been read from the room
    if (lane == 0) {
        for (int i = 0; i < COUNT; i++) {
            room[32 * i + group] = x[i];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < COUNT; i++) {
        x[i] = metal::simd_sum(lane < groups ? room[32 * i + lane] : N(0));
    }
}

template <typename N>
inline N group_sum(N x, threadgroup N* room, uint lane, uint group, uint groups) {
    group_sums<N, 1>(&x, room, lane, group, groups);
    return x;
}

template <typename N>
inline N group_max(N x, threadgroup N* room, uint lane, uint group, uint groups) {
    x = metal::simd_max(x);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        room[group] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return metal::simd_max(room[lane < groups ? lane : 0]);
}
