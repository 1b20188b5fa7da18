template <typename T>
[[kernel]] void custom_kernel_exp_forward__float_floatc_uint32_tc_float(
  const constant float* x [[buffer(0)]],
  const constant uint32_t* size [[buffer(1)]],
  device float* y [[buffer(2)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_exp_forward__float_floatc_uint32_tc_float")]] [[kernel]] decltype(custom_kernel_exp_forward__float_floatc_uint32_tc_float<float>) custom_kernel_exp_forward__float_floatc_uint32_tc_float<float>;

