// the header
template <int CHUNK>
[[kernel]] void custom_kernel_adamw_multi_update__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_float_float_float_float_float_float_float_float_uint32_t_float_float_float_float_float_float_float_float_float_float_float_float_float(
  const constant float* p0 [[buffer(0)]],
  const constant float* g0 [[buffer(1)]],
  const constant float* m0 [[buffer(2)]],
  const constant float* v0 [[buffer(3)]],
  const constant float* p1 [[buffer(4)]],
  const constant float* g1 [[buffer(5)]],
  const constant float* m1 [[buffer(6)]],
  const constant float* v1 [[buffer(7)]],
  const device float* p2 [[buffer(8)]],
  const device float* g2 [[buffer(9)]],
  const device float* m2 [[buffer(10)]],
  const device float* v2 [[buffer(11)]],
  const device float* p3 [[buffer(12)]],
  const device float* g3 [[buffer(13)]],
  const device float* m3 [[buffer(14)]],
  const device float* v3 [[buffer(15)]],
  const device uint32_t* table [[buffer(16)]],
  const device float* settings [[buffer(17)]],
  device float* new_p0 [[buffer(18)]],
  device float* new_m0 [[buffer(19)]],
  device float* new_v0 [[buffer(20)]],
  device float* new_p1 [[buffer(21)]],
  device float* new_m1 [[buffer(22)]],
  device float* new_v1 [[buffer(23)]],
  device float* new_p2 [[buffer(24)]],
  device float* new_m2 [[buffer(25)]],
  device float* new_v2 [[buffer(26)]],
  device float* new_p3 [[buffer(27)]],
  device float* new_m3 [[buffer(28)]],
  device float* new_v3 [[buffer(29)]],
  uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]],
  uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
  uint3 threads_per_threadgroup [[threads_per_threadgroup]]) {
    // the body

}

template [[host_name("custom_kernel_adamw_multi_update__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_float_float_float_float_float_float_float_float_uint32_t_float_float_float_float_float_float_float_float_float_float_float_float_float")]] [[kernel]] decltype(custom_kernel_adamw_multi_update__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_float_float_float_float_float_float_float_float_uint32_t_float_float_float_float_float_float_float_float_float_float_float_float_float<4096>) custom_kernel_adamw_multi_update__4096_floatc_floatc_floatc_floatc_floatc_floatc_floatc_floatc_float_float_float_float_float_float_float_float_uint32_t_float_float_float_float_float_float_float_float_float_float_float_float_float<4096>;

