// What the three bodies of windowed attention share.
//
// A lane of a simdgroup holds two elements of an 8×8 matrix, (row, column) and (row, column + 1), with
// row = 4 ⌊lane / 16⌋ + ⌊lane / 2⌋ mod 4 and column = 4 (⌊lane / 8⌋ mod 2) + 2 (lane mod 2), as MLX's own attention
// kernels have it. So a row's four lanes differ in bits 0 and 3, and a product can be the left factor of the next.
typedef metal::simdgroup_matrix<float, 8, 8> Matrix;

inline void set_elements(thread Matrix& matrix, float first, float second) {
    matrix.thread_elements()[0] = first;
    matrix.thread_elements()[1] = second;
}

// Copies the first `count` of ROWS rows of D numbers into threadgroup memory, rows STRIDE apart, zeros for the rest.
template <typename T, int ROWS, int D, int STRIDE, int THREADS>
inline void copy_rows(threadgroup T* to, const device T* from, int count, int index) {
    for (int i = index; i < ROWS * D; i += THREADS) {
        const int row = i / D;
        to[row * STRIDE + i % D] = row < count ? from[i] : T(0.0f);
    }
}

// left[n] · right[n]ᵀ for the rows 8n .. 8n + 7 of `right`, one 8-column slice of both: adds it to sums[n].
template <typename T, int COUNT, int STRIDE>
inline void add_products(thread Matrix* sums, const thread Matrix& left, const threadgroup T* right) {
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        Matrix transposed;
        set_elements(transposed, float(right[8 * n * STRIDE]), float(right[(8 * n + 1) * STRIDE]));
        metal::simdgroup_multiply_accumulate(sums[n], left, transposed, sums[n]);
    }
}

// left · right for 8 rows of `right`, D columns: adds it to sums, one 8×8 matrix for each 8 columns.
template <typename T, int D>
inline void add_rows(thread Matrix* sums, const thread Matrix& left, const threadgroup T* right) {
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
        Matrix factor;
        set_elements(factor, float(right[8 * d]), float(right[8 * d + 1]));
        metal::simdgroup_multiply_accumulate(sums[d], left, factor, sums[d]);
    }
}
