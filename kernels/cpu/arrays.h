// MLX's arrays as an operation reads them.
#pragma once

#include <cstring>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/common/utils.h"

namespace mlxgpt {

namespace mx = mlx::core;

// The elements of an array that is there, in order: where they are, or copied.
inline const void* by_rows(const mx::array& a, std::vector<char>& copy) {
  if (a.flags().row_contiguous) return a.data<char>();
  copy.resize(a.nbytes());
  size_t width = a.itemsize();
  for (size_t i = 0; i < a.size(); i++)
    std::memcpy(&copy[i * width], a.data<char>() + mx::elem_to_loc(i, a.shape(), a.strides()) * width, width);
  return copy.data();
}

}  // namespace mlxgpt
