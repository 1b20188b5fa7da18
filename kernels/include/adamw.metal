// One step of AdamW for one tensor, elements begin, begin + stride, … below end. The pointers' types are the caller's: MLX
// passes an input of fewer than eight elements as a constant.
// settings: factor of the gradient, beta1, 1 - beta1, beta2, 1 - beta2, rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t),
// eps, 1 - rate * decay
template <typename P, typename G, typename M, typename V, typename T>
inline void adamw(
    P p, G g, M m, V v, device T* new_p, device T* new_m, device T* new_v, const device float* settings, uint begin,
    uint end, uint stride
) {
    for (uint i = begin; i < end; i += stride) {
        const float gradient = float(g[i]) * settings[0];
        const float first = settings[1] * float(m[i]) + settings[2] * gradient;
        const float second = settings[3] * float(v[i]) + settings[4] * gradient * gradient;
        const float step = settings[5] * first / (metal::sqrt(second) * settings[6] + settings[7]);
        new_p[i] = T(float(p[i]) * settings[8] - step);
        new_m[i] = T(first);
        new_v[i] = T(second);
    }
}
