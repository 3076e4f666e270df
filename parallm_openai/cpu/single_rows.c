/* A cblas_sgemm that multiplies single rows by sgemv and leaves everything else to the library's own sgemm. */

#ifdef __cplusplus
extern "C" {
#endif

/* The numbers of the CBLAS standard. */
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

typedef void (*sgemm_t)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a,
                        int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef void (*sgemv_t)(int order, int transpose_a, int m, int n, float alpha, const float *a, int lda, const float *x,
                        int incx, float beta, float *y, int incy);

static sgemm_t library_sgemm;
static sgemv_t library_sgemv;

void choose_between(sgemm_t sgemm, sgemv_t sgemv) {
    library_sgemm = sgemm;
    library_sgemv = sgemv;
}

void cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    if (order != ROW_MAJOR || m != 1) {
        library_sgemm(order, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    /* The row a of A times B is B, transposed, times a. A transposed A holds the row as a column. */
    int step = transpose_a == NO_TRANSPOSE ? 1 : lda;
    if (transpose_b == NO_TRANSPOSE)
        library_sgemv(order, TRANSPOSE, k, n, alpha, b, ldb, a, step, beta, c, 1);
    else
        library_sgemv(order, NO_TRANSPOSE, n, k, alpha, b, ldb, a, step, beta, c, 1);
}

#ifdef __cplusplus
}
#endif
