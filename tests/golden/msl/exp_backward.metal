template <typename T>
[[kernel]] void custom_kernel_exp_backward__float_floatc_floatc_uint32_tc_float(
  const constant float* dy [[buffer(0)]],
  const constant float* y [[buffer(1)]],
  const constant uint32_t* size [[buffer(2)]],
  device float* dx [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_exp_backward__float_floatc_floatc_uint32_tc_float")]] [[kernel]] decltype(custom_kernel_exp_backward__float_floatc_floatc_uint32_tc_float<float>) custom_kernel_exp_backward__float_floatc_floatc_uint32_tc_float<float>;

