/* The Python module `_kernels`: unpacks arguments and runs the call.
   Plain C against the limited API (setup.py asks for it): no PyTorch headers, so no build against one version of it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "run.h"
#include "tensors.h"

static PyObject *py_use_exchange(PyObject *self, PyObject *capsule) {
    exchange = NULL;
    if (capsule != Py_None) {
        const dlpack_exchange *offered = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
        if (!offered) PyErr_Clear(); /* something else by that name: methods will do */
        if (offered && offered->version.major == 1 && offered->view) exchange = offered;
    }
    return PyBool_FromLong(exchange != NULL);
}

/* What plain tensors are: torch.Tensor and torch.nn.Parameter themselves; of what they are asked, the attribute is_cpu
   and the method is_neg, which tells a tensor whose memory has the signs of what it is a view of. */
static PyObject *plain_types[2], *is_cpu, *is_neg;

static PyObject *py_use_plain(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    if (given != 3) {
        PyErr_SetString(PyExc_TypeError, "expected two types and a method");
        return NULL;
    }
    for (int i = 0; i < 3; i++) Py_INCREF(args[i]);
    plain_types[0] = args[0];
    plain_types[1] = args[1];
    is_neg = args[2];
    is_cpu = PyUnicode_InternFromString("is_cpu");
    if (!is_cpu) return NULL;
    Py_RETURN_NONE;
}

/* Takes the answer's reference. */
static int answer_is(PyObject *answer, PyObject *expected) {
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);
    return answer == expected;
}

/* Whether this is a plain tensor in the memory of the CPU, and a description of it if so. PyTorch takes a millisecond to
   say that it cannot describe one, so those of other devices are not asked for. */
static int view_plain(PyObject *object, dlpack_tensor *d) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    if (!exchange || (type != plain_types[0] && type != plain_types[1])) return 0;
    if (!answer_is(PyObject_GetAttr(object, is_cpu), Py_True)) return 0;
    if (!answer_is(PyObject_CallFunctionObjArgs(is_neg, object, NULL), Py_False)) return 0;
    if (exchange->view(object, d)) {
        PyErr_Clear(); /* a batch of tensors, for instance */
        return 0;
    }
    return d->data != NULL; /* NULL also where there are no elements: the long way will do */
}

/* An int and not NumPy's, and so on: what needs no conversion. */
static int is_simple(PyObject *object) {
    return object == Py_None || PyLong_CheckExact(object) || PyUnicode_CheckExact(object) || PyFloat_CheckExact(object) ||
           PyBool_Check(object) || PyTuple_CheckExact(object);
}

static PyObject *py_plain(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    Py_ssize_t tensors = given ? PyLong_AsSsize_t(args[0]) : -1;
    if (tensors < 0 || tensors >= given) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "expected how many tensors there are, and the arguments");
        return NULL;
    }
    dlpack_tensor d;
    for (Py_ssize_t i = 1; i <= tensors; i++)
        if (args[i] != Py_None && !view_plain(args[i], &d)) Py_RETURN_FALSE;
    for (Py_ssize_t i = tensors + 1; i < given; i++)
        if (!is_simple(args[i])) Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}

enum { DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4 };

/* Whether these are plain, of one shape, with a batch dimension and no empty one, and of one dtype that there are kernels
   for; their descriptions if so. */
static int view_alike(PyObject *first, PyObject *second, dlpack_tensor *a, dlpack_tensor *b) {
    if (!view_plain(first, a) || !view_plain(second, b)) return 0;
    int of_16_or_32 = a->dtype.bits == 32 || a->dtype.bits == 16;
    int has_kernels = a->dtype.code == DLPACK_FLOAT ? of_16_or_32 : a->dtype.code == DLPACK_BFLOAT;
    if (!has_kernels || a->dtype.code != b->dtype.code || a->dtype.bits != b->dtype.bits) return 0;
    if (a->rank == 0 || a->rank != b->rank) return 0;
    for (int32_t dim = 0; dim < a->rank; dim++)
        if (a->shape[dim] == 0 || a->shape[dim] != b->shape[dim]) return 0;
    return 1;
}

static PyObject *py_alike(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    dlpack_tensor a, b;
    return PyBool_FromLong(given == 2 && view_alike(args[0], args[1], &a, &b));
}

/* How many elements a tensor without gaps has; 0 of one with gaps. */
static int64_t dense_elements(const dlpack_tensor *d) {
    int64_t elements = 1;
    for (int32_t dim = d->rank - 1; dim >= 0; dim--) {
        if (d->shape[dim] != 1 && d->strides[dim] != elements) return 0;
        elements *= d->shape[dim];
    }
    return elements;
}

/* What can be said of loc and scale of a Normal in one pass, see _kernels.pyi; NaN is neither above nor equal to
   anything. */
static PyObject *py_look_at_normal(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    dlpack_tensor loc, scale;
    if (given != 2) {
        PyErr_SetString(PyExc_TypeError, "expected loc and scale");
        return NULL;
    }
    if (!view_alike(args[0], args[1], &loc, &scale) || loc.dtype.bits != 32) return PyLong_FromLong(-1);
    int64_t n = dense_elements(&loc);
    if (n == 0 || n != dense_elements(&scale) || n > ELEMENTS_WORTH_THREADS) return PyLong_FromLong(-1);
    const float *mean = (const float *)((char *)loc.data + loc.byte_offset);
    const float *std = (const float *)((char *)scale.data + scale.byte_offset);
    int valid = 1, standard = 1;
    for (int64_t i = 0; i < n; i++) {
        valid &= (mean[i] == mean[i]) & (std[i] > 0.0f);
        standard &= (mean[i] == 0.0f) & (std[i] == 1.0f);
    }
    return PyLong_FromLong(valid | standard << 1);
}

/* What all calls end with: the seed's tensor, the dtype, row_offset, reduction and number of threads.
   0 and an exception where the arguments cannot be these. */
static int take_rest(call *c, int *threads, PyObject *const *rest, Py_ssize_t given, Py_ssize_t expected) {
    if (given != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, given);
        return 0;
    }
    if (!isa) {
        PyErr_SetString(PyExc_RuntimeError, "the extension has no kernels for this processor");
        return 0;
    }
    tensor seed;
    if (!view_tensor(rest[0], &seed)) return 0;
    c->seed = (const int64_t *)seed.data;
    c->dtype = (int)PyLong_AsLong(rest[1]);
    c->row_offset = (uint64_t)PyLong_AsLongLong(rest[2]);
    c->reduction = (int)PyLong_AsLong(rest[3]);
    *threads = (int)PyLong_AsLong(rest[4]);
    return !PyErr_Occurred();
}

static PyObject *run_without_gil(call *c, unit_range *work, int threads) {
    int enough_memory;
    Py_BEGIN_ALLOW_THREADS;
    enough_memory = run_call(c, work, threads);
    Py_END_ALLOW_THREADS;
    if (!enough_memory) return PyErr_NoMemory();
    Py_RETURN_TRUE;
}

static PyObject *py_noise(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    int threads;
    tensor eps;
    if (!take_rest(&c, &threads, args + 2, given, 7) || !view_tensor(args[0], &eps)) return NULL;
    c.draw = (uint32_t)PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    plan_rows(&c, &eps, 1, (const tensor *[]){&eps}, (strided *[]){&c.z}); /* it is contiguous */
    return run_without_gil(&c, isa->noise, threads);
}

static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    int threads;
    tensor mu, logvar, z, kl;
    if (!take_rest(&c, &threads, args + 4, given, 9)) return NULL;
    if (!view_tensor(args[0], &mu) || !view_tensor(args[1], &logvar)) return NULL;
    if (!view_tensor(args[2], &z) || !view_tensor(args[3], &kl)) return NULL;
    c.options.temperature = 1.0f;
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &mu, 3 + elementwise, (const tensor *[]){&mu, &logvar, &z, &kl},
                   (strided *[]){&c.mu, &c.scale, &c.z, &c.kl}))
        Py_RETURN_FALSE;
    c.kl.data = kl.data;
    return run_without_gil(&c, isa->forward, threads);
}

static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    int threads;
    tensor grad_z, grad_kl, mu, logvar, grad_mu, grad_logvar;
    if (!take_rest(&c, &threads, args + 6, given, 11)) return NULL;
    if (!view_tensor(args[0], &grad_z) || !view_tensor(args[1], &grad_kl) || !view_tensor(args[2], &mu)) return NULL;
    if (!view_tensor(args[3], &logvar) || !view_tensor(args[4], &grad_mu) || !view_tensor(args[5], &grad_logvar))
        return NULL;
    c.options.temperature = 1.0f;
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &logvar, 5 + elementwise, (const tensor *[]){&grad_z, &mu, &logvar, &grad_mu, &grad_logvar, &grad_kl},
                   (strided *[]){&c.grad_z, &c.mu, &c.scale, &c.grad_mu, &c.grad_scale, &c.grad_kl}))
        Py_RETURN_FALSE;
    take_grad_kl(&c, &grad_kl);
    return run_without_gil(&c, isa->backward, threads);
}

/* What the latents with options have before the rest: those, packed, and the number of draws or 0, which is one draw
   and no dimension for it. */
static int take_options(call *c, PyObject *const *args) {
    char *packed;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[0], &packed, &size)) return 0;
    if (size != sizeof c->options) {
        PyErr_SetString(PyExc_ValueError, "these are not packed options");
        return 0;
    }
    memcpy(&c->options, packed, sizeof c->options);
    c->draws = PyLong_AsLongLong(args[1]);
    return !PyErr_Occurred();
}

static int view_tensors(PyObject *const *objects, int count, tensor *tensors) {
    for (int i = 0; i < count; i++)
        if (!view_tensor(objects[i], &tensors[i])) return 0;
    return 1;
}

static PyObject *py_latent_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    enum { MU, SCALE, PRIOR_MU, PRIOR_SCALE, Z, KL, MEAN, LOG_Q, LOG_P, TENSORS };
    call c = {0};
    int threads;
    tensor t[TENSORS];
    if (!take_rest(&c, &threads, args + TENSORS + 2, given, TENSORS + 7)) return NULL;
    if (!take_options(&c, args + TENSORS) || !view_tensors(args, TENSORS, t)) return NULL;
    int64_t between_draws = c.draws ? take_draws(&t[Z]) : 0;
    expand(&t[PRIOR_MU], t[MU].rank);
    expand(&t[PRIOR_SCALE], t[MU].rank);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &t[MU], 5 + elementwise,
                   (const tensor *[]){&t[MU], &t[SCALE], &t[PRIOR_MU], &t[PRIOR_SCALE], &t[Z], &t[KL]},
                   (strided *[]){&c.mu, &c.scale, &c.prior_mu, &c.prior_scale, &c.z, &c.kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &t[MU]);
    c.z.draw = between_draws;
    c.kl.data = t[KL].data;
    c.log_q = (float *)t[LOG_Q].data;
    c.log_p = (float *)t[LOG_P].data;
    c.columns[KL_MEAN] = (column_sums){
        .out = {.data = t[MEAN].data, .outer = c.inner, .inner = 1}, .dtype = FLOAT32, .divisor = (double)c.rows};
    return run_without_gil(&c, isa->latent_forward, threads);
}

static PyObject *py_latent_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    enum {
        GRAD_Z, GRAD_KL, GRAD_LOG_Q, GRAD_LOG_P, MU, SCALE, PRIOR_MU, PRIOR_SCALE, GRAD_MU, GRAD_SCALE, GRAD_PRIOR_MU,
        GRAD_PRIOR_SCALE, TENSORS
    };
    call c = {0};
    int threads;
    tensor t[TENSORS];
    strided of_prior_mu, of_prior_scale;
    if (!take_rest(&c, &threads, args + TENSORS + 2, given, TENSORS + 7)) return NULL;
    if (!take_options(&c, args + TENSORS) || !view_tensors(args, TENSORS, t)) return NULL;
    int64_t between_draws = c.draws ? take_draws(&t[GRAD_Z]) : 0;
    expand(&t[PRIOR_MU], t[MU].rank);
    expand(&t[PRIOR_SCALE], t[MU].rank);
    expand(&t[GRAD_PRIOR_MU], t[MU].rank);
    expand(&t[GRAD_PRIOR_SCALE], t[MU].rank);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &t[MU], 9 + elementwise,
                   (const tensor *[]){&t[GRAD_Z], &t[MU], &t[SCALE], &t[PRIOR_MU], &t[PRIOR_SCALE], &t[GRAD_MU],
                                      &t[GRAD_SCALE], &t[GRAD_PRIOR_MU], &t[GRAD_PRIOR_SCALE], &t[GRAD_KL]},
                   (strided *[]){&c.grad_z, &c.mu, &c.scale, &c.prior_mu, &c.prior_scale, &c.grad_mu, &c.grad_scale,
                                 &of_prior_mu, &of_prior_scale, &c.grad_kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &t[MU]);
    c.grad_z.draw = between_draws;
    take_grad_kl(&c, &t[GRAD_KL]);
    c.grad_log_q = row_values_of(&t[GRAD_LOG_Q]);
    c.grad_log_p = row_values_of(&t[GRAD_LOG_P]);
    plan_shared_gradient(&c, &t[MU], &t[GRAD_PRIOR_MU], c.dtype, of_prior_mu, &c.grad_prior_mu, &c.columns[OF_PRIOR_MU]);
    plan_shared_gradient(&c, &t[MU], &t[GRAD_PRIOR_SCALE], c.dtype, of_prior_scale, &c.grad_prior_scale,
                         &c.columns[OF_PRIOR_SCALE]);
    return run_without_gil(&c, isa->latent_backward, threads);
}

/* What likelihoods have before the rest: the density and the dtypes of x and the parameters, packed. */
static int take_density(call *c, PyObject *object) {
    struct {
        density density;
        int32_t dtypes[1 + MOST_PARAMETERS];
    } given;
    char *packed;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(object, &packed, &size)) return 0;
    if (size != sizeof given) {
        PyErr_SetString(PyExc_ValueError, "this is not a packed density");
        return 0;
    }
    memcpy(&given, packed, sizeof given);
    c->density = given.density;
    c->x_dtype = given.dtypes[0];
    for (int i = 0; i < MOST_PARAMETERS; i++) c->parameter_dtypes[i] = given.dtypes[1 + i];
    return 1;
}

/* Channels leave the shapes of a mixture's tensors; what is left are pixels. */
static void plan_mixture(call *c, tensor *x, tensor *parameter, tensor *grad, int64_t between[3]) {
    if (c->density.kind != MIXTURE) return;
    c->image_channels = x->shape[1];
    c->draws = parameter->shape[1];
    between[0] = take_channels(x);
    between[1] = take_channels(parameter);
    between[2] = take_channels(grad);
}

static PyObject *py_likelihood_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    enum { X, FIRST, SECOND, THIRD, LOG_PROB, TENSORS };
    call c = {0};
    int threads;
    tensor t[TENSORS], none = {0};
    int64_t between[3] = {0};
    if (!take_rest(&c, &threads, args + TENSORS + 1, given, TENSORS + 6)) return NULL;
    if (!take_density(&c, args[TENSORS]) || !view_tensors(args, TENSORS, t)) return NULL;
    plan_mixture(&c, &t[X], &t[FIRST], &none, between);
    expand(&t[SECOND], t[X].rank);
    expand(&t[THIRD], t[X].rank);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &t[X], 4 + elementwise, (const tensor *[]){&t[X], &t[FIRST], &t[SECOND], &t[THIRD], &t[LOG_PROB]},
                   (strided *[]){&c.x, &c.parameters[0], &c.parameters[1], &c.parameters[2], &c.kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &t[X]);
    c.x.draw = between[0];
    c.parameters[0].draw = between[1];
    c.kl.data = t[LOG_PROB].data;
    return run_without_gil(&c, isa->likelihood_forward, threads);
}

static PyObject *py_likelihood_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    enum { GRAD, X, FIRST, SECOND, THIRD, GRAD_FIRST, GRAD_SECOND, GRAD_THIRD, TENSORS };
    call c = {0};
    int threads;
    tensor t[TENSORS];
    int64_t between[3] = {0};
    strided of_second, of_third;
    if (!take_rest(&c, &threads, args + TENSORS + 1, given, TENSORS + 6)) return NULL;
    if (!take_density(&c, args[TENSORS]) || !view_tensors(args, TENSORS, t)) return NULL;
    plan_mixture(&c, &t[X], &t[FIRST], &t[GRAD_FIRST], between);
    for (int i = SECOND; i < TENSORS; i++)
        if (i != GRAD_FIRST) expand(&t[i], t[X].rank);
    int elementwise = c.reduction == ELEMENTWISE;
    if (!plan_rows(&c, &t[X], 7 + elementwise,
                   (const tensor *[]){&t[X], &t[FIRST], &t[SECOND], &t[THIRD], &t[GRAD_FIRST], &t[GRAD_SECOND],
                                      &t[GRAD_THIRD], &t[GRAD]},
                   (strided *[]){&c.x, &c.parameters[0], &c.parameters[1], &c.parameters[2], &c.grad_parameters[0],
                                 &of_second, &of_third, &c.grad_kl}))
        Py_RETURN_FALSE;
    plan_channels(&c, &t[X]);
    c.x.draw = between[0];
    c.parameters[0].draw = between[1];
    c.grad_parameters[0].draw = between[2];
    take_grad_kl(&c, &t[GRAD]);
    plan_shared_gradient(&c, &t[X], &t[GRAD_SECOND], c.parameter_dtypes[1], of_second, &c.grad_parameters[1],
                         &c.columns[OF_PARAMETER(1)]);
    plan_shared_gradient(&c, &t[X], &t[GRAD_THIRD], c.parameter_dtypes[2], of_third, &c.grad_parameters[2],
                         &c.columns[OF_PARAMETER(2)]);
    return run_without_gil(&c, isa->likelihood_backward, threads);
}

static PyObject *py_gammas(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    if (given != 4 || !isa) {
        PyErr_SetString(PyExc_TypeError, "expected arguments, how many, and where to write lgamma and digamma");
        return NULL;
    }
    const float *y = PyLong_AsVoidPtr(args[0]);
    int64_t n = PyLong_AsLongLong(args[1]);
    float *lgamma = PyLong_AsVoidPtr(args[2]), *digamma = PyLong_AsVoidPtr(args[3]);
    if (PyErr_Occurred()) return NULL;
    isa->gammas(y, n, lgamma, digamma);
    Py_RETURN_NONE;
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

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL, "z and KL; see __init__.py for the arguments"},
    {"backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, "gradients; see __init__.py for the arguments"},
    {"noise", (PyCFunction)(void (*)(void))py_noise, METH_FASTCALL, "eps; see __init__.py for the arguments"},
    {"latent_forward", (PyCFunction)(void (*)(void))py_latent_forward, METH_FASTCALL, "forward, of any latent"},
    {"latent_backward", (PyCFunction)(void (*)(void))py_latent_backward, METH_FASTCALL, "backward, of any latent"},
    {"likelihood_forward", (PyCFunction)(void (*)(void))py_likelihood_forward, METH_FASTCALL, "log-likelihoods"},
    {"likelihood_backward", (PyCFunction)(void (*)(void))py_likelihood_backward, METH_FASTCALL, "their gradients"},
    {"look_at_normal", (PyCFunction)(void (*)(void))py_look_at_normal, METH_FASTCALL, "1: valid, 2: N(0, 1), or both"},
    {"gammas", (PyCFunction)(void (*)(void))py_gammas, METH_FASTCALL, "lgamma and digamma of floats, for the tests"},
    {"use_plain", (PyCFunction)(void (*)(void))py_use_plain, METH_FASTCALL, "what plain tensors are; see module.c"},
    {"plain", (PyCFunction)(void (*)(void))py_plain, METH_FASTCALL, "whether arguments are plain; see _kernels.pyi"},
    {"alike", (PyCFunction)(void (*)(void))py_alike, METH_FASTCALL, "whether two plain tensors are of a shape and dtype"},
    {"use_exchange", py_use_exchange, METH_O, "how tensors are looked at: DLPack's C exchange interface, or None"},
    {"words", (PyCFunction)(void (*)(void))py_words, METH_FASTCALL, "Philox words of given counters, for the tests"},
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
