/* What the start of a GPU kernel asks of its tensors: what it was worked out for, and addresses. Asking a dozen tensors in
   Python takes longer than the start. */
#ifndef FASTVAE_LAUNCHES_H
#define FASTVAE_LAUNCHES_H

#include "questions.h"

#define ALIGNMENT 16     /* bytes; Triton compiles one kernel for pointers that are multiples of it, and others */
#define LAYOUT_WORDS 256 /* of 64 bits: a dozen tensors have a hundred */

/* Equal bytes for tensors of equal devices, dtypes, shapes and strides, in the order of the arguments; None where they
   cannot be told in this way. */
static PyObject *py_layouts(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    int64_t words[LAYOUT_WORDS];
    Py_ssize_t used = 0;
    dlpack_tensor d;
    for (Py_ssize_t i = 0; i < given; i++) {
        int is_none = args[i] == Py_None;
        if (!is_none && (!exchange || exchange->view(args[i], &d))) {
            PyErr_Clear();
            Py_RETURN_NONE;
        }
        int64_t rank = is_none ? 0 : d.rank;
        if (used + 2 + 2 * rank > LAYOUT_WORDS) Py_RETURN_NONE;
        words[used++] = is_none ? -1 : rank;
        if (is_none) continue;
        words[used++] = (int64_t)d.device.type << 48 | (int64_t)(uint16_t)d.device.id << 32 |
                        (int64_t)d.dtype.code << 24 | (int64_t)d.dtype.bits << 16 | d.dtype.lanes;
        for (int64_t dim = 0; dim < rank; dim++) words[used++] = d.shape[dim];
        for (int64_t dim = 0; dim < rank; dim++) words[used++] = d.strides[dim];
    }
    return PyBytes_FromStringAndSize((const char *)words, used * (Py_ssize_t)sizeof words[0]);
}

/* Addresses of the tensors of a tuple (None of None), then the items of two other tuples; None where a tensor has none
   that can be told, or one that is not aligned. */
static PyObject *py_launch_arguments(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    Py_ssize_t sizes[3], total = 0;
    if (given != 3 || !exchange) Py_RETURN_NONE;
    for (int i = 0; i < 3; i++) {
        if (!PyTuple_Check(args[i])) {
            PyErr_Format(PyExc_TypeError, "expected three tuples, got %R", args[i]);
            return NULL;
        }
        sizes[i] = PyTuple_Size(args[i]);
        total += sizes[i];
    }
    PyObject *all = PyTuple_New(total);
    if (!all) return NULL;
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; i < sizes[0]; i++) {
        PyObject *tensor = PyTuple_GetItem(args[0], i), *address;
        dlpack_tensor d;
        if (tensor == Py_None) {
            address = Py_NewRef(Py_None);
        } else {
            int viewed = !exchange->view(tensor, &d);
            uintptr_t number = viewed ? (uintptr_t)d.data + d.byte_offset : 0;
            if (!viewed || number % ALIGNMENT) {
                PyErr_Clear();
                Py_DECREF(all);
                Py_RETURN_NONE;
            }
            address = PyLong_FromUnsignedLongLong(number);
        }
        if (!address || PyTuple_SetItem(all, at++, address)) {
            Py_DECREF(all);
            return NULL;
        }
    }
    for (int rest = 1; rest < 3; rest++)
        for (Py_ssize_t i = 0; i < sizes[rest]; i++)
            PyTuple_SetItem(all, at++, Py_NewRef(PyTuple_GetItem(args[rest], i)));
    return all;
}

#endif
