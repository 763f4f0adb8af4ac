/* What one call of a kernel is: its tensors, its shape, and how it is cut into tiles. Shared by every instruction set. */
#ifndef FASTVAE_CALL_H
#define FASTVAE_CALL_H

#include <stdint.h>
#include <string.h>

/* Most coordinates a tile holds: the float32 arrays of a tile (4 KiB each) stay in the first-level cache.
   A tile is several whole rows, or a piece of one long row; where tiles begin depends on the shape alone, so that sums
   come out the same whatever the number of threads. */
#define TILE 1024

/* Of dtypes: integers occur in the data x of a likelihood, which is only read. */
enum { FLOAT32, BFLOAT16, FLOAT16, UINT8, INT8, INT16, INT32, INT64 };
enum { NO_KL, ELEMENTWISE, PER_SAMPLE, SUM, BATCHMEAN, PER_CHANNEL };
enum { SCALE_LOGVAR, SCALE_LOGSTD, SCALE_STD, SCALE_VAR, SCALE_SOFTPLUS };
enum { CLAMP_NONE, CLAMP_HARD, CLAMP_SOFT };
enum {
    BERNOULLI,
    CONTINUOUS_BERNOULLI,
    GAUSSIAN,
    LAPLACE,
    LOG_NORMAL,
    POISSON,
    NEGATIVE_BINOMIAL,
    ZERO_INFLATED,
    SCALED_BERNOULLI,
    MIXTURE
};

/* Coordinate d of row b stands at data[b * row + (d / inner_size) * outer + (d % inner_size) * inner]. */
typedef struct {
    void *data; /* NULL: the tensor takes no part */
    int64_t row, outer, inner;
    int64_t draw; /* from one draw to the next */
} strided;

/* Of a latent; latent_spec.py has the formulas. */
typedef struct {
    int32_t scale, clamp, residual;
    float low, high, floor, temperature, free_bits;
} options;

#define MOST_PARAMETERS 3 /* of a likelihood */

/* likelihood_spec.py has the formulas. */
typedef struct {
    int32_t kind;
    float low, high;
    int32_t components;
} likelihood;

/* What __init__.py packs of a LatentSpec and a LikelihoodSpec. */
typedef struct {
    int32_t reduction, scale, clamp, residual, free_bits; /* free_bits: whether they count */
    int32_t packed_dim; /* mu holds mu and scale as its halves along it; 0: it does not */
} latent_code;

typedef struct {
    int32_t kind, components, reduction, bounded; /* bounded: by Bounds */
} likelihood_code;

/* How a parameter comes from the outputs of a linear layer; GIVEN: it does not. */
enum { IDENTITY, EXP, SOFTPLUS, SOFTMAX, GIVEN };

/* What __init__.py packs of a HeadSpec. */
typedef struct {
    likelihood_code likelihood;
    int32_t activations[MOST_PARAMETERS], with_gradients;
} head_code;

/* Of a head (head.h), whose other fields are those of a likelihood. Numbers of rows, in one piece each. */
typedef struct {
    int32_t activations[MOST_PARAMETERS], with_gradients;
    const float *library, *grad; /* grad NULL: 1 for each row */
    float *log_prob, *of_library;
    float *scratch; /* of a softmax: twice an event's worth for each unit */
    int64_t rows_a_unit;
    int64_t x_rows; /* x has as many, and repeats for each draw; 0: it has all rows, as in other calls */
} head_fields;

/* A sum over the batch: one for each coordinate of the event, or one over everything. Each unit of work (see below)
   writes a partial sum. */
typedef struct {
    strided out; /* data NULL: not wanted */
    int dtype;
    int single;     /* one sum over everything */
    double divisor; /* of the sums */
    float *partial; /* an event's worth for each chunk of the batch; if single, a number for each unit */
} column_sums;

/* A sum over the event: one for each row. Each tile of a row writes a partial sum. */
typedef struct {
    strided out; /* data NULL: not wanted */
    int dtype;
    float *partial; /* (rows, tiles_a_row) */
} row_sums;

/* Indices of call.columns: the mean of the KL in latent_forward, the prior's gradients in latent_backward, and in
   likelihood_backward the gradients of all parameters but the first. */
enum { KL_MEAN = 0, OF_PRIOR_MU = 0, OF_PRIOR_SCALE, MOST_COLUMN_SUMS };
#define OF_PARAMETER(i) ((i) - 1)

typedef struct {
    int dtype;                  /* of latents; the KL, the log-probabilities and their gradients are float32 */
    int64_t rows, inner, event; /* event = outer size * inner size */
    uint64_t row_offset;
    const int64_t *seed; /* NULL: no noise is needed */
    uint32_t draw;       /* of the kernel of bare noise */
    int reduction;
    int64_t channels, channel_size; /* what the KL is summed over; without PER_CHANNEL the event is one channel */
    strided mu, scale, z, kl, grad_z, grad_kl, grad_mu, grad_scale;

    /* Latents. */
    options options;
    int64_t draws;
    strided prior_mu, prior_scale;           /* data NULL: N(0, I) */
    strided grad_prior_mu, grad_prior_scale; /* of a prior of mu's shape; of others they are column sums */
    strided grad_log_q, grad_log_p; /* one number for each row of each draw */
    float *log_q, *log_p; /* (draws, rows) */
    column_sums columns[MOST_COLUMN_SUMS];

    /* Likelihoods: log p takes the place of the KL. In a mixture, `draw` is the stride between channels, and `draws` the
       number of channels of the parameter. */
    likelihood likelihood;
    int64_t image_channels;
    strided x, parameters[MOST_PARAMETERS], grad_parameters[MOST_PARAMETERS];
    int x_dtype, parameter_dtypes[MOST_PARAMETERS];
    row_sums row_gradients[MOST_PARAMETERS]; /* of parameters with one number for each row */
    uint8_t *noticed;                        /* set to 1 if a value is outside the domain; NULL: nobody asks */
    head_fields head;

    /* A unit is what one thread computes at a time: tiles_a_unit tiles, one below the other. Where the draws are shared
       out among threads, each unit comes once for each share. */
    int64_t tile, rows_a_tile, tiles_a_row, tiles, tiles_a_unit, units, shares_of_draws;
    float *kl_slots, *log_q_slots, *log_p_slots; /* partial sums, see sums.h */
} call;

/* Computes units first..last-1. They are counted through the shares of the draws: all units of the first share, then
   those of the second. */
typedef void unit_range(const call *c, int64_t first, int64_t last);

typedef struct {
    const char *name;
    unit_range *noise, *latent_forward, *latent_backward, *likelihood_forward, *likelihood_backward, *head;
    void (*finish_columns)(const call *c), (*finish_rows)(const call *c);
    void (*words)(const int64_t *counter, int64_t n, uint64_t seed, int64_t *word);
} instruction_set;

extern const instruction_set isa_x86_64_v4, isa_x86_64_v3, isa_aarch64;

#endif
