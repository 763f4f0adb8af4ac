"""Small faults for the kernels of the likelihoods; faults.py has the others and says what they are for."""

from __future__ import annotations

from .fault import Fault, constants

ONE_TOO_MANY_OR_TOO_FEW = (
    Fault("tiles.h", "    return load_some(from + i, count);\n", "    return load(from + i);\n"),
    Fault("special.h", "n - i < LANES ? n - i : LANES", "LANES"),
    Fault("counts.h", "i < s->found; i++) to[i]", "i + 1 < s->found; i++) to[i]"),
    Fault("counts.h", "index[TILE + LANES]", "index[TILE - LANES]"),
    Fault("counts.h", "float first[TILE], second[TILE]", "float first[TILE - LANES], second[TILE]"),
    Fault("counts.h", "third[TILE]", "third[TILE - LANES]"),
    Fault("likelihoods.h", "grad[TILE + LANES]", "grad[TILE]"),
    Fault("likelihoods.h", "terms[TILE + LANES]", "terms[TILE]"),
    Fault("mixture.h", "float largest[TILE], sum[TILE]", "float largest[TILE], sum[TILE / 2]"),
)

WRONG_PLACE = (
    Fault("tiles.h", "[i * stride]", "[i]"),
    Fault("tiles.h", "dtype, t->inner, length, to)", "dtype, 1, length, to)"),
    Fault("tiles.h", "{4, 2, 2, 1, 1, 2, 4, 8}", "{4, 2, 2, 1, 1, 2, 4, 4}"),
    Fault("tiles.h", "CONVERT_INTEGERS(uint8_t)", "CONVERT_INTEGERS(int8_t)"),
    Fault("tiles.h", "CONVERT_INTEGERS(int16_t)", "CONVERT_INTEGERS(uint16_t)"),
    Fault("tiles.h", "CONVERT_INTEGERS(int64_t)", "CONVERT_INTEGERS(int32_t)"),
    Fault("counts.h", "put_lanes(~zeros, i,", "put_lanes(~zeros, 0,"),
    Fault("counts.h", "to[s->index[i]] = from[i]", "to[i] = from[i]"),
    Fault("counts.h", "gather(in->parameters[2], s,", "gather(in->parameters[1], s,"),
    Fault("counts.h", "gather(in->grad, &s, s.grad);", "gather(in->x, &s, s.grad);"),
    Fault("likelihoods.h", "c->parameter_dtypes[i], t, buffers", "c->parameter_dtypes[0], t, buffers"),
    Fault("likelihoods.h", "memset(sums[i], 0, sizeof sums[i])", "memset(sums[i], 0, LANES)"),
    Fault("likelihoods.h", "i ? sums[OF_PARAMETER(i)] : NULL", "i ? sums[0] : NULL"),
    Fault("likelihoods.h", "unit, sums[i])", "unit, sums[0])"),
    Fault("likelihoods.h", "index < end_of_tiles(c, unit)", "index < first_tile(c, unit) + 1"),
    Fault("likelihoods.h", "(i > 0 && c->columns[OF_PARAMETER(i)].out.data)", "0"),
    Fault("likelihoods.h", "sum_tile(c, t, terms, c->channel_size,", "sum_tile(c, t, terms, c->event,"),
    Fault("mixture.h", "c->image_channels == 3 ? 3 : 2", "2"),
    Fault("mixture.h", "at_draw(c->x, c->x_dtype, channel)", "at_draw(c->x, c->x_dtype, 0)"),
    Fault("mixture.h", "load_some(p->y[1] + i, count);\n}", "load_some(p->y[0] + i, count);\n}"),
    Fault("mixture.h", "begin_sum(joint, n);", "begin_sum(of_logits, n);"),
)

WRONG_BOUND = (
    Fault("likelihoods.h", "at_most(at_least(scale, d->low), d->high)", "at_least(scale, d->low)"),
    Fault("likelihoods.h", "mask clamped = less(second, splat(d->low)) | ", "mask clamped = "),
    Fault("likelihoods.h", "mask clamped = less(second,", "mask clamped = less_or_equal(second,"),
    Fault("likelihoods.h", "mask near_0 = less(size, splat(0.5f));", "mask near_0 = less(size, splat(2.0f));"),
    Fault("likelihoods.h", "of_mean = choose(equal(difference, zero), zero, of_mean);", ""),
    Fault("likelihoods.h", "of_mean = choose(equal(difference, difference), of_mean, difference);", ""),
    Fault("likelihoods.h", "choose(less(logits, splat(0.0f)), -size, size)", "size"),
    Fault("special.h", "mask small = less(y, splat(4.0f));", "mask small = less(y, splat(2.0f));"),
    Fault("special.h", "f = choose(equal_integers(exponent, (vi){0}), r, f);", ""),
    Fault("special.h", "choose(to_1, -log, log)", "log"),
    Fault("counts.h", "splat(COUNT_EPS)); /*", "splat(0x1p-126f)); /*"),
    Fault("counts.h", "with_theta || kind == ZERO_INFLATED", "with_theta"),
    Fault("mixture.h", "less(splat(1.0f - half_a_level), y)", "less(splat(1.0f), y)"),
    Fault("mixture.h", "less(y, splat(half_a_level - 1.0f))", "less(y, splat(-1.0f))"),
    Fault("mixture.h", "choose(b.highest, zero, choose(b.lowest, zero, by_log_width))", "by_log_width"),
    Fault("mixture.h", "choose(b.lowest, zero, sigmoid_of(b.lower))", "sigmoid_of(b.lower)"),
    Fault("mixture.h", "choose(less(log_scale, splat(low)), zero, of_scale)", "of_scale"),
    Fault("mixture.h", "choose(less(log_scale, splat(low))", "choose(less_or_equal(log_scale, splat(low))"),
)

WRONG_ARITHMETIC = (
    Fault("likelihoods.h", "-7.0f / 1440", "-7.0f / 1540"),
    Fault("likelihoods.h", "31.0f / 90720", "31.0f / 45360"),
    Fault("likelihoods.h", "-7.0f / 360", "-7.0f / 370"),
    Fault("likelihoods.h", "-127.0f / 604800", "-127.0f / 302400"),
    Fault("likelihoods.h", "scale + log_2_pi", "scale"),
    Fault("likelihoods.h", "difference * of_mean - 1.0f", "difference * of_mean"),
    Fault("likelihoods.h", "lgamma_of(x + 1.0f)", "lgamma_of(x)"),
    Fault("likelihoods.h", "grad * of.second", "of.second"),
    Fault("special.h", "(u - v) / (1.0f + v)", "(u - v) / (1.0f + u)"),
    Fault("special.h", "v = u + 2.0f;", "v = u + 1.0f;"),
    Fault("special.h", " + (y + y + 3.0f) / v", ""),
    Fault("special.h", "-1.0f / 360", "-1.0f / 380"),
    Fault("special.h", "-1.0f / 120", "-1.0f / 125"),
    Fault("special.h", "1.0f / 252", "1.0f / 126"),
    Fault("special.h", "vf between = x + (b.by - a.by);", "vf between = x;"),
    Fault("special.h", "log_of(a.product / b.product)", "log_of(b.product / a.product)"),
    Fault("special.h", "return rise + (a.log_slope - b.log_slope);", "return rise;"),
    *constants("special.h", r"(?<![\w.])-?0\.\d{5,}f", "(0.5f * {})"),
    Fault("counts.h", "log1p_of(mean / (theta + COUNT_EPS))", "log1p_of(mean / theta)"),
    Fault("counts.h", "log_of((mean + COUNT_EPS) /", "log_of(mean /"),
    Fault(
        "counts.h",
        "softplus_difference_of(load_some(log_prob + i, count) - logits, -logits)",
        "softplus_difference_of(load_some(log_prob + i, count), -logits)",
    ),
    Fault("counts.h", "if (kind == ZERO_INFLATED) log_prob -= softplus_of(load_some(s->logits + i, count));", ""),
    Fault("counts.h", "(shifted * total) - log_ratio", "(shifted * shifted) - log_ratio"),
    Fault("counts.h", "sigmoid_of(-logits) - counted", "sigmoid_of(logits) - counted"),
    Fault("counts.h", "of_log_prob *= counted;", ""),
    Fault("counts.h", "x / (mean + COUNT_EPS) - taken", "x / (mean + COUNT_EPS)"),
    Fault("counts.h", "digamma_rise(x, theta) - taken", "digamma_rise(x, theta)"),
    Fault("mixture.h", "? 2.0f / 255 : 2.0f", "? 2.0f / 256 : 2.0f"),
    Fault("mixture.h", "log_of(-b.expm1) + below + above", "below + above"),
    Fault("mixture.h", "sum * exp_of(largest - larger)", "sum"),
    Fault("mixture.h", "-b.width * (b.expm1 + 1.0f) / b.expm1", "-b.width / b.expm1"),
    Fault("mixture.h", "of_mean[2] * green", "of_mean[2] * red"),
    Fault("mixture.h", "1.0f - factor * factor", "1.0f - factor"),
)

LIKELIHOOD_FAULTS = (*ONE_TOO_MANY_OR_TOO_FEW, *WRONG_PLACE, *WRONG_BOUND, *WRONG_ARITHMETIC)
