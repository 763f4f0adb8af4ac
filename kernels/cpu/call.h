/* What one call of a kernel is: its tensors, its shape, and how it is cut into tiles. Shared by every instruction set. */
#ifndef FASTVAE_CALL_H
#define FASTVAE_CALL_H

#include <stdint.h>
#include <string.h>

/* Most coordinates a tile holds: the float32 arrays of a tile (4 KiB each) stay in the first-level cache.
   A tile is several whole rows, or a piece of one long row; where tiles begin depends on the shape alone, so that sums
   come out the same whatever the number of threads. */
#define TILE 1024

/* Integers are of what is read alone. */
enum { FLOAT32, BFLOAT16, FLOAT16, UINT8, INT8, INT16, INT32, INT64 };
enum { NO_KL, ELEMENTWISE, PER_SAMPLE, SUM, BATCHMEAN, PER_CHANNEL };
enum { SCALE_LOGVAR, SCALE_LOGSTD, SCALE_STD, SCALE_VAR, SCALE_SOFTPLUS };
enum { CLAMP_NONE, CLAMP_HARD, CLAMP_SOFT };
enum { BERNOULLI, CONTINUOUS_BERNOULLI, GAUSSIAN, LAPLACE, POISSON, NEGATIVE_BINOMIAL, ZERO_INFLATED, MIXTURE };

/* Coordinate d of row b stands at data[b * row + (d / inner_size) * outer + (d % inner_size) * inner]. */
typedef struct {
    void *data; /* NULL: the tensor takes no part */
    int64_t row, outer, inner;
    int64_t draw; /* from one draw to the next */
} strided;

/* One number a row and draw. */
typedef struct {
    const float *data; /* NULL: takes no part */
    int64_t draw, row;
} row_values;

/* family.py has the formulas. */
typedef struct {
    int32_t scale, clamp, residual;
    float low, high, floor, temperature, free_bits;
} options;

#define MOST_PARAMETERS 3 /* of a likelihood */

/* likelihoods.py has the formulas. */
typedef struct {
    int32_t kind;
    float low, high;
    int32_t components;
} density;

/* A sum over the batch of each column, or over everything. Each unit of work (see below) leaves a partial sum. */
typedef struct {
    strided out; /* data NULL: not wanted */
    int dtype;
    int single;     /* one sum over everything */
    double divisor; /* of the sums */
    float *partial; /* a row for each chunk of the batch; if single, a number a unit */
} column_sums;

/* The column sums of latent_forward, of latent_backward, and of likelihood_backward: parameters behind the first one. */
enum { KL_MEAN = 0, OF_PRIOR_MU = 0, OF_PRIOR_SCALE, MOST_COLUMN_SUMS };
#define OF_PARAMETER(i) ((i) - 1)

typedef struct {
    int dtype;                  /* of all tensors but the KL, the log-probabilities and their gradients: float32 */
    int64_t rows, inner, event; /* event = outer size * inner size */
    uint64_t row_offset;
    const int64_t *seed; /* NULL: no noise is needed */
    uint32_t draw;       /* of the noise alone */
    int reduction;
    int64_t channels, channel_size; /* a sum of the KL is over one channel: the event, but with PER_CHANNEL */
    strided mu, scale, z, kl, grad_z, grad_kl, grad_mu, grad_scale;

    /* Of latents with options, a prior and several draws alone. */
    options options;
    int64_t draws;
    strided prior_mu, prior_scale;           /* data NULL: N(0, I) */
    strided grad_prior_mu, grad_prior_scale; /* of a prior of the posterior's shape; others are column sums */
    row_values grad_log_q, grad_log_p;
    float *log_q, *log_p; /* (draws, rows) */
    column_sums columns[MOST_COLUMN_SUMS];

    /* Of likelihoods alone: their log-probabilities take the place of the KL. Of a mixture, what leads from draw to draw
       leads from channel to channel. */
    density density;
    int64_t image_channels;
    strided x, parameters[MOST_PARAMETERS], grad_parameters[MOST_PARAMETERS];
    int x_dtype, parameter_dtypes[MOST_PARAMETERS];

    /* A unit is what one thread computes from beginning to end: one column of tiles_a_unit tiles. Where the draws are
       shared out, it comes up once for each share. */
    int64_t tile, rows_a_tile, tiles_a_row, tiles, tiles_a_unit, units, shares_of_draws;
    float *kl_slots, *log_q_slots, *log_p_slots; /* sums of pieces of rows, see sums.h */
} call;

/* Work through units first..last-1; behind all units of one share of the draws come those of the next. */
typedef void unit_range(const call *c, int64_t first, int64_t last);

typedef struct {
    const char *name;
    unit_range *noise, *forward, *backward, *latent_forward, *latent_backward, *likelihood_forward, *likelihood_backward;
    void (*finish_columns)(const call *c);
    void (*gammas)(const float *y, int64_t n, float *lgamma, float *digamma);
    void (*words)(const int64_t *counter, int64_t n, uint64_t seed, int64_t *word);
} instruction_set;

extern const instruction_set isa_x86_64_v4, isa_x86_64_v3, isa_aarch64;

#endif
