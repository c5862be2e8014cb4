// Memory that changes in every way that a program has. SIGUSR1: a hundred changes, then "did". SIGUSR2: "ok", or
// "bad WHAT". What every page has to hold lies in an array of its own.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 48, REGIONS = 24, PLACES = 40, LARGE = 1024, FILED = 32 };
static char *arena, *large, *filed, *heap;
static int place[REGIONS], pipes[2], bad;
static uint64_t expected[REGIONS][PAGES], expected_large[LARGE], expected_filed[FILED], expected_heap[256];
static int heap_pages;
static uint64_t counter = 1, seed = 88172645463325252ull;

#define NEED(what, condition) do { if (!(condition)) { printf("bad %s (errno %d)\n", what, errno); bad = 1; } } while (0)

static uint64_t next(uint64_t below)
{
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed % below;
}
static char *at(int spot) { return arena + (size_t)spot * (PAGES + 4) * PAGE; }
static char *page(int region, int number) { return at(place[region]) + (size_t)number * PAGE; }
static void set(char *where, uint64_t value) { memcpy(where, &value, 8), memcpy(where + PAGE - 8, &value, 8); }
static int holds(const char *where, uint64_t value) { return !memcmp(where, &value, 8) && !memcmp(where + PAGE - 8, &value, 8); }
static uint64_t in_file(int number) { return 0xf11e000000ull + number; }

static int free_place(void)
{
    for (;;) {
        int spot = next(PLACES), taken = 0;
        for (int i = 0; i < REGIONS; i++)
            taken |= place[i] == spot;
        if (!taken)
            return spot;
    }
}
static void fresh(char *where, size_t length)
{
    NEED("mmap", mmap(where, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == where);
}

static void change(void)
{
    int r = next(REGIONS), p = next(PAGES), n = 1 + next(PAGES - p), spot;
    uint64_t value = ++counter, text[PAGE / 8];
    char *where = page(r, p);
    struct iovec from = { text, PAGE }, to = { where, PAGE };
    switch (next(17)) {
    case 0: case 1:
        set(where, expected[r][p] = value);
        break;
    case 2:
        NEED("dontneed", !madvise(where, (size_t)n * PAGE, MADV_DONTNEED));
        memset(&expected[r][p], 0, n * 8);
        break;
    case 3:
        NEED("munmap", !munmap(where, (size_t)n * PAGE));
        fresh(where, (size_t)n * PAGE);
        memset(&expected[r][p], 0, n * 8);
        break;
    case 4:
        spot = free_place();
        // What was mapped anew inside of it since the last capture is a mapping by itself, and only one can be moved.
        if (mremap(at(place[r]), PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(spot)) == at(spot))
            place[r] = spot;
        else {
            // A part of it may have been moved.
            NEED("mremap", errno == EFAULT);
            fresh(at(place[r]), PAGES * PAGE);
            memset(expected[r], 0, sizeof expected[r]);
        }
        break;
    case 5:
        NEED("mprotect", !mprotect(where, (size_t)n * PAGE, PROT_READ));
        NEED("mprotect", holds(where, expected[r][p]));
        NEED("mprotect", !mprotect(where, (size_t)n * PAGE, PROT_READ | PROT_WRITE));
        break;
    case 6: {
        pid_t child = fork();
        if (!child) {
            set(where, 1), set(page((r + 1) % REGIONS, 0), 2);
            _exit(0);
        }
        NEED("fork", child > 0 && waitpid(child, 0, 0) == child);
        break;
    }
    case 7:
        madvise(large, LARGE * PAGE, next(2) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        madvise(large, LARGE * PAGE, 25 /* MADV_COLLAPSE */);
        break;
    case 8:
        set(large + (size_t)(p * 20) * PAGE, expected_large[p * 20] = value);
        break;
    case 9:
        NEED("large dontneed", !madvise(large + (size_t)(p * 20) * PAGE, (size_t)n * PAGE, MADV_DONTNEED));
        memset(&expected_large[p * 20], 0, n * 8);
        break;
    case 10:
        heap_pages = next(256);
        for (int i = heap_pages; i < 256; i++)
            expected_heap[i] = 0;
        NEED("brk", !brk(heap + (size_t)heap_pages * PAGE));
        if (heap_pages) {
            spot = next(heap_pages);
            set(heap + (size_t)spot * PAGE, expected_heap[spot] = value);
        }
        break;
    case 11:
        memset(text, 0, PAGE), text[0] = text[PAGE / 8 - 1] = value;
        NEED("process_vm_writev", process_vm_writev(getpid(), &from, 1, &to, 1, 0) == PAGE);
        expected[r][p] = value;
        break;
    case 12:
        memset(text, 0, PAGE), text[0] = text[PAGE / 8 - 1] = value;
        NEED("pipe", write(pipes[1], text, PAGE) == PAGE && read(pipes[0], where, PAGE) == PAGE);
        expected[r][p] = value;
        break;
    case 13:
        madvise(where, PAGE, 8 /* MADV_FREE */);
        set(where, expected[r][p] = value);
        break;
    case 14:
        set(filed + (size_t)(p % FILED) * PAGE, expected_filed[p % FILED] = value);
        break;
    case 15:
        NEED("file dontneed", !madvise(filed + (size_t)(p % FILED) * PAGE, PAGE, MADV_DONTNEED));
        expected_filed[p % FILED] = in_file(p % FILED);
        break;
    case 16:
        if (!madvise(where, (size_t)n * PAGE, 102 /* MADV_GUARD_INSTALL */)) {
            NEED("guard", !madvise(where, (size_t)n * PAGE, 103 /* MADV_GUARD_REMOVE */));
            memset(&expected[r][p], 0, n * 8);
        }
    }
}

static void look(void)
{
    for (int r = 0; r < REGIONS; r++)
        for (int p = 0; p < PAGES; p++)
            NEED("page", holds(page(r, p), expected[r][p]));
    for (int p = 0; p < LARGE; p++)
        NEED("large page", holds(large + (size_t)p * PAGE, expected_large[p]));
    for (int p = 0; p < FILED; p++)
        NEED("page of a file", holds(filed + (size_t)p * PAGE, expected_filed[p]));
    for (int p = 0; p < heap_pages; p++)
        NEED("heap page", holds(heap + (size_t)p * PAGE, expected_heap[p]));
}

int main(int count, char **words)
{
    char name[4096];
    sigset_t set_of;
    if (count < 2)
        return 2;
    setvbuf(stdout, malloc(BUFSIZ), _IOLBF, BUFSIZ);
    sigemptyset(&set_of), sigaddset(&set_of, SIGUSR1), sigaddset(&set_of, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set_of, 0);
    arena = mmap(0, (size_t)PLACES * (PAGES + 4) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int r = 0; r < REGIONS; r++) {
        place[r] = -1;
        place[r] = r;
        fresh(at(r), PAGES * PAGE);
    }
    large = (char *)(((uintptr_t)mmap(0, (LARGE + 512) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + 0x1fffff) & ~0x1fffffull);
    for (int p = 0; p < LARGE; p++)
        set(large + (size_t)p * PAGE, expected_large[p] = ++counter);
    snprintf(name, sizeof name, "%s/filed", words[1]);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int p = 0; p < FILED; p++) {
        uint64_t text[PAGE / 8] = { 0 };
        text[0] = text[PAGE / 8 - 1] = expected_filed[p] = in_file(p);
        if (write(file, text, PAGE) != PAGE)
            return 3;
    }
    filed = mmap(0, FILED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    close(file);
    if (pipe(pipes) || filed == MAP_FAILED || arena == MAP_FAILED)
        return 3;
    heap = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    if (brk(heap))
        return 3;
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set_of, &signal);
        for (int i = 0; signal == SIGUSR1 && i < 100; i++)
            change();
        if (signal == SIGUSR2)
            look();
        puts(bad ? "" : signal == SIGUSR1 ? "did" : "ok");
    }
}
