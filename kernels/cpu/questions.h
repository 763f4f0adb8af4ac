/* Questions about tensors that Python asks before a call, because asking them in Python takes longer than a small kernel:
   are these ordinary tensors in the CPU's memory, of one shape and dtype, is this Normal valid. */
#ifndef FASTVAE_QUESTIONS_H
#define FASTVAE_QUESTIONS_H

#include "tensors.h"
#include "threads.h"

/* What plain tensors are: torch.Tensor and torch.nn.Parameter themselves; of what they are asked, the attribute is_cpu
   and the method is_neg, which tells a tensor whose memory has the signs of what it is a view of. */
static PyObject *plain_types[2], *is_cpu, *is_neg, *get_num_threads;

static PyObject *py_use_torch(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    if (given != 5 || !PyDict_Check(args[4])) {
        PyErr_SetString(PyExc_TypeError, "expected two types, two functions and a dict");
        return NULL;
    }
    for (int i = 0; i < 5; i++) Py_INCREF(args[i]);
    plain_types[0] = args[0];
    plain_types[1] = args[1];
    is_neg = args[2];
    get_num_threads = args[3];
    dtypes = args[4];
    is_cpu = PyUnicode_InternFromString("is_cpu");
    if (!is_cpu) return NULL;
    Py_RETURN_NONE;
}

/* Releases the answer. */
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
    return d->data != NULL; /* NULL also of an empty tensor: Python's slower checks decide */
}

/* Python's own numbers, strings and tuples. NumPy's numbers, which need a conversion, are none of these. */
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

/* Whether these are plain, of one shape, with a batch dimension and no empty one, and of one dtype that there are kernels
   for; their descriptions if so. */
static int view_alike(PyObject *first, PyObject *second, dlpack_tensor *a, dlpack_tensor *b) {
    if (!view_plain(first, a) || !view_plain(second, b)) return 0;
    int dtype = dtype_of(a);
    if (dtype < FLOAT32 || dtype > FLOAT16 || dtype != dtype_of(b)) return 0;
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

#endif
