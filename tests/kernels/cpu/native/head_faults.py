"""Small faults for heads; faults.py has the others and says what they are for."""

from __future__ import annotations

from .fault import Fault

SOFTMAX = (
    Fault("head.h", "exp_less_vector, raw, largest,", "exp_less_vector, raw, 0.0f,"),
    Fault("head.h", "(largest + log_of(splat(s->sum))[0])", "log_of(splat(s->sum))[0]"),
    Fault("head.h", "sum += sum_lanes(parts_of_sum(s->shares", "sum = sum_lanes(parts_of_sum(s->shares"),
    Fault("head.h", "log_of(splat(c->head.library[row]))[0] - (", "-("),
    Fault("head.h", "log_of(splat(c->head.library[row]))", "log_of(splat(c->head.library[0]))"),
    Fault("head.h", "activation == SOFTMAX && c->likelihood.kind != POISSON", "activation == SOFTMAX"),
    Fault("head.h", "c->head.library[t.row] / s->sum", "1.0f / s->sum"),
    Fault("head.h", "c->head.library[t.row] / s->sum", "c->head.library[0] / s->sum"),
    Fault("head.h", "value + shift;", "value;"),
    Fault("head.h", " - load_some(shares + i, count) * by", ""),
    Fault("head.h", "(float)(s->slope / c->head.library[row])", "(float)s->slope"),
    Fault("head.h", "c->likelihood.kind == POISSON ? (float)(s->slope / s->sum) : of_library", "of_library"),
    Fault("head.h", "s->slopes + t.start, s->shares", "s->slopes, s->shares"),
    Fault("head.h", "s->shares + t.start, by, to", "s->shares, by, to"),
    Fault("head.h", "*slopes = s->slopes + t.start;", "*slopes = s->slopes;"),
    Fault(
        "head.h",
        "EACH_VECTOR(n, chain_vector, EXP, raw[i], in->parameters[i], grad, slopes);",
        "copy_array(grad, n, slopes);",
    ),
    Fault("head.h", "s->slope += sum_lanes", "s->slope = sum_lanes"),
    Fault("head.h", "s->slope = 0.0;", ""),
    Fault("head.h", "s.shares = s.slopes + c->event", "s.shares = s.slopes"),
    Fault("head.h", "c->head.scratch + 2 * first * c->event", "c->head.scratch"),
    Fault("run.h", "2 * c->units * c->event + BEHIND_A_SUM", "c->units * c->event + BEHIND_A_SUM"),
    Fault("run.h", "2 * c->units * c->event + BEHIND_A_SUM", "2 * c->event + BEHIND_A_SUM"),
    Fault("run.h", "c->event + BEHIND_A_SUM", "c->event"),
    Fault("run.h", "free(c->head.scratch);", ""),
)

WRONG_PLACE = (
    Fault("head.h", "partial + t.start, grad, partial + t.start", "partial, grad, partial"),
    Fault("head.h", "*partial += sum_lanes", "*partial = sum_lanes"),
    Fault("head.h", "sums->partial + unit * (sums->single ? 1 : c->event)", "sums->partial"),
    Fault("head.h", "unit * width, 0,", "0 * width, 0,"),
    Fault("head.h", "left < rows ? left : rows", "rows"),
    Fault("tiles.h", "if (c->head.x_rows) t.row %= c->head.x_rows;", ""),
    Fault("mixture.h", "of_x(c, t), buffer", "t, buffer"),
    Fault("likelihoods.h", "of_x(c, t), buffers->x", "t, buffers->x"),
    Fault("head.h", "of_rows[t.row + r] : 1.0f", "of_rows[r] : 1.0f"),
    Fault("head.h", "of_rows[t.row + r] : 1.0f", "of_rows[t.row + r] : 0.0f"),
    Fault("head.h", "b->terms + r * t.count, t.count", "b->terms, t.count"),
    Fault("head.h", "for (int64_t r = 0; r < rows; r++) log_prob[r] = 0.0;", ""),
    Fault("head.h", "log_prob[r] += sum_lanes", "log_prob[r] = sum_lanes"),
    Fault("head.h", "c->head.log_prob[row + r] = ", "c->head.log_prob[row] = "),
)

WRONG_ARITHMETIC = (
    Fault(
        "head.h",
        "SOFTPLUS ? sigmoid_of(load_some(raw + i, count))",
        "SOFTPLUS ? sigmoid_of(load_some(value + i, count))",
    ),
    Fault("head.h", "activation == SOFTPLUS ? softplus_of(value) : ", ""),
    Fault("head.h", "activation == EXP ? exp_of(value) : ", ""),
    Fault("head.h", "if (activation == EXP)\n", "if (0)\n"),
    Fault("head.h", "if (has_scale(kind)) store_some(to[1] + i, of.second, count);", ""),
    Fault("head.h", "if (kind >= NEGATIVE_BINOMIAL)\n", "if (kind > NEGATIVE_BINOMIAL)\n"),
)

# Of counts, the values that come with the gradients.
VALUES_OF_COUNTS = (
    Fault("counts.h", "-load_theta(in, i, count) * load_some(log_ratio", "-load_some(log_ratio"),
    Fault("counts.h", "at_least(difference, 0.0f) - at_least(-logits, 0.0f)", "at_least(difference, 0.0f)"),
    Fault("counts.h", "(u - v) * (below_u * of_below)", "(u - v) * (below_v * of_below)"),
    Fault("counts.h", "if (with_value) EACH_VECTOR(n, add_log1p_vector, log_ratio, log_prob);", ""),
    Fault("counts.h", "if (with_value) scatter(&s, s.log_prob, log_prob);", ""),
    Fault("counts.h", "if (kind == ZERO_INFLATED) log_prob -= softplus_of(logits);", ""),
)

HEAD_FAULTS = (*SOFTMAX, *WRONG_PLACE, *WRONG_ARITHMETIC, *VALUES_OF_COUNTS)
