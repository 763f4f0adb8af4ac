/* Huge pages for large fresh outputs. Their memory is mapped page by page as the kernel first writes it, and on large
   tensors those faults cost more than the arithmetic: one fault for 2 MiB is several times cheaper than 512 small ones.
   Memory that a freed tensor left behind is mapped already, and advice on it costs as much as a small kernel. */
#ifndef FASTVAE_PAGES_H
#define FASTVAE_PAGES_H

#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#define HUGE_PAGE (2 << 20)

/* Advice on the whole small pages within a range whose middle is not mapped yet; no harm where it is not taken. */
static void advise_huge_pages(void *data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (!data || bytes < HUGE_PAGE) return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t last = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    unsigned char mapped = 0;
    mincore((void *)(first + (last - first) / 2 / page * page), page, &mapped);
    if (!(mapped & 1)) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

#endif
