// The sum of the squares of one tensor, elements begin, begin + stride, … below end. The pointer's type is the caller's:
// MLX passes an input of fewer than eight elements as a constant.
template <typename X>
inline float squares(X x, uint begin, uint end, uint stride) {
    float sum = 0.0f;
    for (uint i = begin; i < end; i += stride) {
        const float value = float(x[i]);
        sum += value * value;
    }
    return sum;
}
