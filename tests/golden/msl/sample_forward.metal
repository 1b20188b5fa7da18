// the header
template <typename T>
[[kernel]] void custom_kernel_sample_forward__float_floatc_int32_tc_uint32_tc_floatc_uint32_tc_uint32_t_float_uint32_t(
  const constant float* logits [[buffer(0)]],
  const constant int32_t* history [[buffer(1)]],
  const constant uint32_t* key [[buffer(2)]],
  const constant float* settings [[buffer(3)]],
  const constant uint32_t* counts [[buffer(4)]],
  device uint32_t* token [[buffer(5)]],
  device float* logprob [[buffer(6)]],
  device uint32_t* keys [[buffer(7)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
    // the body

}

template [[host_name("custom_kernel_sample_forward__float_floatc_int32_tc_uint32_tc_floatc_uint32_tc_uint32_t_float_uint32_t")]] [[kernel]] decltype(custom_kernel_sample_forward__float_floatc_int32_tc_uint32_tc_floatc_uint32_tc_uint32_t_float_uint32_t<float>) custom_kernel_sample_forward__float_floatc_int32_tc_uint32_tc_floatc_uint32_tc_uint32_t_float_uint32_t<float>;

