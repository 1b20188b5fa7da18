// Floats as unsigned integers of the same order, -inf to +inf; -0 becomes 0 and what is not a number -inf.
inline uint ordered(float x) {
    uint bits = as_type<uint>(x);
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0xff800000u : bits;
    bits = bits == 0x80000000u ? 0u : bits;
    return (bits >> 31) ? ~bits : bits | 0x80000000u;
}

inline float restored(uint key) {
    return as_type<float>((key >> 31) ? key & 0x7fffffffu : ~key);
}
