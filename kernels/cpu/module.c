/* The Python module `_kernels`: unpacks arguments, cuts the call into tiles, runs them, and finishes the KL's sums.
   Plain C against the limited API (setup.py asks for it): no PyTorch headers, so no build against one version of it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "call.h"
#include "pages.h"
#include "threads.h"

static const instruction_set *isa; /* NULL: none of ours runs on this processor */

static void choose_instruction_set(void) {
    /* FASTVAE_CPU_ISA asks for a lesser one, by name: the tests of each run on one machine. */
    const char *asked = getenv("FASTVAE_CPU_ISA");
#define CONSIDER(candidate, supported) \
    if (!isa && (supported) && (!asked || !*asked || !strcmp(asked, (candidate).name))) isa = &(candidate)
#if defined(__x86_64__)
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#if defined(__clang__) || __GNUC__ >= 11
    v3 = v3 && __builtin_cpu_supports("f16c"); /* older compilers do not know the name; no processor has AVX2 without */
#endif
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    CONSIDER(isa_x86_64_v4, v4);
    CONSIDER(isa_x86_64_v3, v3);
#elif defined(__aarch64__)
    CONSIDER(isa_aarch64, 1);
#endif
}

static void cut_into_tiles(call *c) {
    c->tiles_a_row = (c->event + TILE - 1) / TILE;
    c->rows_a_tile = c->event > 0 && c->event < TILE ? TILE / c->event : 1;
    c->tiles = c->tiles_a_row > 1 ? c->rows * c->tiles_a_row
               : c->event > 0     ? (c->rows + c->rows_a_tile - 1) / c->rows_a_tile
                                  : 0;
}

/* Outputs are dense: as many bytes as they have elements, whatever their strides. */
static int64_t output_bytes(const call *c) { return c->rows * c->event * (c->dtype == FLOAT32 ? 4 : 2); }

/* From one sum a tile to the KL: always in the same order, and in double, so that long rows lose nothing. */
static void finish_kl(const call *c) {
    float *kl = c->kl.data;
    double total = 0.0;
    for (int64_t row = 0; row < c->rows; row++) {
        double sum = 0.0;
        for (int64_t i = 0; i < c->tiles_a_row; i++) sum += c->tile_kl[row * c->tiles_a_row + i];
        if (c->reduction == PER_SAMPLE) kl[row] = (float)sum;
        total += sum;
    }
    if (c->reduction == SUM) *kl = (float)total;
    if (c->reduction == BATCHMEAN) *kl = (float)(total / (double)c->rows);
}

/* Arguments come as integers, in order; an error is noted by Python and found at the end. */
typedef struct {
    PyObject *const *next;
} arguments;

static int64_t take(arguments *a) { return PyLong_AsLongLong(*a->next++); }

static strided take_strided(arguments *a) {
    strided t = {(void *)(intptr_t)take(a)};
    t.row = take(a);
    t.outer = take(a);
    t.inner = take(a);
    return t;
}

static int begin_call(call *c, arguments *a, int *threads, Py_ssize_t given, Py_ssize_t expected) {
    if (given != expected) {
        PyErr_Format(PyExc_TypeError, "expected %zd integers, got %zd", expected, given);
        return 0;
    }
    if (!isa) {
        PyErr_SetString(PyExc_RuntimeError, "the extension has no kernels for this processor");
        return 0;
    }
    c->dtype = (int)take(a);
    c->rows = take(a);
    int64_t outer = take(a);
    c->inner = take(a);
    c->event = outer * c->inner;
    c->row_offset = (uint64_t)take(a);
    c->seed = (const int64_t *)(intptr_t)take(a);
    c->reduction = (int)take(a);
    *threads = (int)take(a);
    return 1;
}

static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    arguments a = {args};
    int threads;
    if (!begin_call(&c, &a, &threads, given, 8 + 4 * 4)) return NULL;
    c.mu = take_strided(&a);
    c.logvar = take_strided(&a);
    c.z = take_strided(&a);
    c.kl = take_strided(&a);
    if (PyErr_Occurred()) return NULL;
    cut_into_tiles(&c);
    int sums = c.reduction == PER_SAMPLE || c.reduction == SUM || c.reduction == BATCHMEAN;
    int direct = c.reduction == PER_SAMPLE && c.tiles_a_row == 1; /* a tile's sums are the KL */
    if (direct) {
        c.tile_kl = c.kl.data;
    } else if (sums) {
        c.tile_kl = malloc(sizeof(float) * (size_t)(c.rows * c.tiles_a_row) + 1);
        if (!c.tile_kl) return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS;
    advise_huge_pages(c.z.data, output_bytes(&c));
    run_tiles(isa->forward, &c, threads);
    if (sums && !direct) {
        finish_kl(&c);
        free(c.tile_kl);
    }
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    call c = {0};
    arguments a = {args};
    int threads;
    if (!begin_call(&c, &a, &threads, given, 8 + 6 * 4)) return NULL;
    c.grad_z = take_strided(&a);
    c.grad_kl = take_strided(&a);
    c.mu = take_strided(&a);
    c.logvar = take_strided(&a);
    c.grad_mu = take_strided(&a);
    c.grad_logvar = take_strided(&a);
    if (PyErr_Occurred()) return NULL;
    cut_into_tiles(&c);
    Py_BEGIN_ALLOW_THREADS;
    advise_huge_pages(c.grad_mu.data, output_bytes(&c));
    advise_huge_pages(c.grad_logvar.data, output_bytes(&c));
    run_tiles(isa->backward, &c, threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *py_words(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    arguments a = {args};
    if (given != 5 || !isa) {
        PyErr_SetString(PyExc_TypeError, "expected counters, how many, two key words and where to write");
        return NULL;
    }
    const int64_t *counter = (const int64_t *)(intptr_t)take(&a);
    int64_t n = take(&a);
    uint32_t k0 = (uint32_t)take(&a), k1 = (uint32_t)take(&a);
    int64_t *word = (int64_t *)(intptr_t)take(&a);
    if (PyErr_Occurred()) return NULL;
    isa->words(counter, n, k0, k1, word);
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
#if defined(Py_GIL_DISABLED)
    /* Nothing changes after this: calls may run at once. */
    if (made) PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
