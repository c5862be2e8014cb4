// Much memory in areas of several kinds, among them some that nobody may write to, with holes in between, and two threads
// beside the first. Says "ok" as long as every page holds what it held, nobody else is among the threads and every thread
// may run where it might; else "bad WHAT".
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 2048, AREAS = 6 };
static char *area[AREAS];
static cpu_set_t usual;

static uint64_t value(int a, int p) { return 0x9e3779b97f4a7c15ull * (a * PAGES + p + 1); }
/* A hole now and then; the third area has one page in seven only. */
static int there(int a, int p) { return a == 2 ? p % 7 == 0 : p % 900 < 850; }

static void *waits(void *none)
{
    for (;;)
        pause();
    return none;
}

static const char *wrong(void)
{
    char line[256];
    cpu_set_t now;
    int threads = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status))
        sscanf(line, "Threads: %d", &threads);
    fclose(status);
    if (threads != 3)
        return "threads";
    if (sched_getaffinity(0, sizeof now, &now) || !CPU_EQUAL(&now, &usual))
        return "processors";
    for (int a = 0; a < AREAS; a++)
        for (int p = 0; p < PAGES; p++) {
            uint64_t first, last, want = there(a, p) ? value(a, p) : 0;
            memcpy(&first, area[a] + p * PAGE, 8);
            memcpy(&last, area[a] + p * PAGE + PAGE - 8, 8);
            if (first != want || last != want)
                return "memory";
        }
    return NULL;
}

int main(void)
{
    pthread_t thread;
    sched_getaffinity(0, sizeof usual, &usual);
    for (int a = 0; a < AREAS; a++) {
        /* One page more, so that areas of equal rights are two. */
        area[a] = mmap(NULL, (PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (int p = 0; p < PAGES; p++)
            if (there(a, p)) {
                uint64_t v = value(a, p);
                memcpy(area[a] + p * PAGE, &v, 8);
                memcpy(area[a] + p * PAGE + PAGE - 8, &v, 8);
            }
        if (a % 2)
            mprotect(area[a], PAGES * PAGE, a == 3 ? PROT_READ | PROT_EXEC : PROT_READ);
    }
    for (int t = 0; t < 2; t++)
        pthread_create(&thread, NULL, waits, NULL);
    puts("ready");
    for (;;) {
        const char *what = wrong();
        printf(what ? "bad %s\n" : "ok\n", what);
        fflush(stdout);
        usleep(20000);
    }
}
