template <typename T, int C, bool CENTERED, bool BIASED>
[[kernel]] void custom_kernel_decode_block_add_norm__float_1_0_0_floatc_floatc_floatc_floatc_floatc_float_float(
  const constant float* x [[buffer(0)]],
  const constant float* change [[buffer(1)]],
  const constant float* weight [[buffer(2)]],
  const constant float* bias [[buffer(3)]],
  const constant float* eps [[buffer(4)]],
  device float* added [[buffer(5)]],
  device float* normed [[buffer(6)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
    // the body

}

template [[host_name("custom_kernel_decode_block_add_norm__float_1_0_0_floatc_floatc_floatc_floatc_floatc_float_float")]] [[kernel]] decltype(custom_kernel_decode_block_add_norm__float_1_0_0_floatc_floatc_floatc_floatc_floatc_float_float<float, 1, 0, 0>) custom_kernel_decode_block_add_norm__float_1_0_0_floatc_floatc_floatc_floatc_floatc_float_float<float, 1, 0, 0>;

