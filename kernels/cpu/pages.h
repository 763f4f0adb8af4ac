/* Huge pages for large fresh outputs. Their memory is mapped page by page as the kernel first writes it, and on large
   tensors those faults cost more than the arithmetic: one fault for 2 MiB is several times cheaper than 512 small ones. */
#ifndef FASTVAE_PAGES_H
#define FASTVAE_PAGES_H

#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define HUGE_PAGE (2 << 20)

/* Advice on the whole small pages within a range; no harm where it is not taken. */
static void advise_huge_pages(void *data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t small_page = 4096;
    if (!data || bytes < HUGE_PAGE) return;
    uintptr_t first = ((uintptr_t)data + small_page - 1) / small_page * small_page;
    uintptr_t last = ((uintptr_t)data + (uintptr_t)bytes) / small_page * small_page;
    madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

#endif
