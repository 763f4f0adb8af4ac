"""Small faults for heads and for the scaled Bernoulli; faults.py has the others and says what they are for."""

from __future__ import annotations

from .fault import Fault

SOFTMAX = (
    Fault("head.h", "if (before != largest) sum *= exp_of(splat(before - largest))[0];", ""),
    Fault("head.h", "s->log_sum = largest + log_of", "s->log_sum = log_of"),
    Fault("head.h", "c->head.library[row]))[0] - s->log_sum;", "c->head.library[row]))[0];"),
    Fault("head.h", "log_of(splat(c->head.library[row]))", "log_of(splat(c->head.library[0]))"),
    Fault("head.h", "(activation == SOFTMAX && kind != POISSON)) value", "activation == SOFTMAX) value"),
    Fault("head.h", " - share * (float)s->slope", ""),
    Fault("head.h", "(float)(s->slope / c->head.library[row])", "(float)s->slope"),
    Fault("head.h", "s->slopes + start, s, to)", "s->slopes, s, to)"),
    Fault("head.h", "copy_array(grad, n, s->slopes + t.start)", "copy_array(grad, n, s->slopes)"),
    Fault("head.h", "s->slope += sum_lanes", "s->slope = sum_lanes"),
    Fault("run.h", "(size_t)(c->units * c->event) + 1", "(size_t)c->event + 1"),
    Fault("run.h", "free(c->head.scratch);", ""),
)

WRONG_PLACE = (
    Fault("head.h", "partial + t.start, grad, partial + t.start", "partial, grad, partial"),
    Fault("head.h", "*partial += sum_lanes", "*partial = sum_lanes"),
    Fault("head.h", "sums->partial + unit * (sums->single ? 1 : c->event)", "sums->partial"),
    Fault("head.h", "unit * width, 0,", "0 * width, 0,"),
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
    Fault("head.h", "if (activation == SOFTPLUS) value = softplus_of(value);", ""),
    Fault("head.h", "if (c->likelihood.kind != POISSON) EACH_VECTOR", "EACH_VECTOR"),
)

SCALED_BERNOULLI = (
    Fault("scaled_bernoulli.h", "f, p * d * f}", "f, p * d}"),
    Fault("scaled_bernoulli.h", "choose(came, q - 1.0f, -q)", "choose(came, q - 1.0f, q)"),
    Fault("scaled_bernoulli.h", "at_least(log, -100.0f)", "log"),
    Fault("scaled_bernoulli.h", "choose(equal(x, x), at_least(log, -100.0f), x)", "at_least(log, -100.0f)"),
    Fault("scaled_bernoulli.h", "choose(equal(l.n, splat(0.0f)), excess, l.f)", "l.f"),
    Fault("scaled_bernoulli.h", "splat(1.0f), splat(0.0f)), x);", "splat(1.0f), splat(0.0f)), splat(0.0f));"),
    Fault("scaled_bernoulli.h", "1e-12f", "1e-4f"),
    Fault("scaled_bernoulli.h", "of_q * s.d * s.f", "of_q * s.d"),
    Fault("scaled_bernoulli.h", "of_q * s.p * s.f", "of_q * s.f"),
    Fault("scaled_bernoulli.h", "of_q * s.p * s.d", "of_q * s.d"),
)

HEAD_FAULTS = (*SOFTMAX, *WRONG_PLACE, *WRONG_ARITHMETIC, *SCALED_BERNOULLI)
