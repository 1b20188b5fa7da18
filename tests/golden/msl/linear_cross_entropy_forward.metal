template <typename T, bool CAPPED>
[[kernel]] void custom_kernel_linear_cross_entropy_forward__float_0_floatc_int32_tc_int32_tc_floatc_float_float(
  const constant float* logits [[buffer(0)]],
  const constant int* logits_shape [[buffer(1)]],
  const constant int32_t* targets [[buffer(2)]],
  const constant int32_t* ignored [[buffer(3)]],
  const constant float* options [[buffer(4)]],
  device float* loss [[buffer(5)]],
  device float* gradient [[buffer(6)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_linear_cross_entropy_forward__float_0_floatc_int32_tc_int32_tc_floatc_float_float")]] [[kernel]] decltype(custom_kernel_linear_cross_entropy_forward__float_0_floatc_int32_tc_int32_tc_floatc_float_float<float, 0>) custom_kernel_linear_cross_entropy_forward__float_0_floatc_int32_tc_int32_tc_floatc_float_float<float, 0>;

