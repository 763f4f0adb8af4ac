/* Fast path of latents: prior N(0, I), one draw, no options but a scale, a temperature and a clamp of logvar.

     z  = mu + std eps                            kl = 1/2 (mu^2 + expm1(logvar) - logvar)
     d mu = g_z + g_kl mu                         d std = g_z eps,  d logvar = 1/2 g_kl expm1(logvar)

   Everything between load and store stays in registers; fast_path.h has the loops. */

/* function(scale, clamp, ...) for each vector of n elements, scale and clamp as constants. */
#define EACH_STANDARD_VECTOR(o, n, function, ...)                      \
    if ((o)->clamp == CLAMP_NONE)                                      \
        EACH_VECTOR_OF_SCALE(o, n, function, CLAMP_NONE, __VA_ARGS__)  \
    else                                                               \
        EACH_VECTOR(n, function, SCALE_LOGVAR, CLAMP_HARD, __VA_ARGS__)

/* A scale as it was given, clamped, and what the ops need of it. */
typedef struct {
    vf raw, x;
    exponentials of;
} resolved;

ALWAYS_INLINE resolved resolve_vector(int scale, int clamp, const options *o, vf raw) {
    vf x = clamp == CLAMP_NONE ? raw : clamped(raw, clamp, o);
    exponentials e = of_scale(x, scale, o);
    return (resolved){raw, x, e};
}

/* A tile of what the loops of fast_path.h read and write. */
typedef struct {
    const float *grad_z, *grad_kl, *mu, *scale, *prior_mu, *prior_scale, *eps;
    float *z, *kl, *grad_mu, *grad_scale, *grad_prior_mu, *grad_prior_scale;
    int64_t ahead;
} fast_arrays;

ALWAYS_INLINE void forward_vector(int scale, int clamp, int with_z, int with_kl, const options *o, fast_arrays a,
                                  int64_t i, int64_t count) {
    vf mu = load_some(a.mu + i, count);
    resolved r = resolve_vector(scale, clamp, o, load_some(a.scale + i, count));
    if (with_z) store_some(a.z + i, mu + r.of.std * (load_some(a.eps + i, count) * o->temperature), count);
    if (with_kl) store_some(a.kl + i, (mu * mu + r.of.expm1_less) * 0.5f, count);
}

ALWAYS_INLINE void backward_vector(int scale, int clamp, int with_z, int with_kl, const options *o, fast_arrays a,
                                   int64_t i, int64_t count) {
    resolved r = resolve_vector(scale, clamp, o, load_some(a.scale + i, count));
    vf grad_mu = {0}, grad_scale = {0};
    if (with_z) {
        grad_mu = load_some(a.grad_z + i, count);
        grad_scale = through_std(grad_mu, r.x, r.of.std, scale) * (load_some(a.eps + i, count) * o->temperature);
    }
    if (with_kl) {
        vf grad_kl = load_some(a.grad_kl + i, count);
        grad_mu += grad_kl * load_some(a.mu + i, count);
        grad_scale += through_logvar(0.5f * grad_kl * r.of.expm1, r.x, r.of.std, scale, o);
    }
    if (clamp != CLAMP_NONE) grad_scale = clamp_gradient_of(grad_scale, r.raw, clamp, o);
    if (a.grad_mu) store_some(a.grad_mu + i, grad_mu, count);
    store_some(a.grad_scale + i, grad_scale, count);
}
