/* cblas_sgemm as MLX calls it, on the OpenBLAS that numpy's wheel carries under other names (64-bit integers).
   MLX's Linux wheel is linked against the reference BLAS, 30 to 60 times slower; loaded first and globally,
   this library takes its place. One row or one column goes to sgemv: OpenBLAS's sgemm is 3x slower there. */
#include <stdint.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

void scipy_cblas_sgemm64_(int order, int ta, int tb, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                          int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void scipy_cblas_sgemv64_(int order, int trans, int64_t m, int64_t n, float alpha, const float *a, int64_t lda,
                          const float *x, int64_t incx, float beta, float *y, int64_t incy);

void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
  if (order == ROW_MAJOR && k > 0 && m == 1) {        /* c[n] = op(b)^T a */
    if (tb == NO_TRANS)
      scipy_cblas_sgemv64_(order, TRANS, k, n, alpha, b, ldb, a, ta == NO_TRANS ? 1 : lda, beta, c, 1);
    else
      scipy_cblas_sgemv64_(order, NO_TRANS, n, k, alpha, b, ldb, a, ta == NO_TRANS ? 1 : lda, beta, c, 1);
  } else if (order == ROW_MAJOR && k > 0 && n == 1) { /* c[m] = op(a) b */
    if (ta == NO_TRANS)
      scipy_cblas_sgemv64_(order, NO_TRANS, m, k, alpha, a, lda, b, tb == NO_TRANS ? ldb : 1, beta, c, ldc);
    else
      scipy_cblas_sgemv64_(order, TRANS, k, m, alpha, a, lda, b, tb == NO_TRANS ? ldb : 1, beta, c, ldc);
  } else {
    scipy_cblas_sgemm64_(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
}
