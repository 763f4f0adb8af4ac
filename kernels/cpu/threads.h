/* Threads: the OpenMP pool that `import torch` has loaded, found by name at run time. Linking an OpenMP of our own would
   start a second pool in the process, and calls would then cost milliseconds. Without the symbols: one thread.
   As with PyTorch's own operators, a process forked after the pool was used must stay on one thread (DataLoader's do). */
#ifndef FASTVAE_THREADS_H
#define FASTVAE_THREADS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>

#include "call.h"

static void (*gomp_parallel)(void (*body)(void *), void *argument, unsigned threads, unsigned flags);
static int (*omp_thread_number)(void);
static int (*omp_team_size)(void);

static void find_threads(void) {
    *(void **)&gomp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&omp_thread_number = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&omp_team_size = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
}

static int have_threads(void) { return gomp_parallel && omp_thread_number && omp_team_size; }

/* Elements below which waking a second thread (about 5 microseconds) costs more than it saves. */
#define ELEMENTS_WORTH_THREADS 16384

typedef struct {
    unit_range *work;
    const call *c;
} team_work;

static void do_share(void *argument) {
    const team_work *team = argument;
    int64_t size = omp_team_size(), rank = omp_thread_number();
    int64_t units = team->c->units * team->c->shares_of_draws;
    team->work(team->c, units * rank / size, units * (rank + 1) / size);
}

/* Before cut_into_tiles, 0 draws stand for one. */
static int64_t elements_of_call(const call *c) { return c->rows * c->event * (c->draws > 1 ? c->draws : 1); }

static void run_units(unit_range *work, const call *c, int threads) {
    int64_t units = c->units * c->shares_of_draws;
    if (threads > units) threads = (int)units;
    if (threads <= 1 || !have_threads() || elements_of_call(c) < ELEMENTS_WORTH_THREADS) {
        work(c, 0, units);
        return;
    }
    team_work team = {work, c};
    gomp_parallel(do_share, &team, (unsigned)threads, 0);
}

#endif
