template <typename T, int D, int SPLITS>
[[kernel]] void custom_kernel_quantized_kv_attention_combine__float_64_2_float_float_float_float(
  const device float* parts [[buffer(0)]],
  const device float* highests [[buffer(1)]],
  const device float* sums [[buffer(2)]],
  device float* out [[buffer(3)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]]) {
    // the body

}

template [[host_name("custom_kernel_quantized_kv_attention_combine__float_64_2_float_float_float_float")]] [[kernel]] decltype(custom_kernel_quantized_kv_attention_combine__float_64_2_float_float_float_float<float, 64, 2>) custom_kernel_quantized_kv_attention_combine__float_64_2_float_float_float_float<float, 64, 2>;

