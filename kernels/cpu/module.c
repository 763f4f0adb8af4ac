/* The Python module `_kernels` (_kernels.pyi says what it offers): unpacks arguments into a call, and runs it.
   Plain C against Python's limited API and without PyTorch's headers, so that one build serves many versions of both. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The headers of Python 3.12 and later return these without a reference, as they are immortal there; in 3.10 and 3.11,
   which load the same extension, they are not. */
#undef Py_RETURN_NONE
#undef Py_RETURN_TRUE
#undef Py_RETURN_FALSE
#define Py_RETURN_NONE return Py_NewRef(Py_None)
#define Py_RETURN_TRUE return PyBool_FromLong(1)
#define Py_RETURN_FALSE return PyBool_FromLong(0)

#include <math.h>

#include "launches.h"
#include "questions.h"
#include "run.h"

static PyObject *py_use_exchange(PyObject *self, PyObject *capsule) {
    exchange = NULL;
    if (capsule != Py_None) {
        const dlpack_exchange *offered = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
        if (!offered) PyErr_Clear(); /* something else by that name: use the tensors' methods */
        if (offered && offered->version.major == 1 && offered->view) exchange = offered;
    }
    return PyBool_FromLong(exchange != NULL);
}

/* Whether a call may go on: the number of arguments is right, and this processor has kernels. */
static int may_run(Py_ssize_t given, Py_ssize_t expected) {
    if (given != expected)
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
    else if (!isa)
        PyErr_SetString(PyExc_RuntimeError, "the extension has no kernels for this processor");
    return !PyErr_Occurred();
}

/* The size of a tuple that has at least `fewest` and at most `most` items; -1 and an exception of any other object. */
static Py_ssize_t size_of_tuple(PyObject *object, Py_ssize_t fewest, Py_ssize_t most) {
    Py_ssize_t size = PyTuple_Check(object) ? PyTuple_Size(object) : -1;
    if (size >= fewest && size <= most) return size;
    PyErr_Format(PyExc_TypeError, "expected a tuple of %zd items, got %R", most, object);
    return -1;
}

/* The items of a tuple of tensors; those that it lacks take no part. */
static int view_tuple(PyObject *tuple, Py_ssize_t fewest, Py_ssize_t most, tensor *tensors) {
    Py_ssize_t size = size_of_tuple(tuple, fewest, most);
    if (size < 0) return 0;
    for (Py_ssize_t i = 0; i < most; i++)
        if (!view_tensor(i < size ? PyTuple_GetItem(tuple, i) : Py_None, &tensors[i])) return 0;
    return 1;
}

/* A struct that __init__.py has packed. */
static int take_code(PyObject *packed, void *code, size_t expected) {
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(packed, &bytes, &size)) return 0;
    if ((size_t)size != expected) {
        PyErr_Format(PyExc_ValueError, "the code has %zd bytes, expected %zu", size, expected);
        return 0;
    }
    memcpy(code, bytes, expected);
    return 1;
}

static int run_any(call *c, unit_range *work, int threads) {
    return work == isa->head ? run_head(c, threads) : run_call(c, work, threads);
}

/* A small call is over before another thread of Python or of OpenMP would have begun. */
static int run_for_python(call *c, unit_range *work) {
    int enough_memory;
    if (elements_of_call(c) < ELEMENTS_WORTH_THREADS) {
        enough_memory = run_any(c, work, 1);
    } else {
        PyObject *answer = PyObject_CallFunctionObjArgs(get_num_threads, NULL);
        int threads = answer ? (int)PyLong_AsLong(answer) : 0;
        Py_XDECREF(answer);
        if (PyErr_Occurred()) return 0;
        Py_BEGIN_ALLOW_THREADS;
        enough_memory = run_any(c, work, threads);
        Py_END_ALLOW_THREADS;
    }
    if (!enough_memory) PyErr_NoMemory();
    return enough_memory;
}

/* noise(eps, seed, row_offset, draw) */
static PyObject *py_noise(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    tensor eps, seed;
    if (!may_run(given, 4) || !view_tensor(args[0], &eps) || !view_tensor(args[1], &seed)) return NULL;
    c.seed = (const int64_t *)seed.data;
    c.dtype = eps.dtype;
    c.row_offset = (uint64_t)PyLong_AsLongLong(args[2]);
    c.draw = (uint32_t)PyLong_AsUnsignedLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    plan_rows(&c, &eps, 1, (const tensor *[]){&eps}, (strided *[]){&c.z}); /* it is contiguous */
    return run_for_python(&c, isa->noise) ? PyBool_FromLong(1) : NULL;
}

/* The fields of LatentInputs, LatentOutputs and LatentGradients. */
enum { MU, SCALE, PRIOR_MU, PRIOR_SCALE, SEED, INPUTS };
enum { Z, KL, MEAN, LOG_Q, LOG_P, OUTPUTS };
enum { GRADIENTS = SEED };

static int refuse(const char *reason) {
    PyErr_SetString(PyExc_ValueError, reason);
    return 0;
}

/* What both directions of a latent have: LatentInputs, a `latent_code` and LatentScalars. */
static int take_latent(call *c, PyObject *given_inputs, latent_code code, PyObject *scalars, tensor *inputs) {
    options *o = &c->options;
    if (!view_tuple(given_inputs, INPUTS, INPUTS, inputs)) return 0;
    if (code.packed_dim && !split_packed(&inputs[MU], code.packed_dim, &inputs[SCALE]))
        return refuse("the packed tensor is None, or cannot be halved in the packed dimension");
    if (inputs[SCALE].is_none) return refuse("scale is None");
    c->dtype = inputs[SCALE].dtype;
    c->reduction = code.reduction;
    o->scale = code.scale;
    o->clamp = code.clamp;
    o->residual = code.residual;
    if (size_of_tuple(scalars, 7, 7) < 0) return 0;
    c->row_offset = (uint64_t)PyLong_AsLongLong(PyTuple_GetItem(scalars, 0));
    PyObject *draws = PyTuple_GetItem(scalars, 1);
    c->draws = draws == Py_None ? 0 : PyLong_AsLongLong(draws);
    float *const numbers[] = {&o->temperature, &o->low, &o->high, &o->floor, &o->free_bits};
    for (int i = 0; i < 5; i++) *numbers[i] = (float)PyFloat_AsDouble(PyTuple_GetItem(scalars, 2 + i));
    if (!code.free_bits) o->free_bits = 0.0f;
    simplify_reduction(c, &inputs[SCALE]);
    expand(&inputs[PRIOR_MU], inputs[SCALE].rank);
    expand(&inputs[PRIOR_SCALE], inputs[SCALE].rank);
    c->seed = (const int64_t *)inputs[SEED].data;
    return !PyErr_Occurred();
}

/* Where there is no z to write, no noise is drawn. */
static int check_forward(call *c, const tensor *in, const tensor *out) {
    if (in[MU].is_none) return refuse("mu is None");
    if (out[Z].is_none && !out[LOG_Q].is_none) return refuse("log_q and log_p are wanted without z");
    if (!out[Z].is_none && !c->seed) return refuse("z is wanted, and seed is None");
    if (out[Z].is_none) c->seed = NULL;
    return 1;
}

static int check_backward(const call *c, const tensor *grad, const tensor *in) {
    int of_z_alone = grad[KL].is_none && grad[LOG_Q].is_none && grad[LOG_P].is_none;
    if (!grad[MEAN].is_none) return refuse("kl_mean has a gradient, expected it as one of a KL of reduction 'none'");
    if (!c->seed && !(grad[Z].is_none && grad[LOG_P].is_none)) return refuse("z or log_p has a gradient, and seed is None");
    if (in[MU].is_none && (!of_z_alone || c->options.residual || c->draws > 1))
        return refuse("mu is None, which does where z alone has a gradient, of one draw and no residual");
    return 1;
}

/* latent_forward(LatentInputs, LatentOutputs, code, LatentScalars) */
static PyObject *py_latent_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    latent_code code;
    tensor in[INPUTS], out[OUTPUTS];
    if (!may_run(given, 4) || !take_code(args[2], &code, sizeof code)) return NULL;
    if (!take_latent(&c, args[0], code, args[3], in)) return NULL;
    if (!view_tuple(args[1], OUTPUTS, OUTPUTS, out) || !check_forward(&c, in, out)) return NULL;
    if (c.draws) take_draws(&out[Z]);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &in[SCALE], 5 + elementwise,
                   (const tensor *[]){&in[MU], &in[SCALE], &in[PRIOR_MU], &in[PRIOR_SCALE], &out[Z], &out[KL]},
                   (strided *[]){&c.mu, &c.scale, &c.prior_mu, &c.prior_scale, &c.z, &c.kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &in[SCALE]);
    c.kl.data = out[KL].data;
    c.log_q = (float *)out[LOG_Q].data;
    c.log_p = (float *)out[LOG_P].data;
    c.columns[KL_MEAN] = (column_sums){
        .out = {.data = out[MEAN].data, .outer = c.inner, .inner = 1}, .dtype = FLOAT32, .divisor = (double)c.rows};
    return run_for_python(&c, isa->latent_forward) ? PyBool_FromLong(1) : NULL;
}

/* latent_backward(LatentOutputs of gradients, LatentInputs, LatentGradients, code, LatentScalars) */
static PyObject *py_latent_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    latent_code code;
    tensor grad[OUTPUTS], in[INPUTS], of[GRADIENTS];
    strided of_prior_mu, of_prior_scale;
    if (!may_run(given, 5) || !take_code(args[3], &code, sizeof code)) return NULL;
    if (!take_latent(&c, args[1], code, args[4], in)) return NULL;
    if (!view_tuple(args[0], OUTPUTS, OUTPUTS, grad) || !view_tuple(args[2], GRADIENTS, GRADIENTS, of)) return NULL;
    if (code.packed_dim && !split_packed(&of[MU], code.packed_dim, &of[SCALE])) return NULL; /* it is like in[MU] */
    if (!check_backward(&c, grad, in)) return NULL;
    if (c.draws) take_draws(&grad[Z]);
    expand(&of[PRIOR_MU], in[SCALE].rank);
    expand(&of[PRIOR_SCALE], in[SCALE].rank);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &in[SCALE], 9 + elementwise,
                   (const tensor *[]){&grad[Z], &in[MU], &in[SCALE], &in[PRIOR_MU], &in[PRIOR_SCALE], &of[MU], &of[SCALE],
                                      &of[PRIOR_MU], &of[PRIOR_SCALE], &grad[KL]},
                   (strided *[]){&c.grad_z, &c.mu, &c.scale, &c.prior_mu, &c.prior_scale, &c.grad_mu, &c.grad_scale,
                                 &of_prior_mu, &of_prior_scale, &c.grad_kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &in[SCALE]);
    take_grad_kl(&c, &grad[KL]);
    c.grad_log_q = row_values_of(&grad[LOG_Q]);
    c.grad_log_p = row_values_of(&grad[LOG_P]);
    plan_shared_gradient(&c, &in[SCALE], &of[PRIOR_MU], of_prior_mu, &c.grad_prior_mu, &c.columns[OF_PRIOR_MU]);
    plan_shared_gradient(&c, &in[SCALE], &of[PRIOR_SCALE], of_prior_scale, &c.grad_prior_scale, &c.columns[OF_PRIOR_SCALE]);
    return run_for_python(&c, isa->latent_backward) ? PyBool_FromLong(1) : NULL;
}

typedef struct {
    tensor x, parameters[MOST_PARAMETERS], gradients[MOST_PARAMETERS]; /* these of the parameters */
} likelihood_tensors;

/* What the functions of likelihoods have in common: x, the parameters, their gradients (NULL: none), Bounds. */
static int take_likelihood(call *c, PyObject *const *x_and_parameters, PyObject *gradients, likelihood_code code,
                           PyObject *bounds, likelihood_tensors *t) {
    if (!view_tensor(x_and_parameters[0], &t->x)) return 0;
    if (!view_tuple(x_and_parameters[1], 1, MOST_PARAMETERS, t->parameters)) return 0;
    for (int i = 0; i < MOST_PARAMETERS; i++) t->gradients[i].data = NULL;
    if (gradients && !view_tuple(gradients, 1, MOST_PARAMETERS, t->gradients)) return 0;
    if (size_of_tuple(bounds, 2, 2) < 0) return 0;
    c->likelihood = (likelihood){.kind = code.kind, .low = -INFINITY, .high = INFINITY, .components = code.components};
    if (code.bounded) {
        c->likelihood.low = (float)PyFloat_AsDouble(PyTuple_GetItem(bounds, 0));
        c->likelihood.high = (float)PyFloat_AsDouble(PyTuple_GetItem(bounds, 1));
    }
    c->reduction = code.reduction;
    simplify_reduction(c, &t->x);
    c->x_dtype = t->x.dtype;
    if (code.kind == MIXTURE) { /* coordinates are pixels: the shapes are those without the channels */
        c->image_channels = t->x.shape[1];
        c->draws = t->parameters[0].shape[1];
        take_channels(&t->x);
        take_channels(&t->parameters[0]);
        take_channels(&t->gradients[0]);
    }
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        if (t->parameters[i].data) c->parameter_dtypes[i] = t->parameters[i].dtype;
        if (i) expand(&t->parameters[i], t->x.rank);
        if (i) expand(&t->gradients[i], t->x.rank);
    }
    return !PyErr_Occurred();
}

/* Rows of these tensors and, if the reduction leaves one number for each coordinate, of log p or its gradient. */
static int plan_likelihood(call *c, const likelihood_tensors *t, const tensor *log_prob, strided *of_log_prob,
                           strided of_gradients[MOST_PARAMETERS]) {
    const tensor *p = t->parameters, *g = t->gradients;
    if (!plan_rows(c, &t->x, 7 + (c->reduction == ELEMENTWISE),
                   (const tensor *[]){&t->x, &p[0], &p[1], &p[2], &g[0], &g[1], &g[2], log_prob},
                   (strided *[]){&c->x, &c->parameters[0], &c->parameters[1], &c->parameters[2], &of_gradients[0],
                                 &of_gradients[1], &of_gradients[2], of_log_prob}))
        return 0;
    plan_channels(c, &t->x);
    return 1;
}

/* likelihood_forward(x, parameters, log_prob, code, Bounds, noticed) */
static PyObject *py_likelihood_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    likelihood_code code;
    likelihood_tensors t;
    tensor log_prob, noticed;
    strided of_none[MOST_PARAMETERS];
    if (!may_run(given, 6) || !take_code(args[3], &code, sizeof code)) return NULL;
    if (!take_likelihood(&c, args, NULL, code, args[4], &t)) return NULL;
    if (!view_tensor(args[2], &log_prob) || !view_tensor(args[5], &noticed)) return NULL;
    if (!plan_likelihood(&c, &t, &log_prob, &c.kl, of_none)) Py_RETURN_FALSE;
    c.kl.data = log_prob.data;
    c.noticed = (uint8_t *)noticed.data;
    return run_for_python(&c, isa->likelihood_forward) ? PyBool_FromLong(1) : NULL;
}

/* likelihood_backward(grad, x, parameters, gradients, code, Bounds) */
static PyObject *py_likelihood_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    likelihood_code code;
    likelihood_tensors t;
    tensor grad;
    strided planned[MOST_PARAMETERS];
    if (!may_run(given, 6) || !take_code(args[4], &code, sizeof code)) return NULL;
    if (!take_likelihood(&c, args + 1, args[3], code, args[5], &t) || !view_tensor(args[0], &grad)) return NULL;
    if (!plan_likelihood(&c, &t, &grad, &c.grad_kl, planned)) Py_RETURN_FALSE;
    take_grad_kl(&c, &grad);
    c.grad_parameters[0] = planned[0];
    for (int i = 1; i < MOST_PARAMETERS; i++) {
        const tensor *of = &t.gradients[i];
        if (is_one_a_row(of, &t.x))
            c.row_gradients[i] = (row_sums){.out = {.data = of->data, .row = of->strides[0]}, .dtype = of->dtype};
        else
            plan_shared_gradient(&c, &t.x, of, planned[i], &c.grad_parameters[i], &c.columns[OF_PARAMETER(i)]);
    }
    return run_for_python(&c, isa->likelihood_backward) ? PyBool_FromLong(1) : NULL;
}

/* head(x, parameters, gradients, (library, grad, log_prob, of_library), code, Bounds) */
static PyObject *py_head(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    head_code code;
    likelihood_tensors t;
    tensor rows[4];
    strided planned[MOST_PARAMETERS];
    if (!may_run(given, 6) || !take_code(args[4], &code, sizeof code)) return NULL;
    if (!take_likelihood(&c, args, args[2], code.likelihood, args[5], &t) || !view_tuple(args[3], 4, 4, rows)) return NULL;
    if (!plan_likelihood(&c, &t, NULL, NULL, planned)) Py_RETURN_FALSE;
    c.head = (head_fields){
        .x_rows = c.rows,
        .with_gradients = code.with_gradients,
        .library = (const float *)rows[0].data,
        .grad = (const float *)rows[1].data,
        .log_prob = (float *)rows[2].data,
        .of_library = (float *)rows[3].data,
    };
    c.rows = t.parameters[0].shape[0];
    memcpy(c.head.activations, code.activations, sizeof code.activations);
    for (int i = 0; code.with_gradients && i < MOST_PARAMETERS; i++) {
        if (code.activations[i] != GIVEN)
            c.grad_parameters[i] = c.parameters[i];
        else if (i)
            c.columns[OF_PARAMETER(i)] = column_sums_of(&c, &t.gradients[i], planned[i]);
    }
    return run_for_python(&c, isa->head) ? PyBool_FromLong(1) : NULL;
}

static PyObject *py_words(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    if (given != 4 || !isa) {
        PyErr_SetString(PyExc_TypeError, "expected counters, how many, the seed and where to write");
        return NULL;
    }
    const int64_t *counter = PyLong_AsVoidPtr(args[0]);
    int64_t n = PyLong_AsLongLong(args[1]), seed = PyLong_AsLongLong(args[2]);
    int64_t *word = PyLong_AsVoidPtr(args[3]);
    if (PyErr_Occurred()) return NULL;
    isa->words(counter, n, (uint64_t)seed, word);
    Py_RETURN_NONE;
}

static PyObject *py_instruction_set(PyObject *self, PyObject *unused) {
    if (!isa) Py_RETURN_NONE;
    return PyUnicode_FromString(isa->name);
}

static PyObject *py_threaded(PyObject *self, PyObject *unused) { return PyBool_FromLong(have_threads()); }

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, doc}

static PyMethodDef methods[] = {
    FAST(noise, "write eps; _kernels.pyi has the arguments of all of these"),
    FAST(latent_forward, "write the outputs of a latent"),
    FAST(latent_backward, "write the gradients of a latent"),
    FAST(likelihood_forward, "write log-likelihoods"),
    FAST(likelihood_backward, "write the gradients of the parameters of a likelihood"),
    FAST(head, "write log-likelihoods, and gradients in the place of the outputs of linear layers"),
    FAST(look_at_normal, "1: valid, 2: N(0, 1), or both"),
    FAST(plain, "whether all tensors are plain"),
    FAST(alike, "whether all tensors are plain and of one shape and dtype"),
    FAST(layouts, "what tells tensors apart but for their values and addresses"),
    FAST(launch_arguments, "addresses of tensors, and what follows them"),
    FAST(use_torch, "what the extension knows of PyTorch"),
    FAST(words, "Philox words of given counters, for the tests"),
    {"use_exchange", py_use_exchange, METH_O, "how tensors are looked at: DLPack's C exchange interface, or None"},
    {"instruction_set", py_instruction_set, METH_NOARGS, "name of the instruction set in use, or None"},
    {"threaded", py_threaded, METH_NOARGS, "whether the process has an OpenMP pool to run on"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_doc = "CPU kernels of fastvae",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__kernels(void) {
    choose_instruction_set();
    find_threads();
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "elements_worth_threads", ELEMENTS_WORTH_THREADS)) {
        Py_DECREF(made);
        return NULL;
    }
#if defined(Py_GIL_DISABLED)
    /* Nothing changes after this: calls may run at once. */
    if (made) PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
