template <typename T, int D>
[[kernel]] void custom_kernel_decode_block_rotate__float_2_floatc_floatc_int32_tc_floatc_uint32_tc_float_float(
  const constant float* q [[buffer(0)]],
  const constant float* k [[buffer(1)]],
  const constant int32_t* offset [[buffer(2)]],
  const constant float* log2_base [[buffer(3)]],
  const constant uint32_t* sizes [[buffer(4)]],
  device float* q_out [[buffer(5)]],
  device float* k_out [[buffer(6)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_decode_block_rotate__float_2_floatc_floatc_int32_tc_floatc_uint32_tc_float_float")]] [[kernel]] decltype(custom_kernel_decode_block_rotate__float_2_floatc_floatc_int32_tc_floatc_uint32_tc_float_float<float, 2>) custom_kernel_decode_block_rotate__float_2_floatc_floatc_int32_tc_floatc_uint32_tc_float_float<float, 2>;

