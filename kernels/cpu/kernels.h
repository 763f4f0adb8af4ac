/* All that is compiled once per instruction set. The includer defines LANES and ISA_NAME, see simd.h. */
#include "simd.h"
#include "vector_math.h"
#include "philox.h"
#include "tiles.h"
#include "noise.h"
#include "sums.h"
#include "parameterisation.h"
#include "standard_prior.h"
#include "elementwise_prior.h"
#include "fast_path.h"
#include "resolve.h"
#include "latent_forward.h"
#include "latent_backward.h"
#include "special.h"
#include "counts.h"
#include "mixture.h"
#include "scaled_bernoulli.h"
#include "domains.h"
#include "likelihoods.h"
#include "head.h"

#define KERNELS                                                                                               \
    ISA_NAME(noise), ISA_NAME(latent_forward), ISA_NAME(latent_backward), ISA_NAME(likelihood_forward),       \
        ISA_NAME(likelihood_backward), ISA_NAME(head), ISA_NAME(finish_columns), ISA_NAME(finish_rows),       \
        ISA_NAME(words)
