"""Small faults for the kernels, each of which the driver `check.c` must notice: the proof that its checks are tight.

A fault is a change of text in a copy of one file. Constants are found by their looks; the others are written out here,
and one that no longer fits the text is an error: it wants to be written anew.
"""

from __future__ import annotations

from .fault import Fault, constants
from .head_faults import HEAD_FAULTS
from .likelihood_faults import LIKELIHOOD_FAULTS

ONE_TOO_MANY_OR_TOO_FEW = (
    Fault("tiles.h", "store_first(to, value, count);", "store(to, value);"),
    Fault("tiles.h", "store_first(to, value, count);", "store_first(to, value, count - 1);"),
    Fault("tiles.h", ": load_first(from, count);", ": load_first(from, count - 1);"),
    Fault(
        "tiles.h", "memcpy(&bits, from + i, sizeof(uint16_t) * (size_t)(n - i))", "memcpy(&bits, from + i, sizeof bits)"
    ),
    Fault("tiles.h", "memcpy(to + i, &bits, sizeof(uint16_t) * (size_t)(n - i))", "memcpy(to + i, &bits, sizeof bits)"),
    Fault("tiles.h", "for (; i < n; i++) {\n        to[i]", "for (; i <= n; i++) {\n        to[i]"),
    Fault("tiles.h", "rest < c->tile ? rest : c->tile", "rest < c->tile ? rest - 1 : c->tile"),
    Fault("tiles.h", "rest < c->rows_a_tile ? rest", "rest < c->rows_a_tile ? rest - 1"),
    Fault("tiles.h", "if (vector_start < (n)) function", "if (0) function"),
    Fault("run.h", "(a + b - 1) / b", "a / b"),
    Fault("run.h", "rounded_up(c->event, c->tile)", "rounded_up(c->event + 1, c->tile)"),
    Fault("threads.h", "units * (rank + 1) / size", "units * rank / size"),
    Fault("sums.h", "lanes_below + LANES - (n - i)", "lanes_below + LANES - (n - i) + 1"),
    Fault("sums.h", "return end < c->tiles ? end : c->tiles;", "return end;"),
    Fault("sums.h", "heights = c->units / c->tiles_a_row;", "heights = c->units / c->tiles_a_row - 1;"),
)

# Whole vectors are written and read behind a tile: its buffers must have room for them.
TOO_SMALL_A_BUFFER = (
    Fault("noise.h", "#define NOISE_SLACK (4 * GROUP)", "#define NOISE_SLACK 0"),
    Fault("noise.h", "padded[4 * TILE + NOISE_SLACK]", "padded[4 * TILE]"),
    Fault("noise.h", "early[TILE / COUNTERS]", "early[TILE / COUNTERS - 1]"),
    Fault("fast_path.h", ", kl[TILE + LANES]", ", kl[TILE]"),
    Fault("fast_path.h", "grad_kl[TILE + LANES]", "grad_kl[TILE]"),
    Fault("latent_forward.h", "buffer[TILE + LANES]", "buffer[TILE]"),
    Fault("latent_forward.h", ", log_q[TILE + LANES]", ", log_q[TILE]"),
    Fault("latent_backward.h", "buffer[TILE + LANES]", "buffer[TILE]"),
    Fault("latent_backward.h", "grad_log_p[TILE + LANES]", "grad_log_p[TILE]"),
    Fault("run.h", "c->rows * (c->channels + c->tiles_a_row - 1) : 0", "c->rows : 0"),
    Fault("run.h", "slots = c->draws * c->rows * c->tiles_a_row;", "slots = c->rows * c->tiles_a_row;"),
    Fault("run.h", "c->units / c->tiles_a_row * c->event : 0", "c->event : 0"),
    Fault("run.h", "if (c->kl_slots != c->kl.data) free(c->kl_slots);", ""),
    Fault("run.h", "free(c->columns[i].partial);", ";"),
)

WRONG_PLACE = (
    Fault(
        "tiles.h",
        "int64_t base = (tl.row + r) * t->row + tl.start;\n            float *to",
        "int base = (int)((tl.row + r) * t->row + tl.start);\n            float *to",
    ),
    Fault(
        "tiles.h",
        "int64_t base = tl.row * t->row + tl.start;\n        if (t->row != c->event && tl.count == c->event) "
        "fetch_ahead(t, dtype, tl, base, tl.count);\n        return (float *)",
        "int base = (int)(tl.row * t->row + tl.start);\n        return (float *)",
    ),
    Fault(
        "sums.h", "store_some(sums + r, sum_lanes_of_each(parts), many);", "store(sums + r, sum_lanes_of_each(parts));"
    ),
    Fault("sums.h", "parts[k] = parts_of_sum(terms + (r + k) * n, n);", "parts[k] = parts_of_sum(terms + r * n, n);"),
    Fault("simd.h", "c = add_down_to_fours(v + 2)", "c = add_down_to_fours(v)"),
    Fault("tiles.h", "(t->inner == 1 || c->inner == 1) && ", ""),
    Fault("tiles.h", "tl.rows == 1 || t->row == c->event", "1"),
    Fault("noise.h", "s.row >> 32, splat64(draw)", "splat64(0), splat64(draw)"),
    Fault("noise.h", "s.row >> 32, splat64(draw)", "s.row >> 32, splat64(0)"),
    Fault("noise.h", "s.row >> 32, MULTIPLIER1", "splat64(0), MULTIPLIER1"),
    Fault("noise.h", "early->of_quad ^ splat64(draw)", "early->of_quad"),
    Fault("noise.h", " && kept->row == row", ""),
    Fault("noise.h", "noise->key.k1[0] ^ splat64(draw)", "noise->key.k1[0]"),
    Fault("noise.h", "(row >> 32) * MULTIPLIER1", "0 * MULTIPLIER1"),
    Fault("noise.h", "column->count == count && column->start == start", "column->count == count"),
    Fault("noise.h", " && column->draw == draw", ""),
    Fault("sums.h", "t.start / c->tile + stretch", "stretch"),
    Fault("sums.h", "t.start / c->tile + stretch", "t.start / c->tile"),
    Fault("sums.h", "values->row + stretch * values->inner", "values->row"),
    Fault("sums.h", "value += values->inner;", ""),
    Fault("sums.h", "(t.row + r) * values->row", "t.row * values->row"),
    Fault("sums.h", "s->partial[height * width + start + d]", "s->partial[height * width + d]"),
    Fault("sums.h", "c->event + t.start;", "c->event;"),
    Fault("sums.h", "sum[d] += tiles[r * t.count + d]", "sum[d] += tiles[d]"),
    Fault("resolve.h", " && last.start == t.start", ""),
    Fault("resolve.h", "last.rows >= t.rows", "last.rows > 0"),
    Fault("resolve.h", "shared = c->prior_mu.row == 0 && c->prior_scale.row == 0", "shared = c->prior_mu.row == 0"),
    Fault("resolve.h", "shared = c->prior_mu.row == 0 && c->prior_scale.row == 0", "shared = c->prior_scale.row == 0"),
    Fault("tiles.h", "k * t.draw", "0 * t.draw"),
    Fault("latent_forward.h", "to = at_draw(c->z, c->dtype, k)", "to = c->z"),
    Fault("latent_forward.h", "c->log_p_slots + k * sums", "c->log_p_slots"),
    Fault("latent_forward.h", "end = c->draws * (share + 1)", "end = c->draws"),
    Fault("latent_forward.h", "vf log_p = drawn * drawn;", "vf log_p = step * step;"),
    Fault("latent_forward.h", "unit = i % c->units", "unit = i"),
    Fault("threads.h", "units = team->c->units * team->c->shares_of_draws", "units = team->c->units"),
    Fault("latent_backward.h", "from = at_draw(c->grad_z, c->dtype, k)", "from = c->grad_z"),
    Fault("latent_backward.h", "from = at_draw(c->grad_log_p, FLOAT32, k)", "from = c->grad_log_p"),
)

# Gives the right bits all the same, on most processors: only UndefinedBehaviorSanitizer objects.
UNDEFINED = (
    Fault("simd.h", "{ memcpy(to, &value, sizeof value); }", "{ *(vf *)to = value; }"),
    Fault("noise.h", "row + (uint64_t)r,", "(uint64_t)((int64_t)row + r),"),
)

WRONG_ARITHMETIC = (
    Fault("simd.h", "bits + 0x7fff", "bits + 0x8000"),
    Fault("simd.h", "(is_nan & quiet) | ", ""),
    Fault("sums.h", "c->reduction == BATCHMEAN ? (float)c->rows : 1.0f", "1.0f"),
    Fault("sums.h", "c->reduction == BATCHMEAN ? (float)c->rows : 1.0f", "(float)c->rows"),
    Fault("sums.h", "sum[d] / s->divisor", "sum[d]"),
    Fault("run.h", "(float)(total / (double)c->rows)", "(float)total"),
    Fault("run.h", "(double)c->event * log_2_pi", "0.0"),
    Fault("run.h", "i * c->tile < end", "i * c->tile + c->tile < end"),
    Fault("vector_math.h", "choose(small, p.m * p.m + (p.m + p.m), variance_less_1)", "variance_less_1"),
    Fault(
        "vector_math.h",
        "choose(small, p.m * p.m + (p.r2q + p.r2q), variance_less_1 - logvar)",
        "variance_less_1 - logvar",
    ),
    Fault("vector_math.h", "f = choose(equal_integers(exponent, (vi){0} + 32), below_1, f);", ""),
    Fault("vector_math.h", "splat(0.625f)", "splat(1.25f)"),
    Fault("vector_math.h", "choose(equal(x, splat(infinity)), x, l.n", "choose(equal(x, splat(infinity)), value, l.n"),
    Fault("philox.h", "#define ROUNDS 10", "#define ROUNDS 9"),
    Fault("parameterisation.h", "less_or_equal(splat(o->low), raw) & ", ""),
    Fault("parameterisation.h", "less_or_equal(splat(o->low), raw)", "less(splat(o->low), raw)"),
    Fault("parameterisation.h", " & less_or_equal(raw, splat(o->high))", ""),
    Fault("parameterisation.h", "less_or_equal(raw, splat(o->high))", "less(raw, splat(o->high))"),
    Fault("parameterisation.h", "std = softplus_of(x) + o->floor", "std = softplus_of(x)"),
    Fault(
        "parameterisation.h", "exponentials_of_std(softplus_of(x) + o->floor)", "exponentials_of_std(softplus_of(x))"
    ),
    Fault("fast_path.h", "(o->clamp == CLAMP_NONE || (o->clamp == CLAMP_HARD && o->scale == SCALE_LOGVAR))", "1"),
    Fault("fast_path.h", "&& o->scale == SCALE_LOGVAR", ""),
    Fault("fast_path.h", "if (!c->prior_mu.data)\n", "if (1)\n"),
    Fault("fast_path.h", "c->draws == 1 && ", ""),
    Fault("fast_path.h", "o->free_bits == 0.0f && ", ""),
    Fault("fast_path.h", "!c->log_q &&", "1 &&"),
    Fault("fast_path.h", "!c->grad_log_q.data && ", ""),
    Fault("fast_path.h", "!c->columns[KL_MEAN].out.data", "1"),
    Fault("fast_path.h", "c->prior_mu.row && c->prior_scale.row", "c->prior_mu.row"),
    Fault("fast_path.h", "!o->residual && ", ""),
    Fault("fast_path.h", "!o->residual && o->clamp == CLAMP_NONE", "!o->residual"),
    Fault(
        "standard_prior.h",
        "(load_some(a.eps + i, count) * o->temperature), count);",
        "load_some(a.eps + i, count), count);",
    ),
    Fault("standard_prior.h", "(load_some(a.eps + i, count) * o->temperature);", "load_some(a.eps + i, count);"),
    Fault("standard_prior.h", "if (clamp != CLAMP_NONE) grad_scale =", "if (0) grad_scale ="),
    Fault("standard_prior.h", "through_logvar(0.5f * grad_kl", "through_logvar(grad_kl"),
    Fault(
        "elementwise_prior.h",
        "q.std * (load_some(a.eps + i, count) * o->temperature)",
        "q.std * load_some(a.eps + i, count)",
    ),
    Fault("elementwise_prior.h", "q.std, scale) * (load_some(a.eps + i, count) * o->temperature);", "q.std, scale);"),
    Fault("elementwise_prior.h", "-(of_ratio + 0.5f * of_difference * difference)", "-of_ratio"),
    Fault("elementwise_prior.h", "of_ratio = 0.5f * grad_kl", "of_ratio = grad_kl"),
    Fault("elementwise_prior.h", "grad_mu += grad_z;", ""),
    Fault("elementwise_prior.h", "through_logvar(of_prior_logvar, prior_x, p.std, scale, o)", "of_prior_logvar"),
    Fault("resolve.h", "c->mu.data ? read_tile", "1 ? read_tile"),
    Fault("latent_backward.h", "c->grad_mu.data ? begin_tile", "1 ? begin_tile"),
    Fault("latent_backward.h", "if (c->grad_mu.data) write_tile(c, &c->grad_mu", "write_tile(c, &c->grad_mu"),
    Fault("latent_backward.h", "(c->grad_z.data && !c->prior_mu.data)", "c->grad_z.data"),
    Fault("latent_backward.h", "(c->grad_kl.data || (c->grad_z.data && !c->prior_mu.data))", "1"),
    Fault("vector_math.h", "l.f * l.f + l.curve", "l.curve"),
    Fault("vector_math.h", "0.5f * l.curve, far", "l.curve, far"),
    Fault("vector_math.h", "nan_if_negative(std, (std - 1.0f) * (std + 1.0f))", "(std - 1.0f) * (std + 1.0f)"),
    Fault("vector_math.h", "nan_if_negative(variance, variance - 1.0f)", "variance - 1.0f"),
    Fault(
        "parameterisation.h",
        "case SCALE_LOGSTD: return exponentials_of(x + x);",
        "case SCALE_LOGSTD: return exponentials_of(x);",
    ),
    Fault("latent_forward.h", "eps * eps + load_some(a.logvar + i, count)", "eps * eps"),
    Fault("latent_forward.h", "load(a.eps + i) * a.temperature", "load(a.eps + i)"),
    Fault("latent_backward.h", "load(a.eps + i) * a.temperature", "load(a.eps + i)"),
    Fault("latent_backward.h", "of_drawn -= toward_prior;", ""),
    Fault("latent_backward.h", "-(of_ratio + 0.5f * of_difference * difference)", "-of_ratio"),
    Fault("latent_backward.h", "less_or_equal(splat(free_bits), kl)", "less_or_equal(splat(0.0f), kl)"),
    Fault(
        "latent_backward.h",
        "add_vector, of_prior_mu, to.mu, of_prior_mu);",
        "add_vector, of_prior_mu, std, of_prior_mu);",
    ),
    Fault("latent_backward.h", "of_prior_scale, grad_scale, of_prior_scale)", "of_prior_scale, std, of_prior_scale)"),
    Fault("resolve.h", "add_vector, raw, raw, b->ratio", "subtract_vector, raw, raw, b->ratio"),
)


FAULTS = (
    *ONE_TOO_MANY_OR_TOO_FEW,
    *TOO_SMALL_A_BUFFER,
    *WRONG_PLACE,
    *UNDEFINED,
    *WRONG_ARITHMETIC,
    *constants("vector_math.h", r"\b(?!0\.0f)\d+\.\d+(e-\d+)?f", "(0.5f * {})"),
    *constants("vector_math.h", r"\b0x1p-\d+f", "(0.5f * {})"),
    *constants("parameterisation.h", r"\b(?!0\.0f)\d+\.\d+f", "(0.5f * {})"),
    *constants("philox.h", r"\b0x[0-9A-F]{8}u", "({} ^ 2u)"),
    *LIKELIHOOD_FAULTS,
    *HEAD_FAULTS,
)
