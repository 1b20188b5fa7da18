template <typename O, int D, int BITS, int GROUP, int ROWS, int SPLITS>
[[kernel]] void custom_kernel_quantized_kv_attention_forward__float_32_8_32_1_1_float_uint32_t_floatc_floatc_uint32_t_floatc_floatc_int32_tc_floatc_int32_tc_float_float_float(
  const device float* q [[buffer(0)]],
  const device uint32_t* k_words [[buffer(1)]],
  const constant float* k_scales [[buffer(2)]],
  const constant float* k_biases [[buffer(3)]],
  const device uint32_t* v_words [[buffer(4)]],
  const constant float* v_scales [[buffer(5)]],
  const constant float* v_biases [[buffer(6)]],
  const constant int32_t* position [[buffer(7)]],
  const constant float* scale [[buffer(8)]],
  const constant int32_t* sizes [[buffer(9)]],
  device float* parts [[buffer(10)]],
  device float* highests [[buffer(11)]],
  device float* sums [[buffer(12)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threadgroups_per_grid [[threadgroups_per_grid]]) {
    // the body

}

template [[host_name("custom_kernel_quantized_kv_attention_forward__float_32_8_32_1_1_float_uint32_t_floatc_floatc_uint32_t_floatc_floatc_int32_tc_floatc_int32_tc_float_float_float")]] [[kernel]] decltype(custom_kernel_quantized_kv_attention_forward__float_32_8_32_1_1_float_uint32_t_floatc_floatc_uint32_t_floatc_floatc_int32_tc_floatc_int32_tc_float_float_float<float, 32, 8, 32, 1, 1>) custom_kernel_quantized_kv_attention_forward__float_32_8_32_1_1_float_uint32_t_floatc_floatc_uint32_t_floatc_floatc_int32_tc_floatc_int32_tc_float_float_float<float, 32, 8, 32, 1, 1>;

