Generated source code for `exp_backward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_backward__float_float_float_uint32_tc_float(
  const device float* dy [[buffer(0)]],
  const device float* y [[buffer(1)]],
  const constant uint32_t* size [[buffer(2)]],
  device float* dx [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// dx[i] = dy[i] * y[i]: the derivative of exp is its own output, so the input is not read again.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    dx[i] = T(float(dy[i]) * float(y[i]));
}

}

template [[host_name("custom_kernel_exp_backward__float_float_float_uint32_tc_float")]] [[kernel]] decltype(custom_kernel_exp_backward__float_float_float_uint32_tc_float<float>) custom_kernel_exp_backward__float_float_float_uint32_tc_float<float>;

```
Generated source code for `exp_backward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_backward__float16_t_float16_t_float16_t_uint32_tc_float16_t(
  const device float16_t* dy [[buffer(0)]],
  const device float16_t* y [[buffer(1)]],
  const constant uint32_t* size [[buffer(2)]],
  device float16_t* dx [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// dx[i] = dy[i] * y[i]: the derivative of exp is its own output, so the input is not read again.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    dx[i] = T(float(dy[i]) * float(y[i]));
}

}

template [[host_name("custom_kernel_exp_backward__float16_t_float16_t_float16_t_uint32_tc_float16_t")]] [[kernel]] decltype(custom_kernel_exp_backward__float16_t_float16_t_float16_t_uint32_tc_float16_t<float16_t>) custom_kernel_exp_backward__float16_t_float16_t_float16_t_uint32_tc_float16_t<float16_t>;

```
Generated source code for `exp_backward`:
```
template <typename T>
[[kernel]] void custom_kernel_exp_backward__bfloat16_t_bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t(
  const device bfloat16_t* dy [[buffer(0)]],
  const device bfloat16_t* y [[buffer(1)]],
  const constant uint32_t* size [[buffer(2)]],
  device bfloat16_t* dx [[buffer(3)]],
  uint3 thread_position_in_grid [[thread_position_in_grid]]) {
// dx[i] = dy[i] * y[i]: the derivative of exp is its own output, so the input is not read again.
uint i = thread_position_in_grid.x;
if (i < size[0]) {
    dx[i] = T(float(dy[i]) * float(y[i]));
}

}

template [[host_name("custom_kernel_exp_backward__bfloat16_t_bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t")]] [[kernel]] decltype(custom_kernel_exp_backward__bfloat16_t_bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t<bfloat16_t>) custom_kernel_exp_backward__bfloat16_t_bfloat16_t_bfloat16_t_uint32_tc_bfloat16_t<bfloat16_t>;

```
