/* cblas_sgemm as MLX calls it, on the OpenBLAS that numpy's wheel carries under other names (64-bit integers).
   MLX's Linux wheel is linked against the reference BLAS, 30 to 60 times slower; loaded first and globally,
   this library takes its place. One row or one column goes to sgemv: OpenBLAS's sgemm is 3x slower there; and a vector
   by the rows of a matrix, which is what decoding is, to a loop that reads as fast as memory gives.
   OpenBLAS keeps to one thread; a large product is cut in parts for a pool of ours. */
#include "cpu/pool.h"

#include <stdint.h>

enum { ROW_MAJOR = 101, COLUMN_MAJOR = 102, NO_TRANS = 111, TRANS = 112 };

void scipy_cblas_sgemm64_(int order, int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                          int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void scipy_cblas_sgemv64_(int order, int trans, int64_t m, int64_t n, float alpha, const float *a, int64_t lda,
                          const float *x, int64_t incx, float beta, float *y, int64_t incy);
void scipy_openblas_set_num_threads64_(int count);

__attribute__((constructor)) static void one_thread(void) { scipy_openblas_set_num_threads64_(1); }

/* Row-major; `step` rows of c are a part, or columns. */
struct product {
  int ta, tb, by_rows;
  int64_t m, n, k, step;
  float alpha, beta;
  const float *a, *b;
  int64_t lda, ldb, ldc;
  float *c;
};

typedef float lanes __attribute__((vector_size(64), aligned(4)));

/* c[n] = alpha a b[n] + beta c[n], in the order of memory: rows side by side would each begin a stream that ends before
   it is foreseen. */
static void dots(int64_t count, int64_t k, float alpha, const float *a, const float *b, int64_t ldb, float beta, float *c) {
  for (int64_t n = 0; n < count; n++, b += ldb) {
    lanes sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 64 <= k; i += 64)
      for (int j = 0; j < 4; j++) sums[j] += *(const lanes *)(a + i + 16 * j) * *(const lanes *)(b + i + 16 * j);
    lanes both = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = 0;
    for (; i < k; i++) sum += a[i] * b[i];
    for (int lane = 0; lane < 16; lane++) sum += both[lane];
    c[n] = alpha * sum + (beta == 0 ? 0 : beta * c[n]);
  }
}

static void part(const void *context, int i) {
  struct product p = *(const struct product *)context;
  int64_t first = i * p.step, count = (p.by_rows ? p.m : p.n) - first;
  if (count > p.step) count = p.step;
  if (p.by_rows) {
    p.a += p.ta == NO_TRANS ? first * p.lda : first;
    p.c += first * p.ldc;
    p.m = count;
  } else {
    p.b += p.tb == NO_TRANS ? first : first * p.ldb;
    p.c += first;
    p.n = count;
  }
  if (p.k > 0 && p.m == 1 && p.tb == TRANS && (p.ta == NO_TRANS || p.lda == 1))
    dots(p.n, p.k, p.alpha, p.a, p.b, p.ldb, p.beta, p.c);
  else if (p.k > 0 && p.m == 1) /* c[n] = op(b)^T a */
    p.tb == NO_TRANS ? scipy_cblas_sgemv64_(ROW_MAJOR, TRANS, p.k, p.n, p.alpha, p.b, p.ldb, p.a,
                                            p.ta == NO_TRANS ? 1 : p.lda, p.beta, p.c, 1)
                     : scipy_cblas_sgemv64_(ROW_MAJOR, NO_TRANS, p.n, p.k, p.alpha, p.b, p.ldb, p.a,
                                            p.ta == NO_TRANS ? 1 : p.lda, p.beta, p.c, 1);
  else if (p.k > 0 && p.n == 1) /* c[m] = op(a) b */
    p.ta == NO_TRANS ? scipy_cblas_sgemv64_(ROW_MAJOR, NO_TRANS, p.m, p.k, p.alpha, p.a, p.lda, p.b,
                                            p.tb == NO_TRANS ? p.ldb : 1, p.beta, p.c, p.ldc)
                     : scipy_cblas_sgemv64_(ROW_MAJOR, TRANS, p.k, p.m, p.alpha, p.a, p.lda, p.b,
                                            p.tb == NO_TRANS ? p.ldb : 1, p.beta, p.c, p.ldc);
  else
    scipy_cblas_sgemm64_(ROW_MAJOR, p.ta, p.tb, p.m, p.n, p.k, p.alpha, p.a, p.lda, p.b, p.ldb, p.beta, p.c, p.ldc);
}

void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
  struct product p = {ta, tb, m >= n, m, n, k, 0, alpha, beta, a, b, lda, ldb, ldc, c};
  if (order == COLUMN_MAJOR) { /* the same memory read by rows is the transposed product */
    struct product turned = {tb, ta, n >= m, n, m, k, 0, alpha, beta, b, a, ldb, lda, ldc, c};
    p = turned;
  }
  /* The smaller of a and b is read by every part: the larger side is cut, by whole tiles of OpenBLAS's. */
  int64_t side = p.by_rows ? p.m : p.n, parts = 1;
  double work = (double)m * n * k;
  int vector = m == 1 || n == 1;
  if (work >= (vector ? 1 << 16 : 1 << 20) && mlxgpt_free_threads() > 1)
    parts = mlxgpt_thread_count() * (vector || work < 1 << 23 ? 1 : work < 1 << 27 ? 2 : 4);
  p.step = (side + parts - 1) / parts;
  if (parts > 1) p.step = (p.step + 15) / 16 * 16;
  mlxgpt_each(p.step ? (side + p.step - 1) / p.step : 0, part, &p);
}
