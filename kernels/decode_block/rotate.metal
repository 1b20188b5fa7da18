// Rotary positions of queries and keys in one launch, a thread for each pair (i, i + D / 2) of one head of one position.
// sizes: query heads, key heads, positions, pairs in all
const uint pair = thread_position_in_grid.x;
if (pair < sizes[3]) {
    const uint H = sizes[0];
    const uint both = H + sizes[1];
    const uint i = pair % (D / 2);
    const uint at = pair / (D / 2) % sizes[2];
    const uint head = pair / (D / 2) / sizes[2] % both;
    const uint b = pair / (D / 2) / sizes[2] / both;
    const float frequency = metal::exp2(-float(i) / float(D / 2) * log2_base[0]);
    const float angle = float(offset[b] + int(at)) * frequency;
    const float c = metal::cos(angle);
    const float s = metal::sin(angle);
    if (head < H) {
        const ulong place = (ulong(b * H + head) * sizes[2] + at) * D + i;
        const float low = float(q[place]);
        const float high = float(q[place + D / 2]);
        q_out[place] = T(low * c - high * s);
        q_out[place + D / 2] = T(low * s + high * c);
    } else {
        const ulong place = (ulong(b * sizes[1] + head - H) * sizes[2] + at) * D + i;
        const float low = float(k[place]);
        const float high = float(k[place + D / 2]);
        k_out[place] = T(low * c - high * s);
        k_out[place + D / 2] = T(low * s + high * c);
    }
}
