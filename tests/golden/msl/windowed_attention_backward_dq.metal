// the header
template <typename T, int D, int BLOCK>
[[kernel]] void custom_kernel_windowed_attention_backward_dq__float_32_32_float_float_float_float_floatc_float_int32_tc_floatc_float_float(
  const device float* q [[buffer(0)]],
  const constant int* q_shape [[buffer(1)]],
  const device float* k [[buffer(2)]],
  const constant int* k_shape [[buffer(3)]],
  const device float* v [[buffer(4)]],
  const device float* out [[buffer(5)]],
  const constant float* lse [[buffer(6)]],
  const device float* d_out [[buffer(7)]],
  const constant int32_t* low [[buffer(8)]],
  const constant float* scale [[buffer(9)]],
  device float* dq [[buffer(10)]],
  device float* delta [[buffer(11)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_windowed_attention_backward_dq__float_32_32_float_float_float_float_floatc_float_int32_tc_floatc_float_float")]] [[kernel]] decltype(custom_kernel_windowed_attention_backward_dq__float_32_32_float_float_float_float_floatc_float_int32_tc_floatc_float_float<float, 32, 32>) custom_kernel_windowed_attention_backward_dq__float_32_32_float_float_float_float_floatc_float_int32_tc_floatc_float_float<float, 32, 32>;

