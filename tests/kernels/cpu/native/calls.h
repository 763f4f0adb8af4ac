/* One call of a kernel on fresh tensors, with every number of threads, and the comparison of all it wrote. */
#ifndef CALLS_H
#define CALLS_H

#include "problems.h"

static int most_threads = 3;

/* Whether z and its gradient take part, and which KL does. */
typedef struct {
    int with_z, reduction;
} kind;

static const char *const reduction_names[] = {"without kl", "none", "sample", "sum", "batchmean", "channel"};
static const char *const dtype_names[] = {"float32", "bfloat16", "float16", "uint8",
                                          "int8",    "int16",    "int32",   "int64"};

static int far_rows, calls_on_threads;

/* Layouts take turns: in the first LAYOUTS turns all tensors of a call have the same one, then the second tensor's is
   one further than the first's, then two ... until every pair has met. */
static int64_t turn;

static int layout_in_turn(shape s, int index, int layouts) {
    int layout = (int)((turn + index * (turn / LAYOUTS)) % LAYOUTS);
    if (layout == FAR_ROWS && (!far_rows || s.rows != 2)) return HALVES;
    return layout < layouts ? layout : DENSE;
}

static tensor input(shape s, int dtype, int index) { return new_tensor(s, dtype, layout_in_turn(s, index, LAYOUTS)); }
static tensor output(shape s, int dtype, int index) {
    return new_tensor(s, dtype, layout_in_turn(s, index, EXPANDED_ROWS));
}

static shape shape_of_kl(shape s, int reduction) {
    if (reduction == ELEMENTWISE) return s;
    if (reduction == PER_CHANNEL) return (shape){s.rows, s.outer, 1};
    return (shape){reduction == PER_SAMPLE ? s.rows : 1, 1, 1};
}

static call call_of(const problem *p, const int64_t *seed, kind k) {
    return (call){
        .dtype = p->dtype,
        .rows = p->shape.rows,
        .inner = p->shape.inner,
        .event = event_of(p->shape),
        .row_offset = p->row_offset,
        .seed = seed,
        .reduction = k.reduction,
        .options = {.temperature = 1.0f},
        .channels = 1,
        .channel_size = event_of(p->shape),
    };
}

static void describe(const char *direction, const problem *p, kind k, tensor *const *tensors, int how_many) {
    int end = snprintf(subject, sizeof subject, "%s %s %lldx(%lldx%lld) %s%s, %s z, kl %s; layouts", isa->name,
                       direction, (long long)p->shape.rows, (long long)p->shape.outer, (long long)p->shape.inner,
                       dtype_names[p->dtype], p->extreme ? " extreme" : "", k.with_z ? "with" : "without",
                       reduction_names[k.reduction]);
    for (int i = 0; i < how_many; i++)
        if (tensors[i]->block)
            end += snprintf(subject + end, sizeof subject - (size_t)end, ", %s", layout_names[tensors[i]->layout]);
}

#define MOST_OUTPUTS 5

/* What kernels read of their buffers and have not written must not be what the last call left there: NaN are. */
static __attribute__((noinline)) void scribble(void) {
    unsigned char stack[200000];
    memset(stack, 0xff, sizeof stack);
    __asm__ volatile("" : : "r"(stack) : "memory");
}

static void scribble_on_stacks(int threads) {
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#else
    (void)threads;
#endif
    scribble();
}

/* Runs the call on one thread and, where it is large enough to be shared out, on more: the bits must be the same. */
static void run(call *c, unit_range *work, int how_many, tensor *const *outputs) {
    int64_t draws = c->draws > 1 ? c->draws : 1;
    int large = have_threads() && c->rows * c->event * draws >= ELEMENTS_WORTH_THREADS;
    unsigned char *alone[MOST_OUTPUTS] = {NULL};
    for (int threads = 1; threads <= (large ? most_threads : 1); threads++) {
        for (int i = 0; i < how_many; i++)
            if (outputs[i]->block && !is_far(outputs[i])) poison(outputs[i]);
        scribble_on_stacks(threads);
        if (!run_call(c, work, threads)) fail("no memory for the sums");
        calls_on_threads += threads > 1;
        for (int i = 0; large && i < how_many; i++) {
            size_t bytes = outputs[i]->block && !is_far(outputs[i]) ? bytes_of_block(outputs[i]) : 0;
            if (threads == 1 && bytes > 0) {
                alone[i] = malloc(bytes);
                memcpy(alone[i], outputs[i]->block, bytes);
            } else if (bytes > 0 && memcmp(alone[i], outputs[i]->block, bytes) != 0) {
                fail("%d threads give other bits than one", threads);
            }
        }
    }
    for (int i = 0; i < how_many; i++) free(alone[i]);
}

#define FOR_EACH_ELEMENT(p, row, d)                     \
    for (int64_t row = 0; row < (p)->shape.rows; row++) \
        for (int64_t d = 0; d < event_of((p)->shape); d++)

static double eps_at(const problem *p, int64_t row, int64_t d) { return p->eps[row * event_of(p->shape) + d]; }

static void check_noise(const problem *p) {
    kind noise = {1, NO_KL};
    tensor z = output(p->shape, p->dtype, 0);
    int64_t *seed = malloc(sizeof *seed);
    *seed = p->seed;
    call c = call_of(p, seed, noise);
    c.draw = p->draw;
    c.z = z.view;
    describe("noise", p, noise, (tensor *const[]){&z}, 1);
    run(&c, isa->noise, 1, (tensor *const[]){&z});
    FOR_EACH_ELEMENT(p, row, d) {
        double eps = eps_at(p, row, d);
        expect(&z, NOISE, row, d, eps, EPS * (1.0 + fabs(eps)));
    }
    expect_nothing_else(&z, NOISE);
    free_tensor(&z);
    free(seed);
}

static void check_sums(const problem *p, tensor *kl, int reduction, const double *sums) {
    double total = 0.0;
    for (int64_t row = 0; row < p->shape.rows; row++) {
        if (reduction == PER_SAMPLE) expect(kl, KL_SUM, row, 0, sums[row], nearly(sums[row], ROW_SUM));
        total += sums[row];
    }
    if (reduction == BATCHMEAN) total /= (double)p->shape.rows;
    if (reduction == SUM || reduction == BATCHMEAN) expect(kl, KL_SUM, 0, 0, total, nearly(total, ROW_SUM));
}

static void check_forward(const problem *p, kind k) {
    tensor mu = input(p->shape, p->dtype, 0), logvar = input(p->shape, p->dtype, 1), z = {0}, kl = {0};
    if (k.with_z) z = output(p->shape, p->dtype, 2);
    if (k.reduction == ELEMENTWISE)
        kl = output(p->shape, FLOAT32, 3);
    else if (k.reduction != NO_KL)
        kl = new_tensor(shape_of_kl(p->shape, k.reduction), FLOAT32, DENSE);
    fill_mu(&mu, p);
    fill_logvar(&logvar, p);
    int64_t *seed = k.with_z ? malloc(sizeof *seed) : NULL;
    if (seed) *seed = p->seed;
    call c = call_of(p, seed, k);
    c.mu = mu.view;
    c.scale = logvar.view;
    c.z = z.view;
    c.kl = kl.view;
    describe("forward", p, k, (tensor *const[]){&mu, &logvar, &z, &kl}, 4);
    run(&c, isa->latent_forward, 2, (tensor *const[]){&z, &kl});
    double *sums = calloc((size_t)p->shape.rows + 1, sizeof *sums);
    FOR_EACH_ELEMENT(p, row, d) {
        double m = get(&mu, row, d);
        exact_scale s = exact_scale_of(get(&logvar, row, d));
        if (k.with_z) {
            drawn part = drawn_part(s.std, eps_at(p, row, d));
            expect(&z, Z, row, d, m + part.value, part.tolerance + nearly(fabs(m) + fabs(part.value), 2 * ROUNDING));
        }
        double exact_kl = as_float(0.5 * (as_float(m * m) + s.expm1_less));
        if (k.reduction == ELEMENTWISE) expect(&kl, KL, row, d, exact_kl, nearly(exact_kl, EXPM1));
        sums[row] += exact_kl;
    }
    check_sums(p, &kl, k.reduction, sums);
    if (k.with_z) expect_nothing_else(&z, Z);
    if (k.reduction != NO_KL) expect_nothing_else(&kl, KL);
    tensor *const all[] = {&mu, &logvar, &z, &kl};
    for (int i = 0; i < 4; i++) free_tensor(all[i]);
    free(sums);
    free(seed);
}

static tensor gradient_of_kl(shape s, int reduction) {
    shape of_kl = shape_of_kl(s, reduction);
    if (reduction == SUM || reduction == BATCHMEAN) return new_tensor(of_kl, FLOAT32, DENSE);
    return input(of_kl, FLOAT32, 5);
}

static strided view_of_grad_kl(const tensor *grad_kl, int reduction) {
    strided view = grad_kl->view;
    if (reduction == SUM || reduction == BATCHMEAN) view.row = 0;
    if (reduction != ELEMENTWISE) view.inner = reduction == PER_CHANNEL ? view.outer : 0;
    return view;
}

/* What the gradient of the KL is for one coordinate. */
static double grad_kl_at(const problem *p, const tensor *grad_kl, int reduction, int64_t row, int64_t d) {
    if (reduction == ELEMENTWISE) return get(grad_kl, row, d);
    if (reduction == PER_SAMPLE) return get(grad_kl, row, 0);
    if (reduction == PER_CHANNEL) return get(grad_kl, row, d / p->shape.inner);
    return get(grad_kl, 0, 0) / (reduction == BATCHMEAN ? (double)p->shape.rows : 1.0);
}

static void check_backward(const problem *p, kind k) {
    tensor logvar = input(p->shape, p->dtype, 0), grad_logvar = output(p->shape, p->dtype, 1);
    tensor mu = {0}, grad_mu = {0}, grad_z = {0}, grad_kl = {0};
    int with_kl = k.reduction != NO_KL;
    fill_logvar(&logvar, p);
    int64_t *seed = k.with_z ? malloc(sizeof *seed) : NULL;
    if (k.with_z) {
        *seed = p->seed;
        grad_z = input(p->shape, p->dtype, 2);
        fill_gradient(&grad_z, p);
    }
    if (with_kl) {
        mu = input(p->shape, p->dtype, 3);
        grad_mu = output(p->shape, p->dtype, 4);
        grad_kl = gradient_of_kl(p->shape, k.reduction);
        fill_mu(&mu, p);
        fill_gradient(&grad_kl, p);
    }
    call c = call_of(p, seed, k);
    c.grad_z = grad_z.view;
    c.grad_kl = view_of_grad_kl(&grad_kl, k.reduction);
    c.mu = mu.view;
    c.scale = logvar.view;
    c.grad_mu = grad_mu.view;
    c.grad_scale = grad_logvar.view;
    describe("backward", p, k, (tensor *const[]){&logvar, &grad_logvar, &grad_z, &mu, &grad_mu, &grad_kl}, 6);
    run(&c, isa->latent_backward, 2, (tensor *const[]){&grad_mu, &grad_logvar});
    FOR_EACH_ELEMENT(p, row, d) {
        exact_scale s = exact_scale_of(get(&logvar, row, d));
        double of_mu = 0.0, of_mu_size = 0.0, of_logvar = 0.0, tolerance = 0.0;
        if (k.with_z) {
            double g = get(&grad_z, row, d);
            drawn part = drawn_part(s.std, eps_at(p, row, d));
            of_mu = g;
            of_mu_size = fabs(g);
            of_logvar = as_float(g * s.std) * eps_at(p, row, d);
            tolerance = fabs(g) * part.tolerance + nearly(of_logvar, 2 * ROUNDING);
        }
        if (with_kl) {
            double g = grad_kl_at(p, &grad_kl, k.reduction, row, d), from_mu = g * get(&mu, row, d);
            of_mu += from_mu;
            of_mu_size += fabs(from_mu);
            of_logvar += g * s.expm1;
            tolerance += fabs(g) * nearly(s.expm1, EXPM1) + nearly(fabs(of_logvar) + fabs(g * s.expm1), ROUNDING);
            expect(&grad_mu, GRAD_MU, row, d, as_float(of_mu), nearly(of_mu_size, 3 * ROUNDING));
        }
        expect(&grad_logvar, GRAD_LOGVAR, row, d, 0.5 * as_float(of_logvar), 0.5 * tolerance + 4 * SMALLEST);
    }
    expect_nothing_else(&grad_logvar, GRAD_LOGVAR);
    if (with_kl) expect_nothing_else(&grad_mu, GRAD_MU);
    tensor *const all[] = {&logvar, &grad_logvar, &grad_z, &mu, &grad_mu, &grad_kl};
    for (int i = 0; i < 6; i++) free_tensor(all[i]);
    free(seed);
}

#endif
