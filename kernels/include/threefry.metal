// Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): 64 random bits for each pair of a key and a counter.
inline uint2 threefry(uint2 key, uint2 counter) {
    const uint keys[3] = {key.x, key.y, 0x1BD11BDAu ^ key.x ^ key.y};
    const uint turns[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    uint x = counter.x + key.x;
    uint y = counter.y + key.y;
    for (uint i = 0; i < 20; i++) {
        x += y;
        y = (y << turns[i % 8]) | (y >> (32 - turns[i % 8]));
        y ^= x;
        if (i % 4 == 3) {
            const uint s = i / 4 + 1;
            x += keys[s % 3];
            y += keys[(s + 1) % 3] + s;
        }
    }
    return uint2(x, y);
}
