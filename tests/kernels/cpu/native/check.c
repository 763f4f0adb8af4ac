/* A test program in C that calls the kernels without Python: every shape, dtype, reduction, memory layout and number of
   threads of the lists below, compared with plain double arithmetic.

     check list              the instruction sets that this processor can run, one a line
     check [effort [near]]   checks the one that FASTVAE_CPU_ISA names, else the best. Effort: elements computed for
                             each shape, dtype and kind of call, in as many combinations of memory layouts as that
                             makes. Near: without rows more than 2^31 elements apart, which emulators are slow to map */
#include "run.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "heads.h"
#include "likelihoods.h"
#include "parameters.h"
#include "corner_cases.h"

static const shape shapes[] = {
    {0, 1, 5},
    {3, 1, 0},
    {0, 1, 0},
    {1, 1, 1},
    {3, 1, 1},
    {128, 1, 10},
    {102, 1, 10}, /* a tile of whole rows, exactly, and one row more */
    {103, 1, 10},
    {7, 1, 3},
    {5, 1, 15}, /* around every vector length */
    {5, 1, 16},
    {5, 1, 17},
    {4, 1, 64},
    {2, 1, 100},
    {3, 1, 127},
    {3, 1, 128},
    {3, 1, 129},
    {2, 1, 511},
    {2, 1, 512},
    {2, 1, 513},
    {1, 1, 1023}, /* around one tile a row, and several */
    {1, 1, 1024},
    {1, 1, 1025},
    {3, 1, 2049},
    {2, 1, 5000},
    {3, 4, 6}, /* events of two indices, as latents with channels have them */
    {5, 3, 5},
    {7, 11, 3},
    {2, 16, 64},
    {2, 3, 683},
    {1, 64, 33},
    {20000, 1, 1}, /* large enough for several threads */
    {1640, 1, 10},
    {17, 20, 50},
    {3, 1, 6001},
    {1, 1, 17000},
    {151, 1, 520}, /* units of several tiles, of one tile a row and of two */
    {71, 2, 520},
};

static const kind kinds[] = {
    {1, NO_KL},       {1, ELEMENTWISE}, {1, PER_SAMPLE}, {1, SUM},      {1, BATCHMEAN},
    {0, ELEMENTWISE}, {0, PER_SAMPLE},  {0, SUM},        {0, BATCHMEAN},
};

static const int64_t seeds[] = {0, -1, 0x0123456789abcdef};
static const uint64_t row_offsets[] = {0, 0xfffffffe, 0x7ffffffffffffffe, 5};

/* How often chance picks options of latents, for each combination of memory layouts. */
#define LATENTS 3

static int64_t next_turn;

static void check_latent(const problem *p) {
    latent_problem l = new_latent_problem(p);
    check_latent_forward(&l);
    check_latent_backward(&l);
    free_latent_problem(&l);
}

static void check_shape(shape s, int index, int dtype, int extreme, int64_t effort) {
    int64_t cost = s.rows * event_of(s) + 500; /* a call costs something itself */
    /* Where that is more than was asked for, one dtype, with or without extreme values, has to do. */
    if (cost > effort && (index + dtype + 3 * extreme) % 6 != 0) return;
    problem p = new_problem(s, dtype, extreme, seeds[(index + dtype) % COUNT(seeds)],
                            row_offsets[(index + dtype + extreme) % COUNT(row_offsets)], 0);
    for (int64_t spent = 0; spent == 0 || spent + cost <= effort; spent += cost) {
        turn = spent == cost ? 0 : next_turn++ % (LAYOUTS * LAYOUTS); /* once all dense, as most tensors are */
        check_noise(&p);
        for (int i = 0; i < COUNT(kinds); i++) {
            check_forward(&p, kinds[i]);
            check_backward(&p, kinds[i]);
        }
        for (int i = 0; i < LATENTS; i++) check_latent(&p);
        check_likelihoods(&p);
        check_heads(&p);
    }
    free(p.eps);
}

/* Latents of one shape, each with options that chance picks. */
static void check_latents_of(shape s, int times) {
    problem p = new_problem(s, FLOAT32, 0, 0, 0, 0);
    for (int i = 0; i < times; i++) check_latent(&p);
    free(p.eps);
}

/* Draws shared out to more threads than there are draws: some begin with the last tile of a share, which has fewer rows than
   the first one of the next share. */
static void check_shares_of_draws(void) {
    const int usual = most_threads;
    most_threads = 10;
    problem p = new_problem((shape){923, 1, 10}, FLOAT32, 0, 0, 0, 0);
    for (int i = 0; i < 32; i++) check_latent(&p);
    free(p.eps);
    most_threads = usual;
}

/* Rows that pass 2^32 and 2^63 within one call, and draws other than the first, in each of the ways in which noise is made. */
static void check_high_rows(void) {
    const shape three_rows[] = {{3, 1, 10}, {3, 1, 128}, {3, 1, 1100}};
    const uint32_t draws[] = {0, 1, 0xffffffff};
    for (int i = 0; i < COUNT(three_rows); i++)
        for (int j = 0; j < COUNT(row_offsets); j++) {
            uint32_t draw = draws[j % COUNT(draws)];
            problem p = new_problem(three_rows[i], FLOAT32, 0, seeds[1], row_offsets[j], draw);
            check_noise(&p);
            free(p.eps);
        }
}

/* Of their own, because by turns they come up too rarely for some ways through the code. */
static void check_far_rows(int dtype) {
    const shape two_rows[] = {{2, 1, 10}, {2, 1, 513}}; /* in one tile, and in two */
    for (int i = 0; i < COUNT(two_rows); i++) {
        next_turn = FAR_ROWS; /* the layout of all tensors of a call */
        check_shape(two_rows[i], i, dtype, 0, 2000);
    }
}

static int list_instruction_sets(void) {
    static const char *const names[] = {"x86-64-v4", "x86-64-v3", "aarch64"};
    for (int i = 0; i < COUNT(names); i++) {
        setenv("FASTVAE_CPU_ISA", names[i], 1);
        isa = NULL;
        choose_instruction_set();
        if (isa) puts(isa->name);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "list")) return list_instruction_sets();
    int64_t effort = argc > 1 ? atoll(argv[1]) : 4000;
    choose_instruction_set();
    if (!isa) {
        fprintf(stderr, "this processor has no kernels of the name %s\n", getenv("FASTVAE_CPU_ISA"));
        return 2;
    }
#if defined(_OPENMP)
    omp_set_dynamic(0); /* as many threads as are asked for */
#endif
    find_threads();
    far_rows = !(argc > 2 && !strcmp(argv[2], "near")) && far_rows_are_possible();
    check_words();
    check_rare_draws();
    check_high_rows();
    check_parameters();
    check_mixture_of_whole_tiles();
    for (int dtype = BFLOAT16; dtype <= FLOAT16; dtype++) {
        check_rounding(dtype);
        check_values_are_kept(dtype);
    }
    for (int dtype = FLOAT32; far_rows && dtype <= FLOAT16; dtype++) check_far_rows(dtype);
    for (int extreme = 0; extreme <= 1; extreme++)
        for (int dtype = FLOAT32; dtype <= FLOAT16; dtype++)
            for (int i = 0; i < COUNT(shapes); i++) check_shape(shapes[i], i, dtype, extreme, effort);
    check_counts_of_whole_tiles();
    check_heads_of_each_kind();
    check_latents_of((shape){102, 1, 10}, 48); /* tiles that are full to the last vector */
    check_shares_of_draws();
    check_latents_of((shape){1, 1, 1}, 1000); /* the strides of an output that is not wanted look contiguous here */
    printf("%s: %lld comparisons, %lld failures, %d calls on several threads\n", isa->name, (long long)comparisons,
           (long long)failures, calls_on_threads);
    printf("largest float32 error, as a part of the tolerance:");
    for (int i = 0; i < QUANTITIES; i++) printf("%s %s %.2f", i > 0 ? "," : "", quantity_names[i], worst[i]);
    printf("\n");
    if (!calls_on_threads) printf("left out: several threads (no OpenMP in this build)\n");
    if (!far_rows) printf("left out: rows more than 2^31 elements apart (not asked for, or no 80 GiB to map)\n");
    return failures > 0;
}
