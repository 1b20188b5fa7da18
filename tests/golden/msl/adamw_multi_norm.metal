// the header
template <int CHUNK>
[[kernel]] void custom_kernel_adamw_multi_norm__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_uint32_t_float(
  const constant float* x0 [[buffer(0)]],
  const constant float* x1 [[buffer(1)]],
  const constant float* x2 [[buffer(2)]],
  const constant float* x3 [[buffer(3)]],
  const constant float* x4 [[buffer(4)]],
  const constant float* x5 [[buffer(5)]],
  const constant float* x6 [[buffer(6)]],
  const constant float* x7 [[buffer(7)]],
  const constant float* x8 [[buffer(8)]],
  const constant float* x9 [[buffer(9)]],
  const constant float* x10 [[buffer(10)]],
  const constant float* x11 [[buffer(11)]],
  const constant float* x12 [[buffer(12)]],
  const constant float* x13 [[buffer(13)]],
  const constant float* x14 [[buffer(14)]],
  const constant float* x15 [[buffer(15)]],
  const constant float* x16 [[buffer(16)]],
  const constant float* x17 [[buffer(17)]],
  const constant float* x18 [[buffer(18)]],
  const constant float* x19 [[buffer(19)]],
  const constant float* x20 [[buffer(20)]],
  const constant float* x21 [[buffer(21)]],
  const constant float* x22 [[buffer(22)]],
  const constant float* x23 [[buffer(23)]],
  const device uint32_t* table [[buffer(24)]],
  device float* sums [[buffer(25)]],
  uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
  uint thread_index_in_simdgroup [[thread_index_in_simdgroup]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
    // the body

}

template [[host_name("custom_kernel_adamw_multi_norm__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_uint32_t_float")]] [[kernel]] decltype(custom_kernel_adamw_multi_norm__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_uint32_t_float<4096>) custom_kernel_adamw_multi_norm__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_uint32_t_float<4096>;

