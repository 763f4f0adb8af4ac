/* What one call of a kernel is: its tensors, its shape, and how it is cut into tiles. Shared by every instruction set. */
#ifndef FASTVAE_CALL_H
#define FASTVAE_CALL_H

#include <stdint.h>
#include <string.h>

/* Coordinates a tile holds: the float32 arrays of a tile (4 KiB each) stay in the first-level cache.
   A tile is several whole rows, or a piece of one long row; where tiles begin depends on the shape alone, so that sums
   come out the same whatever the number of threads. */
#define TILE 1024

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { NO_KL, ELEMENTWISE, PER_SAMPLE, SUM, BATCHMEAN };

/* Coordinate d of row b stands at data[b * row + (d / inner_size) * outer + (d % inner_size) * inner]. */
typedef struct {
    void *data; /* NULL: the tensor takes no part */
    int64_t row, outer, inner;
} strided;

typedef struct {
    int dtype;                  /* of all tensors but the KL and its gradient, which are float32 */
    int64_t rows, inner, event; /* event = outer size * inner size */
    uint64_t row_offset;
    const int64_t *seed; /* NULL: no noise is needed */
    int reduction;
    strided mu, logvar, z, kl, grad_z, grad_kl, grad_mu, grad_logvar;
    int64_t rows_a_tile, tiles_a_row, tiles;
    float *tile_kl; /* one sum per row and tile of it, in order */
} call;

/* Work through tiles first..last-1. */
typedef void tile_range(const call *c, int64_t first, int64_t last);

typedef struct {
    const char *name;
    tile_range *forward, *backward;
    void (*words)(const int64_t *counter, int64_t n, uint64_t seed, int64_t *word);
} instruction_set;

extern const instruction_set isa_x86_64_v4, isa_x86_64_v3, isa_aarch64;

#endif
