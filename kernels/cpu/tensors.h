/* What the kernels need to know of a PyTorch tensor: address, dtype, shape and strides, and how tensors of one shape are
   seen as rows of an (outer, inner) event (layout.py says what that is).

   Newer versions of PyTorch answer by DLPack's C exchange interface, which is fast and needs no PyTorch header; of older
   ones the tensor's Python methods are called. */
#ifndef FASTVAE_TENSORS_H
#define FASTVAE_TENSORS_H

#include "call.h"

/* DLPack 1.x, the part that is used (https://dmlc.github.io/dlpack). These structs have DLPack's layout. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t rank;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} dlpack_tensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void *unused[3];
    int (*view)(void *tensor, dlpack_tensor *out); /* valid while the tensor lives */
    void *unused_too;
} dlpack_exchange;

#define DLPACK_CPU 1

enum { DLPACK_INT, DLPACK_UINT, DLPACK_FLOAT, DLPACK_BFLOAT = 4, DLPACK_BOOL = 6 };

static const dlpack_exchange *exchange; /* NULL: this PyTorch has none */
static PyObject *dtypes;                /* from torch.dtype to a dtype of call.h: a dict */

#define MAX_RANK 64 /* PyTorch's own */

typedef struct {
    char *data; /* NULL: the tensor takes no part, or has no elements */
    int is_none, dtype;
    int64_t rank;
    const int64_t *shape, *strides;
    int64_t draw;                  /* stride of a dimension that was taken away */
    int64_t numbers[2 * MAX_RANK]; /* memory for shape and strides that PyTorch does not keep, or that are changed */
} tensor;

/* The integers of a tuple; -1 and an exception if it is none. */
static int64_t unpack(PyObject *tuple, int64_t *numbers) {
    int64_t length = tuple ? PyTuple_Size(tuple) : -1;
    if (length > MAX_RANK) length = -1, PyErr_SetString(PyExc_ValueError, "a tensor has more than 64 dimensions");
    for (int64_t i = 0; i < length; i++) numbers[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    Py_XDECREF(tuple);
    return PyErr_Occurred() ? -1 : length;
}

static int ask_dtype(PyObject *object) {
    PyObject *dtype = PyObject_GetAttrString(object, "dtype");
    PyObject *found = dtype ? PyDict_GetItemWithError(dtypes, dtype) : NULL;
    Py_XDECREF(dtype);
    return found ? (int)PyLong_AsLong(found) : -1;
}

static int ask(PyObject *object, tensor *t) {
    PyObject *address = PyObject_CallMethod(object, "data_ptr", NULL);
    if (!address) return 0;
    t->data = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    t->dtype = ask_dtype(object);
    t->rank = unpack(PyObject_GetAttrString(object, "shape"), t->numbers);
    t->shape = t->numbers;
    t->strides = t->numbers + MAX_RANK;
    return t->rank >= 0 && unpack(PyObject_CallMethod(object, "stride", NULL), t->numbers + MAX_RANK) == t->rank;
}

/* Kernels take a missing address for a missing tensor, so one with elements must have an address. */
static int has_memory(const tensor *t) {
    if (t->data) return 1;
    for (int64_t dim = 0; dim < t->rank; dim++)
        if (t->shape[dim] == 0) return 1;
    PyErr_SetString(PyExc_RuntimeError, "a tensor has elements and no memory");
    return 0;
}

static int dtype_of(const dlpack_tensor *d) {
    switch (d->dtype.code << 8 | d->dtype.bits) {
    case DLPACK_FLOAT << 8 | 32: return FLOAT32;
    case DLPACK_BFLOAT << 8 | 16: return BFLOAT16;
    case DLPACK_FLOAT << 8 | 16: return FLOAT16;
    case DLPACK_BOOL << 8 | 8:
    case DLPACK_UINT << 8 | 8: return UINT8;
    case DLPACK_INT << 8 | 8: return INT8;
    case DLPACK_INT << 8 | 16: return INT16;
    case DLPACK_INT << 8 | 32: return INT32;
    case DLPACK_INT << 8 | 64: return INT64;
    default: return -1;
    }
}

/* Describe a tensor or None; 0 and an exception if that cannot be done. */
static int view_tensor(PyObject *object, tensor *t) {
    t->data = NULL;
    t->rank = 0;
    t->draw = 0;
    t->is_none = object == Py_None;
    if (t->is_none) return 1;
    if (exchange) {
        dlpack_tensor d;
        if (exchange->view(object, &d)) return 0;
        if (d.device.type != DLPACK_CPU) {
            PyErr_SetString(PyExc_RuntimeError, "a tensor is not in the memory of the CPU");
            return 0;
        }
        t->data = (char *)d.data + d.byte_offset;
        t->dtype = dtype_of(&d);
        t->rank = d.rank;
        t->shape = d.shape;
        t->strides = d.strides;
    } else if (!ask(object, t)) {
        return 0;
    }
    if (t->dtype < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a tensor has a dtype that there are no kernels for");
    return t->dtype >= 0 && has_memory(t);
}

static int64_t elements_of(const tensor *t, int64_t first_dim) {
    int64_t elements = 1;
    for (int64_t dim = first_dim; dim < t->rank; dim++) elements *= t->shape[dim];
    return elements;
}

/* Broadcasting: missing dimensions in front, and those of one element, get a stride of 0. */
static void expand(tensor *t, int64_t rank) {
    if (!t->data) return;
    int64_t lacking = rank - t->rank;
    for (int64_t dim = rank - 1; dim >= 0; dim--) {
        int64_t length = dim < lacking ? 1 : t->shape[dim - lacking];
        t->numbers[MAX_RANK + dim] = length == 1 ? 0 : t->strides[dim - lacking];
        t->numbers[dim] = length;
    }
    t->rank = rank;
    t->shape = t->numbers;
    t->strides = t->numbers + MAX_RANK;
}

/* Takes the second dimension away, of channels. */
static void take_channels(tensor *t) {
    if (!t->data) return;
    t->draw = t->strides[1];
    t->rank--;
    for (int64_t dim = 0; dim < t->rank; dim++) {
        t->numbers[dim] = t->shape[dim + (dim > 0)];
        t->numbers[MAX_RANK + dim] = t->strides[dim + (dim > 0)];
    }
    t->shape = t->numbers;
    t->strides = t->numbers + MAX_RANK;
}

/* Takes the first dimension away, of draws. */
static void take_draws(tensor *t) {
    if (!t->data) return;
    t->draw = t->strides[0];
    t->rank--;
    t->shape++;
    t->strides++;
}

/* Leaves the first half along a dimension, and gives the other; 0 if there are no halves. */
static int split_packed(tensor *t, int64_t split_dim, tensor *second) {
    if (split_dim < 1 || split_dim >= t->rank || t->shape[split_dim] % 2) return 0;
    for (int64_t dim = 0; dim < t->rank; dim++) {
        t->numbers[dim] = t->shape[dim] / (dim == split_dim ? 2 : 1);
        t->numbers[MAX_RANK + dim] = t->strides[dim];
    }
    t->shape = t->numbers;
    t->strides = t->numbers + MAX_RANK;
    *second = *t;
    second->shape = second->numbers;
    second->strides = second->numbers + MAX_RANK;
    if (t->data) second->data = (char *)t->data + t->shape[split_dim] * t->strides[split_dim] * (t->dtype == FLOAT32 ? 4 : 2);
    return 1;
}

/* Merges neighbouring dimensions of the event wherever every tensor allows it; 0 if more than two are left. */
static int plan_rows(call *c, const tensor *like, int count, const tensor *const *tensors, strided *const *planned) {
    int64_t size[2] = {1, 1}, groups = 0;
    c->rows = like->shape[0];
    int64_t event = elements_of(like, 1);
    for (int i = 0; i < count; i++) *planned[i] = (strided){.data = tensors[i]->data, .draw = tensors[i]->draw};
    if (event == 0) {
        size[0] = 0;
    } else {
        for (int i = 0; i < count; i++)
            if (tensors[i]->data) planned[i]->row = tensors[i]->strides[0];
        for (int64_t dim = like->rank - 1; dim > 0; dim--) {
            if (like->shape[dim] == 1) continue;
            int merge = groups > 0;
            for (int i = 0; i < count && merge; i++)
                if (tensors[i]->data)
                    merge = tensors[i]->strides[dim] ==
                            size[groups - 1] * (groups == 1 ? planned[i]->inner : planned[i]->outer);
            if (merge) {
                size[groups - 1] *= like->shape[dim];
                continue;
            }
            if (groups == 2) return 0;
            for (int i = 0; i < count; i++)
                if (tensors[i]->data) *(groups == 0 ? &planned[i]->inner : &planned[i]->outer) = tensors[i]->strides[dim];
            size[groups++] = like->shape[dim];
        }
    }
    c->inner = size[0];
    c->event = size[0] * size[1];
    c->channels = 1;
    c->channel_size = c->event;
    return 1;
}

/* A channel without dimensions behind it is one coordinate. */
static void simplify_reduction(call *c, const tensor *mu) {
    if (c->reduction == PER_CHANNEL && mu->rank <= 2) c->reduction = ELEMENTWISE;
}

/* With PER_CHANNEL the KL has a sum for each index of mu's second dimension. */
static void plan_channels(call *c, const tensor *mu) {
    if (c->reduction != PER_CHANNEL) return;
    c->channels = mu->shape[1];
    c->channel_size = elements_of(mu, 2);
}

/* The gradient of the KL: of another shape than mu unless the KL is elementwise, so plan_rows has not seen it. One that is
   expanded along the event, as the gradient of a sum is, is read as one number a row. */
static void take_grad_kl(call *c, const tensor *grad_kl) {
    c->grad_kl.data = grad_kl->data;
    if (c->reduction == ELEMENTWISE) {
        if (c->grad_kl.inner == 0 && c->grad_kl.outer == 0) c->reduction = PER_SAMPLE;
        return;
    }
    if (grad_kl->rank > 0) c->grad_kl.row = grad_kl->strides[0];
    if (grad_kl->rank > 1) c->grad_kl.inner = grad_kl->strides[1];
}

/* Of a tensor (draws, rows) or (rows). */
static strided row_values_of(const tensor *t) {
    if (!t->data) return (strided){0};
    return (strided){.data = t->data, .draw = t->rank > 1 ? t->strides[0] : 0, .row = t->strides[t->rank - 1]};
}

/* Whether there is one number for each of the rows, of which there are several, of more or less than one coordinate. */
static int is_one_a_row(const tensor *t, const tensor *x) {
    return t->data && t->rank == x->rank && x->rank > 1 && t->shape[0] == x->shape[0] && x->shape[0] > 1 &&
           elements_of(t, 1) == 1 && elements_of(x, 1) != 1;
}

static column_sums column_sums_of(const call *c, const tensor *grad, strided planned) {
    column_sums sums = {.out = planned, .dtype = grad->dtype, .single = elements_of(grad, 0) == 1, .divisor = 1.0};
    if (sums.single) { /* in one piece, of one element */
        sums.out.outer = c->inner;
        sums.out.inner = 1;
    }
    return sums;
}

/* A gradient of mu's shape is written tile by tile; that of an input that the batch shares is a sum over the batch. */
static void plan_shared_gradient(const call *c, const tensor *mu, const tensor *grad, strided planned, strided *of_all,
                                 column_sums *sums) {
    if (!grad->data || elements_of(grad, 0) == elements_of(mu, 0)) {
        *of_all = planned;
        return;
    }
    *sums = column_sums_of(c, grad, planned);
}

#endif
