// What the kernel was told about memory: all of it locked, also where a thread's stack ends; some of it locked once it is
// touched; some that may be dropped; guard pages over shared memory. And a pipe of packets. Each SIGUSR1: "ok" or "bad WHAT".
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE = 4096, DROPPABLE = 8, GUARD = 102, NO_GUARD = 103 };
static char *locked, *droppable, *shared;
static int packets[2], guards;

#define CHECK(what, condition) do { if (!(condition)) { printf("bad %s\n", what); bad = 1; } } while (0)

// Whether the mapping at this place has a flag.
static int has(void *at, const char *flag)
{
    char line[1024];
    int found = 0, inside = 0;
    FILE *smaps = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, smaps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start <= (unsigned long)at && (unsigned long)at < end;
        else if (inside && !strncmp(line, "VmFlags:", 8))
            found = strstr(line, flag) != 0;
    }
    fclose(smaps);
    return found;
}

// Whether reading there raises a signal: the kernel finds nothing to write from.
static int unreadable(char *at) { return write(packets[1], at, 1) < 0; }
static void *rest(void *unused) { for (;;) pause(); }

static int look(void)
{
    int bad = 0;
    char text[16];
    CHECK("locked", has(&bad, " lo") && has(&locked, " lo"));
    CHECK("locked when touched", has(locked, " lo") && has(locked, " lf"));
    CHECK("droppable", droppable == MAP_FAILED || has(droppable, " dp"));
    if (guards) {
        CHECK("guard", unreadable(shared + PAGE) && !strcmp(shared, "before") && !strcmp(shared + 2 * PAGE, "behind"));
        CHECK("under the guard", !madvise(shared + PAGE, PAGE, NO_GUARD) && !strcmp(shared + PAGE, "under"));
        CHECK("guard again", !madvise(shared + PAGE, PAGE, GUARD));
    }
    CHECK("packets", write(packets[1], "one", 3) == 3 && write(packets[1], "two", 3) == 3 && read(packets[0], text, 16) == 3 && read(packets[0], text, 16) == 3);
    return bad;
}

int main(void)
{
    pthread_t thread;
    sigset_t set;
    setvbuf(stdout, 0, _IOLBF, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    int memory = memfd_create("guarded", 0);
    if (pipe2(packets, O_DIRECT) || pthread_create(&thread, &small, rest, 0) || ftruncate(memory, 3 * PAGE))
        return 3;
    shared = mmap(0, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    strcpy(shared, "before");
    strcpy(shared + PAGE, "under");
    strcpy(shared + 2 * PAGE, "behind");
    // It begins with less than it needs.
    struct rlimit most;
    getrlimit(RLIMIT_MEMLOCK, &most);
    most.rlim_cur = most.rlim_max;
    if (setrlimit(RLIMIT_MEMLOCK, &most))
        return 4;
    if (mlockall(MCL_CURRENT) || munlock(shared, 3 * PAGE))
        return 4;
    // Since Linux 6.15 and 6.11.
    guards = !madvise(shared + PAGE, PAGE, GUARD);
    droppable = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | DROPPABLE, -1, 0);
    locked = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (mlock2(locked, 4 * PAGE, MLOCK_ONFAULT))
        return 5;
    puts("ready");
    for (;;) {
        int signal;
        sigwait(&set, &signal);
        if (!look())
            puts("ok");
    }
}
