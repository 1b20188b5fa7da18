Generated source code for `exp_forward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_forward__float_float_uint32_tc_float(
  const device float* x [[buffer(0)]],
  const constant uint32_t* size [[buffer(1)]],
  device float* y [[buffer(2)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// y[i] = exp(x[i]), one thread an element.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    y[i] = T(metal::exp(float(x[i])));
}

}

template [[host_name("custom_kernel_exp_forward__float_float_uint32_tc_float")]] [[kernel]] decltype(custom_kernel_exp_forward__float_float_uint32_tc_float<float>) custom_kernel_exp_forward__float_float_uint32_tc_float<float>;

```
Generated source code for `exp_forward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_forward__float16_t_float16_t_uint32_tc_float16_t(
  const device float16_t* x [[buffer(0)]],
  const constant uint32_t* size [[buffer(1)]],
  device float16_t* y [[buffer(2)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// y[i] = exp(x[i]), one thread an element.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    y[i] = T(metal::exp(float(x[i])));
}

}

template [[host_name("custom_kernel_exp_forward__float16_t_float16_t_uint32_tc_float16_t")]] [[kernel]] decltype(custom_kernel_exp_forward__float16_t_float16_t_uint32_tc_float16_t<float16_t>) custom_kernel_exp_forward__float16_t_float16_t_uint32_tc_float16_t<float16_t>;

```
Generated source code for `exp_forward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_forward__bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t(
  const device bfloat16_t* x [[buffer(0)]],
  const constant uint32_t* size [[buffer(1)]],
  device bfloat16_t* y [[buffer(2)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// y[i] = exp(x[i]), one thread an element.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    y[i] = T(metal::exp(float(x[i])));
}

}

template [[host_name("custom_kernel_exp_forward__bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t")]] [[kernel]] decltype(custom_kernel_exp_forward__bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t<bfloat16_t>) custom_kernel_exp_forward__bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t<bfloat16_t>;

```
