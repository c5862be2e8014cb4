// Large memory with a pattern. SIGUSR1: what grows by mremap reads as zeros behind its old end, and keeps the rest.
// SIGUSR2: what is given back reads as zeros. Each time "ok" or "bad WHAT".
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (4UL << 20)

int main(void)
{
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGUSR2);
    sigprocmask(SIG_BLOCK, &both, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    // The last mapping of its kind, so that it is the end of the image.
    char *grown = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *gap = mmap(0, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *given = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *heap = malloc(SIZE);
    memset(grown, 0x11, SIZE);
    memset(given, 0x22, SIZE);
    memset(heap, 0x33, SIZE);
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&both, &signal);
        int bad = 0;
        if (signal == SIGUSR1) {
            char *more = mremap(grown, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
            if (more != MAP_FAILED) {
                for (size_t i = 0; i < SIZE; i++)
                    bad |= more[i] != 0x11 || more[SIZE + i] != 0;
                grown = mremap(more, 2 * SIZE, SIZE, 0);
            }
            heap = realloc(heap, 2 * SIZE);
            for (size_t i = 0; i < SIZE; i++)
                bad |= heap[i] != 0x33;
            heap = realloc(heap, SIZE);
        } else {
            madvise(given, SIZE, MADV_DONTNEED);
            for (size_t i = 0; i < SIZE; i++)
                bad |= given[i] != 0;
            memset(given, 0x22, SIZE);
        }
        munmap(gap, 0);
        puts(bad ? "bad memory" : "ok");
    }
}
