/* Questions about tensors that Python asks before a call, because asking them in Python takes longer than a small kernel:
   are these ordinary tensors in memory, of one shape and dtype, is this Normal valid. */
#ifndef FASTVAE_QUESTIONS_H
#define FASTVAE_QUESTIONS_H

#include "tensors.h"
#include "threads.h"

/* What plain tensors are: torch.Tensor and torch.nn.Parameter themselves; of what they are asked, the attributes is_cpu and
   is_cuda and the method is_neg, which tells a tensor whose memory has the signs of what it is a view of. */
static PyObject *plain_types[2], *is_cpu, *is_cuda, *is_neg, *get_num_threads;

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
    is_cuda = PyUnicode_InternFromString("is_cuda");
    if (!is_cpu || !is_cuda) return NULL;
    Py_RETURN_NONE;
}

/* Releases the answer. */
static int answer_is(PyObject *answer, PyObject *expected) {
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);
    return answer == expected;
}

static int has(PyObject *object, PyObject *attribute) { return answer_is(PyObject_GetAttr(object, attribute), Py_True); }

/* Whether this is a plain tensor in the memory of the CPU or of a GPU, and a description of it if so. PyTorch takes a
   millisecond to say that it cannot describe one, so those of other devices are not asked for. */
static int view_plain(PyObject *object, dlpack_tensor *d) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    if (!exchange || (type != plain_types[0] && type != plain_types[1])) return 0;
    if (!has(object, is_cpu) && !has(object, is_cuda)) return 0;
    if (!answer_is(PyObject_CallFunctionObjArgs(is_neg, object, NULL), Py_False)) return 0;
    if (exchange->view(object, d)) {
        PyErr_Clear(); /* a batch of tensors, for instance */
        return 0;
    }
    return d->data != NULL; /* NULL also of an empty tensor: Python's slower checks decide */
}

static PyObject *py_plain(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    dlpack_tensor d;
    for (Py_ssize_t i = 0; i < given; i++)
        if (args[i] != Py_None && !view_plain(args[i], &d)) Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}

/* Whether this is plain, of a dtype that there are kernels for, with a batch dimension and no empty one; a description. */
static int view_usual(PyObject *object, dlpack_tensor *d) {
    if (!view_plain(object, d) || d->rank == 0) return 0;
    int dtype = dtype_of(d);
    if (dtype < FLOAT32 || dtype > FLOAT16) return 0;
    for (int32_t dim = 0; dim < d->rank; dim++)
        if (d->shape[dim] == 0) return 0;
    return 1;
}

/* Whether this is plain, and of the device, dtype and shape of ``usual``; a description. */
static int view_alike(const dlpack_tensor *usual, PyObject *object, dlpack_tensor *d) {
    if (!view_plain(object, d)) return 0;
    if (d->device.type != usual->device.type || d->device.id != usual->device.id) return 0;
    if (dtype_of(d) != dtype_of(usual) || d->rank != usual->rank) return 0;
    for (int32_t dim = 0; dim < d->rank; dim++)
        if (d->shape[dim] != usual->shape[dim]) return 0;
    return 1;
}

static PyObject *py_alike(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    dlpack_tensor first, other;
    if (!given || !view_usual(args[0], &first)) Py_RETURN_FALSE;
    for (Py_ssize_t i = 1; i < given; i++)
        if (!view_alike(&first, args[i], &other)) Py_RETURN_FALSE;
    Py_RETURN_TRUE;
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
    if (!view_usual(args[0], &loc) || !view_alike(&loc, args[1], &scale)) return PyLong_FromLong(-1);
    if (loc.device.type != DLPACK_CPU || loc.dtype.bits != 32) return PyLong_FromLong(-1);
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
