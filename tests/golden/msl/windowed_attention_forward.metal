// the header
template <typename T, int D, int BLOCK>
[[kernel]] void custom_kernel_windowed_attention_forward__float_32_32_float_float_float_int32_tc_floatc_float_float(
  const device float* q [[buffer(0)]],
  const constant int* q_shape [[buffer(1)]],
  const device float* k [[buffer(2)]],
  const constant int* k_shape [[buffer(3)]],
  const device float* v [[buffer(4)]],
  const constant int32_t* low [[buffer(5)]],
  const constant float* scale [[buffer(6)]],
  device float* out [[buffer(7)]],
  device float* lse [[buffer(8)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_windowed_attention_forward__float_32_32_float_float_float_int32_tc_floatc_float_float")]] [[kernel]] decltype(custom_kernel_windowed_attention_forward__float_32_32_float_float_float_int32_tc_floatc_float_float<float, 32, 32>) custom_kernel_windowed_attention_forward__float_32_32_float_float_float_int32_tc_floatc_float_float<float, 32, 32>;

